//! Which prompts an exam asks: from the policies, the held-out data, live prompts and the bank.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use super::about::{Owned, Rules, concerns, order};
use super::bank::{self, Fact, Half};
use super::question::{ExamRule, Group, Question, Situation, user};
use super::words::Words;
use crate::policy::PolicySet;
use crate::preferences::{Message, Pair};
use crate::triage::Triage;

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
    /// Of the prompts that a policy names for a rule, half is left to training, and this many are asked
    /// at least; `None` leaves none.
    pub spare: Option<usize>,
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
    /// Other prompts, asked where a rule's `when` holds: those that a model wrote in the style of a
    /// rule's examples, and recent ones of clients, where the operator allows keeping them.
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
        let rules: Vec<ExamRule> = assembly.rules.0.iter().map(|r| r.exam.clone()).collect();
        Exam {
            hash: hash(sources.policies, &rules, &questions, &facts),
            rules,
            questions,
            facts,
        }
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

/// A prompt and the rules that it is known to be about.
struct Prompt {
    conversation: Vec<Message>,
    text: String,
    rules: Vec<usize>,
}

pub(super) struct Assembly<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) rules: Rules<'a>,
    /// Prompts of the pairs that are trained on.
    trained: HashSet<&'a str>,
    /// Prompts that the policies name and that are left to training.
    left: HashSet<&'a str>,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(sources: Sources<'a>, settings: Settings) -> Self {
        let rules = Rules::new(sources.policies, settings.min_compliance);
        let holdout: HashSet<usize> = sources.holdout.iter().copied().collect();
        let trained = sources.pairs.iter().enumerate();
        let trained = trained.filter(|(index, _)| !holdout.contains(index));
        Self {
            sources,
            left: settings
                .spare
                .map(|least| rules.left(least))
                .unwrap_or_default(),
            rules,
            trained: trained.map(|(_, pair)| pair.prompt_text()).collect(),
        }
    }

    pub(super) fn about(&self, prompt: &str, known: &dyn Fn(&Owned<'_>) -> bool) -> Vec<usize> {
        self.rules.about(prompt, known)
    }

    /// Every prompt that rules govern, each once.
    fn governed(&self) -> Vec<Prompt> {
        let mut found: HashMap<String, Prompt> = HashMap::new();
        let mut add = |conversation: Vec<Message>, text: &str, rules: Vec<usize>| {
            if rules.is_empty() || self.trained.contains(text) || self.left.contains(text) {
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
        for owned in &self.rules.0 {
            let own = |other: &Owned<'_>| std::ptr::eq(other.rule, owned.rule);
            for example in &owned.rule.examples {
                add(
                    user(&example.prompt),
                    &example.prompt,
                    self.about(&example.prompt, &own),
                );
            }
        }
        for owned in &self.rules.0 {
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
        let fair = room.div_ceil(self.rules.0.len().max(1));
        let mut counts = vec![0; self.rules.0.len()];
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
        for owned in &self.rules.0 {
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
