//! Which prompts an exam asks: from the policies, the held-out data, live prompts and the bank.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use super::bank::{self, Fact, Half};
use super::question::{ExamRule, Group, Question, Situation, user};
use super::words::Words;
use crate::pipeline::situated;
use crate::policy::{Policy, PolicySet, Rule};
use crate::preferences::{Message, Pair};
use crate::triage::{Triage, TriagedPair};

/// Of the controls that are trained on, one in this many is the operator's own.
const OWN_CONTROLS: usize = 4;
/// Of the controls, the share that is close to governed prompts.
const NEAR_MISS_SHARE: f64 = 0.35;

/// How large an exam is, and what it asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// Most prompts that are answered.
    pub prompts: usize,
    /// Of those, most that rules govern.
    pub governed: usize,
    /// Most facts.
    pub facts: usize,
    /// Share of answers that must comply where a policy does not say, 0 to 1.
    pub min_compliance: f64,
}

/// Where an exam's prompts come from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The active policies; only enforced ones are asked about.
    pub policies: &'a PolicySet,
    /// The preference data.
    pub pairs: &'a [Pair],
    /// Its triage under these policies.
    pub triage: &'a Triage,
    /// Indices of the pairs that are not trained on.
    pub holdout: &'a [usize],
    /// Recent prompts of clients, where the operator allows keeping them.
    pub live: &'a [String],
}

/// What is asked of every generation under one policy set.
#[derive(Clone, Debug, Default)]
pub struct Exam {
    /// SHA-256 (hex) over everything that it asks.
    pub hash: String,
    /// The rules of the enforced policies.
    pub rules: Vec<ExamRule>,
    /// The prompts.
    pub questions: Vec<Question>,
    /// The facts.
    pub facts: Vec<Fact>,
}

impl Exam {
    /// Chooses the prompts. The same sources give the same exam.
    pub fn assemble(sources: Sources<'_>, settings: Settings) -> Exam {
        let assembly = Assembly::new(sources, settings);
        let governed = assembly.governed();
        let mut questions = assembly.spread(governed, settings.governed.min(settings.prompts));
        let room = settings.prompts.saturating_sub(settings.governed);
        let controls = assembly.controls(&questions, room);
        questions.extend(controls);
        let mut facts = bank::facts();
        facts.truncate(settings.facts);
        let rules: Vec<ExamRule> = assembly.rules.iter().map(|r| r.exam.clone()).collect();
        Exam {
            hash: hash(sources.policies, &rules, &questions, &facts),
            rules,
            questions,
            facts,
        }
    }

    /// Prompts that no rule is about and that no exam asks, for training to keep the base's answers to:
    /// a quarter from what the operator named and from the pairs that are trained on, the closest to
    /// the conflicts' prompts, and the others from the bank.
    pub fn training_controls(sources: Sources<'_>, count: usize) -> Vec<Question> {
        let settings = Settings::default();
        let assembly = Assembly::new(sources, settings);
        let conflicts = sources.triage.items.iter();
        let conflicts = conflicts.filter(|item| item.category.is_conflict());
        let governed: Vec<&str> = conflicts
            .map(|item| sources.pairs[item.index].prompt_text())
            .collect();
        let (mut own, mut bank) = assembly.trainable();
        let words = Words::new(
            governed
                .iter()
                .copied()
                .chain(own.iter().map(String::as_str)),
        );
        let targets: Vec<_> = governed.iter().map(|text| words.weigh(text)).collect();
        let closeness = |prompt: &String| words.weigh(prompt).closest(&targets);
        own.sort_by(|a, b| closeness(b).total_cmp(&closeness(a)).then_with(|| a.cmp(b)));
        own.truncate(count / OWN_CONTROLS);
        bank.sort_by_key(|prompt| order(prompt));
        own.extend(bank);
        own.truncate(count);
        own.into_iter()
            .map(|prompt| {
                let conversation = situated(&prompt, &user(&prompt), None);
                Question::new(Group::Everyday, Situation::Plain, conversation, Vec::new())
            })
            .collect()
    }

    /// Number of controls.
    pub fn controls(&self) -> usize {
        let controls = self.questions.iter().filter(|q| q.group.is_control());
        controls.count()
    }
}

/// Bumped when the same sources would give another exam or another result.
const VERSION: &str = "exam/1";

fn hash(set: &PolicySet, rules: &[ExamRule], questions: &[Question], facts: &[Fact]) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(VERSION);
    add(set.revision());
    for rule in rules {
        add(&rule.name());
        add(&rule.target.to_string());
    }
    for question in questions {
        add(&question.id);
        add(&format!("{:?} {:?}", question.group, question.rules));
    }
    for fact in facts {
        add(&fact.prompt);
    }
    hex::encode(hash.finalize())
}

/// A rule with its policy.
struct Owned<'a> {
    policy: &'a Policy,
    rule: &'a Rule,
    exam: ExamRule,
}

/// A prompt and the rules that it is known to be about.
struct Prompt {
    conversation: Vec<Message>,
    text: String,
    rules: Vec<usize>,
}

struct Assembly<'a> {
    sources: Sources<'a>,
    rules: Vec<Owned<'a>>,
    /// Prompts of the pairs that are trained on.
    trained: HashSet<&'a str>,
}

impl<'a> Assembly<'a> {
    fn new(sources: Sources<'a>, settings: Settings) -> Self {
        let enforced = sources.policies.policies().iter();
        let everyday = bank::controls(Half::Exam);
        let rules = enforced
            .filter(|policy| policy.is_enforced())
            .flat_map(|policy| policy.rules.iter().map(move |rule| (&**policy, rule)))
            .map(|(policy, rule)| Owned {
                policy,
                rule,
                exam: ExamRule {
                    policy: policy.id.clone(),
                    rule: rule.id.clone(),
                    severity: rule.severity,
                    target: policy
                        .gate
                        .min_compliance
                        .unwrap_or(settings.min_compliance),
                    is_broad: is_broad(rule, &everyday),
                },
            })
            .collect();
        let holdout: HashSet<usize> = sources.holdout.iter().copied().collect();
        let trained = sources.pairs.iter().enumerate();
        let trained = trained.filter(|(index, _)| !holdout.contains(index));
        Self {
            sources,
            rules,
            trained: trained.map(|(_, pair)| pair.prompt_text()).collect(),
        }
    }

    /// The rules that a prompt is about: those whose `when` holds. A broad rule, or one whose `when`
    /// needs more than the prompt, has to be known to concern it.
    fn about(&self, prompt: &str, known: &dyn Fn(&Owned<'_>) -> bool) -> Vec<usize> {
        let about = |(index, owned): (usize, &Owned<'_>)| {
            let applies = owned.rule.applies(prompt);
            let is_about = match applies {
                Some(true) if owned.exam.is_broad => known(owned),
                Some(applies) => applies,
                None => known(owned),
            };
            is_about.then_some(index)
        };
        self.rules.iter().enumerate().filter_map(about).collect()
    }

    /// Every prompt that rules govern, each once.
    fn governed(&self) -> Vec<Prompt> {
        let mut found: HashMap<String, Prompt> = HashMap::new();
        let mut add = |conversation: Vec<Message>, text: &str, rules: Vec<usize>| {
            if rules.is_empty() || self.trained.contains(text) {
                return;
            }
            let prompt = found.entry(text.to_owned()).or_insert_with(|| Prompt {
                conversation,
                text: text.to_owned(),
                rules: Vec::new(),
            });
            prompt.rules.extend(rules);
            prompt.rules.sort_unstable();
            prompt.rules.dedup();
        };
        for owned in &self.rules {
            let own = |other: &Owned<'_>| std::ptr::eq(other.rule, owned.rule);
            for example in &owned.rule.examples {
                add(
                    user(&example.prompt),
                    &example.prompt,
                    self.about(&example.prompt, &own),
                );
            }
        }
        for owned in &self.rules {
            let same = |other: &Owned<'_>| std::ptr::eq(other.policy, owned.policy);
            for prompt in &owned.policy.prompts {
                add(user(prompt), prompt, self.about(prompt, &same));
            }
        }
        for &index in self.sources.holdout {
            let pair = &self.sources.pairs[index];
            let item = self.sources.triage.items.get(index);
            let known = |owned: &Owned<'_>| item.is_some_and(|item| concerns(item, owned));
            let text = pair.prompt_text();
            add(pair.prompt.clone(), text, self.about(text, &known));
        }
        for prompt in self.sources.live {
            add(user(prompt), prompt, self.about(prompt, &|_| false));
        }
        let mut all: Vec<Prompt> = found.into_values().collect();
        all.sort_by_key(|prompt| order(&prompt.text));
        all
    }

    /// As many governed prompts as there is room for, every rule alike, in all situations.
    fn spread(&self, governed: Vec<Prompt>, room: usize) -> Vec<Question> {
        let fair = room.div_ceil(self.rules.len().max(1));
        let mut counts = vec![0; self.rules.len()];
        let (mut kept, mut rest) = (Vec::new(), Vec::new());
        for prompt in governed {
            if kept.len() < room && prompt.rules.iter().any(|&rule| counts[rule] < fair) {
                prompt.rules.iter().for_each(|&rule| counts[rule] += 1);
                kept.push(prompt);
            } else {
                rest.push(prompt);
            }
        }
        let free = room.saturating_sub(kept.len());
        kept.extend(rest.into_iter().take(free));
        let numbered = kept.into_iter().enumerate();
        numbered
            .map(|(n, prompt)| {
                let situation = governed_situation(n);
                Question::new(
                    Group::Governed,
                    situation,
                    prompt.conversation,
                    prompt.rules,
                )
            })
            .collect()
    }

    /// At most `room` prompts that no rule is about: near-misses first, then everyday ones.
    fn controls(&self, governed: &[Question], room: usize) -> Vec<Question> {
        let (mut named, mut others) = self.free_prompts();
        let asked: HashSet<&str> = governed.iter().map(|q| q.prompt.as_str()).collect();
        named.retain(|prompt| !asked.contains(prompt.text.as_str()));
        others.retain(|prompt| !asked.contains(prompt.text.as_str()));
        let texts = governed.iter().map(|q| q.prompt.as_str());
        let words = Words::new(texts.clone().chain(others.iter().map(|p| p.text.as_str())));
        let targets: Vec<_> = texts.map(|text| words.weigh(text)).collect();
        let closeness = |p: &Prompt| words.weigh(&p.text).closest(&targets);
        let mut ranked: Vec<(f64, Prompt)> =
            others.into_iter().map(|p| (closeness(&p), p)).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.text.cmp(&b.1.text)));
        let most = (room as f64 * NEAR_MISS_SHARE).ceil() as usize;
        named.truncate(most);
        let free = most - named.len();
        let near = ranked.iter().take_while(|(closeness, _)| *closeness > 0.0);
        let near = near.count().min(free);
        let mut everyday: Vec<Prompt> = ranked.split_off(near).into_iter().map(|r| r.1).collect();
        everyday.sort_by_key(|prompt| order(&prompt.text));
        named.extend(ranked.into_iter().map(|r| r.1));
        everyday.truncate(room.saturating_sub(named.len()));
        let near = named.into_iter().map(|p| (Group::NearMiss, p));
        let everyday = everyday.into_iter().map(|p| (Group::Everyday, p));
        let numbered = near.chain(everyday).enumerate();
        numbered
            .map(|(n, (group, prompt))| {
                Question::new(group, control_situation(n), prompt.conversation, Vec::new())
            })
            .collect()
    }

    /// Prompts that no rule is about and that no exam asks, each once: the operator's, and the bank's.
    fn trainable(&self) -> (Vec<String>, Vec<String>) {
        let named = self.rules.iter().flat_map(|owned| {
            let own = |other: &Owned<'_>| std::ptr::eq(other.rule, owned.rule);
            let examples = owned.rule.examples.iter().map(|example| &example.prompt);
            let examples = examples.filter(move |prompt| self.about(prompt, &own).is_empty());
            owned.policy.controls.iter().chain(examples)
        });
        let named = named.filter(|prompt| bank::half_of(prompt) == Half::Training);
        let holdout: HashSet<usize> = self.sources.holdout.iter().copied().collect();
        let items = self.sources.triage.items.iter();
        let retained = items
            .filter(|item| !item.category.is_conflict() && !holdout.contains(&item.index))
            .filter(|item| !self.rules.iter().any(|owned| concerns(item, owned)))
            .map(|item| &self.sources.pairs[item.index])
            .filter(|pair| pair.prompt.len() == 1)
            .map(|pair| pair.prompt_text().to_owned());
        let bank = bank::controls(Half::Training).into_iter().map(|c| c.prompt);
        let mut seen = HashSet::new();
        let mut free = |prompt: &String| {
            self.about(prompt, &|_| false).is_empty() && seen.insert(prompt.clone())
        };
        let own = named.cloned().chain(retained).filter(&mut free).collect();
        (own, bank.filter(&mut free).collect())
    }

    /// Prompts that no rule is about: those that operators named, and those of data and bank. Of the
    /// named ones, half is left to training.
    fn free_prompts(&self) -> (Vec<Prompt>, Vec<Prompt>) {
        let mut seen = HashSet::new();
        let mut free =
            |text: &str, conversation: Vec<Message>, known: &dyn Fn(&Owned<'_>) -> bool| {
                let is_free = self.about(text, known).is_empty();
                (is_free && !self.trained.contains(text) && seen.insert(text.to_owned())).then(
                    || Prompt {
                        conversation,
                        text: text.to_owned(),
                        rules: Vec::new(),
                    },
                )
            };
        let mut named = Vec::new();
        for owned in &self.rules {
            let own = |other: &Owned<'_>| std::ptr::eq(other.rule, owned.rule);
            let asked = |prompt: &&String| bank::half_of(prompt) == Half::Exam;
            for control in owned.policy.controls.iter().filter(asked) {
                named.extend(free(control, user(control), &|_| false));
            }
            let examples = owned.rule.examples.iter().map(|example| &example.prompt);
            for prompt in examples.filter(asked) {
                named.extend(free(prompt, user(prompt), &own));
            }
        }
        let mut others = Vec::new();
        for &index in self.sources.holdout {
            let pair = &self.sources.pairs[index];
            let item = self.sources.triage.items.get(index);
            let known = |owned: &Owned<'_>| item.is_some_and(|item| concerns(item, owned));
            others.extend(free(pair.prompt_text(), pair.prompt.clone(), &known));
        }
        for control in bank::controls(Half::Exam) {
            others.extend(free(&control.prompt, user(&control.prompt), &|_| false));
        }
        (named, others)
    }
}

/// Whether a rule applies to most everyday prompts: to be within it says nothing about a prompt.
fn is_broad(rule: &Rule, everyday: &[bank::Control]) -> bool {
    let applies = |control: &&bank::Control| rule.applies(&control.prompt) == Some(true);
    rule.when.is_none() || everyday.iter().filter(applies).count() * 2 > everyday.len()
}

/// Whether one of a pair's responses violates a rule or could not be judged by it.
fn concerns(item: &TriagedPair, owned: &Owned<'_>) -> bool {
    let is = |policy: &str, rule: &str| policy == owned.policy.id && rule == owned.rule.id;
    [&item.chosen, &item.rejected].into_iter().any(|judgement| {
        let mut violated = judgement.violations.iter();
        let mut open = judgement.undecided.iter();
        violated.any(|v| is(&v.policy, &v.rule)) || open.any(|u| is(&u.policy, &u.rule))
    })
}

/// Of twenty governed prompts, three follow a system prompt, three a first turn, and two are
/// sampled.
fn governed_situation(n: usize) -> Situation {
    match n % 20 {
        3 | 10 | 17 => Situation::SystemPrompt,
        5 | 12 | 19 => Situation::SecondTurn,
        8 | 15 => Situation::Sampled,
        _ => Situation::Plain,
    }
}

/// Of twenty controls, three follow a system prompt and three a first turn. None is sampled: a
/// sampled answer differs from the base's by chance.
fn control_situation(n: usize) -> Situation {
    match n % 20 {
        3 | 10 | 17 => Situation::SystemPrompt,
        5 | 12 | 19 => Situation::SecondTurn,
        _ => Situation::Plain,
    }
}

/// An order that depends on nothing but the text.
fn order(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}
