//! Which prompts are gathered from, and what the model is told of a policy.

use std::collections::{BTreeSet, HashSet};

use super::answers::normalised;
use super::{Gathering, PromptSource, concerns, vary, write};
use crate::exam::about::{Owned, Rules, order};
use crate::exam::bank::{self, Half};
use crate::exam::{ExamError, user};
use crate::policy::{Example, ExampleVerdict};
use crate::preferences::{Message, Pair};

/// Of the pairs that are wanted, the share that there are prompts for, in per cent: a prompt gives up
/// to two.
const PROMPTS_PER_CENT: usize = 75;
/// Prompts of a rule at least, however few pairs are wanted.
const LEAST: usize = 16;
/// Complying examples that a model is shown.
const SHOWN_EXAMPLES: usize = 4;

/// A prompt to gather from.
#[derive(Clone, Debug)]
pub(super) struct Prompt {
    pub(super) conversation: Vec<Message>,
    /// The last user message.
    pub(super) text: String,
    /// Indices of the needed rules that it was collected for.
    pub(super) rules: BTreeSet<usize>,
    pub(super) source: PromptSource,
}

impl Gathering<'_> {
    /// The prompts of all needed rules, each once, in an order that depends on their text only.
    pub(super) fn prompts(&self) -> Result<Vec<Prompt>, ExamError> {
        let wanted = self.settings.max_pairs * PROMPTS_PER_CENT / 100;
        let wanted = wanted.div_ceil(self.needed.len().max(1)).max(LEAST);
        let left = self.rules.left(self.settings.min_asked);
        let asked = self.asked();
        let mut all: Vec<Prompt> = Vec::new();
        for &rule in &self.needed {
            let mut found = self.known(rule, &left);
            found.retain(|prompt| !asked.contains(&normalised(&prompt.text)));
            let mut seen = HashSet::new();
            found.retain(|prompt| seen.insert(normalised(&prompt.text)));
            if found.len() < wanted {
                found.extend(self.write(rule, wanted - found.len(), (&asked, &seen))?);
            }
            found.truncate(wanted);
            for prompt in found {
                let key = normalised(&prompt.text);
                match all.iter_mut().find(|known| normalised(&known.text) == key) {
                    Some(known) => known.rules.extend(prompt.rules),
                    None => all.push(prompt),
                }
            }
        }
        all.sort_by_key(|prompt| order(&prompt.text));
        Ok(all)
    }

    /// What exams ask, and what policies name for them, normalised.
    fn asked(&self) -> HashSet<String> {
        let left = self.rules.left(self.settings.min_asked);
        let own = (0..self.rules.0.len()).flat_map(|rule| self.rules.own_prompts(rule));
        let own = own.filter(|prompt| !left.contains(prompt));
        let questions = self
            .sources
            .exam
            .questions
            .iter()
            .map(|q| q.prompt.as_str());
        own.chain(questions).map(normalised).collect()
    }

    /// Prompts that a rule is known to be about: what its policy leaves to training, those of the data
    /// that are trained on, and, if it applies to most prompts, the bank's.
    fn known(&self, rule: usize, left: &HashSet<&str>) -> Vec<Prompt> {
        let owned = &self.rules.0[rule];
        let prompt = |conversation, text: &str, source| Prompt {
            conversation,
            text: text.to_owned(),
            rules: BTreeSet::from([rule]),
            source,
        };
        let own = self.rules.own_prompts(rule).into_iter();
        let own = own.filter(|text| left.contains(text)).map(|text| {
            let mut examples = owned.rule.examples.iter();
            let source = match examples.any(|example| example.prompt == text) {
                true => PromptSource::Example,
                false => PromptSource::Policy,
            };
            prompt(user(text), text, source)
        });
        let mut data: Vec<&Pair> = self
            .sources
            .train
            .iter()
            .filter(|&&at| {
                let item = self.sources.triage.items.get(at);
                let known = || item.is_some_and(|item| concerns(item, owned));
                owned.is_about(self.sources.pairs[at].prompt_text(), known)
            })
            .map(|&at| &self.sources.pairs[at])
            .collect();
        data.sort_by_key(|pair| order(pair.prompt_text()));
        let data = data.into_iter();
        let data = data.map(|p| prompt(p.prompt.clone(), p.prompt_text(), PromptSource::Data));
        let bank = match owned.exam.is_broad {
            true => bank::controls(Half::Training),
            false => Vec::new(),
        };
        let bank = bank
            .iter()
            .filter(|control| owned.rule.applies(&control.prompt) != Some(false));
        let bank = bank.map(|c| prompt(user(&c.prompt), &c.prompt, PromptSource::Bank));
        own.chain(data).chain(bank).collect()
    }

    /// Prompts in the style of the rule's own, of the half that no exam asks: with other words that the
    /// rule is about, and those that the model writes.
    fn write(
        &self,
        rule: usize,
        count: usize,
        (asked, known): (&HashSet<String>, &HashSet<String>),
    ) -> Result<Vec<Prompt>, ExamError> {
        let mut style = self.rules.own_prompts(rule);
        if style.is_empty() {
            let data = self.known(rule, &HashSet::new());
            let texts = data.iter().map(|prompt| prompt.text.clone());
            let texts: Vec<String> = texts.take(write::STYLE).collect();
            return self.written(rule, count, &texts, (asked, known));
        }
        style.truncate(write::STYLE);
        let style: Vec<String> = style.into_iter().map(str::to_owned).collect();
        self.written(rule, count, &style, (asked, known))
    }

    fn written(
        &self,
        rule: usize,
        count: usize,
        style: &[String],
        (asked, known): (&HashSet<String>, &HashSet<String>),
    ) -> Result<Vec<Prompt>, ExamError> {
        let usable = |text: &String| {
            let key = normalised(text);
            bank::half_of(&key) == Half::Training && !asked.contains(&key) && !known.contains(&key)
        };
        let prompt = |source| {
            move |text: String| Prompt {
                conversation: user(&text),
                text,
                rules: BTreeSet::from([rule]),
                source,
            }
        };
        let owned = &self.rules.0[rule];
        let varied = vary::varied(owned, style).into_iter().filter(usable);
        let varied = varied.take(count).map(prompt(PromptSource::Varied));
        let mut prompts: Vec<Prompt> = varied.collect();
        let open = count - prompts.len();
        let enough = |written: &[String]| written.iter().filter(|t| usable(t)).count() >= open;
        let written = match open {
            0 => Vec::new(),
            _ => write::write(self.speaker, owned, style, &enough)?,
        };
        let written = written.into_iter().filter(usable).take(open);
        prompts.extend(written.map(prompt(PromptSource::Written)));
        Ok(prompts)
    }
}

/// The examples of a rule that comply with it and that it is about.
pub(super) fn complying<'a>(owned: &Owned<'a>) -> Vec<&'a Example> {
    let rule = owned.rule;
    let complies = rule.examples.iter().filter(|example| {
        example.verdict == ExampleVerdict::Complies && rule.applies(&example.prompt) != Some(false)
    });
    complies.collect()
}

/// What a model is told that answered in violation of some rules: their descriptions and their policies'.
pub(super) fn policy_text(rules: &Rules<'_>, violated: &BTreeSet<usize>) -> String {
    let owned: Vec<&Owned<'_>> = violated.iter().map(|&rule| &rules.0[rule]).collect();
    let mut lines: Vec<&str> = Vec::new();
    for one in &owned {
        for line in [one.policy.description.trim(), one.rule.description.trim()] {
            if !line.is_empty() && !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    format!("Follow these rules in every answer.\n{}", lines.join("\n"))
}

/// Complying examples of some rules, for each sample others or in another order.
pub(super) fn shown<'a>(
    rules: &Rules<'a>,
    violated: &BTreeSet<usize>,
    sample: usize,
) -> Vec<&'a Example> {
    let mut examples: Vec<&Example> = Vec::new();
    for example in violated.iter().flat_map(|&rule| complying(&rules.0[rule])) {
        if examples.iter().all(|known| known.prompt != example.prompt) {
            examples.push(example);
        }
    }
    let by = sample % examples.len().max(1);
    examples.rotate_left(by);
    examples.truncate(SHOWN_EXAMPLES);
    examples
}
