//! Which controls are trained on: prompts that no rule is about and that no exam asks.

use std::collections::{BTreeMap, HashSet};

use super::about::{Owned, concerns, order};
use super::assemble::{Assembly, Exam, Settings, Sources};
use super::bank::{self, Half};
use super::question::{Group, Question, Situation, user};
use super::words::Words;
use crate::pipeline::situated;

/// Of the controls, one in this many is the operator's own.
const OWN: usize = 4;
/// Of the controls, one in this many has the form of a governed prompt.
const NEARBY: usize = 3;
/// Of the controls, one in this many has a word of governed prompts.
const TOPICAL: usize = 8;
/// Words of governed prompts that are asked about.
const TOPICS: usize = 15;
/// What is asked about a word, whatever it means.
const ABOUT_A_WORD: [&str; 6] = [
    "Use the word {} in a sentence.",
    "What rhymes with {}?",
    "Write two lines of a song about {}.",
    "What is the French word for {}?",
    "Is {} a noun, a verb or a name?",
    "Tell a short story in which {} plays a part.",
];

impl Exam {
    /// Prompts that no rule is about and that no exam asks, for training to keep the base's answers to:
    /// from what the operator named and from the pairs that are trained on, the closest to the
    /// conflicts' prompts; prompts of the same form as the conflicts'; prompts with the same words; and,
    /// for the larger part, everyday prompts of the bank.
    pub fn training_controls(sources: Sources<'_>, count: usize) -> Vec<Question> {
        let assembly = Assembly::new(sources, Settings::default());
        let conflicts = sources.triage.items.iter();
        let conflicts = conflicts.filter(|item| item.category.is_conflict());
        let governed: Vec<&str> = conflicts
            .map(|item| sources.pairs[item.index].prompt_text())
            .collect();
        let mut seen = HashSet::new();
        let mut free = |prompt: &String| {
            assembly.about(prompt, &|_| false).is_empty() && seen.insert(prompt.clone())
        };
        let mut chosen: Vec<String> = assembly.own_controls(&governed);
        chosen.retain(&mut free);
        chosen.truncate(count / OWN);
        let bank = bank::controls(Half::Training).into_iter().map(|c| c.prompt);
        let everyday: Vec<String> = bank.filter(&mut free).collect();
        let mut near = nearby(&governed, &everyday);
        near.retain(&mut free);
        near.truncate(count / NEARBY);
        let mut topical = topical(&governed, &everyday);
        topical.retain(&mut free);
        topical.truncate(count / TOPICAL);
        chosen.extend(near);
        chosen.extend(topical);
        chosen.extend(everyday);
        chosen.truncate(count);
        let question = |prompt: String| {
            let conversation = situated(&prompt, &user(&prompt), None);
            Question::new(Group::Everyday, Situation::Plain, conversation, Vec::new())
        };
        chosen.into_iter().map(question).collect()
    }
}

impl Assembly<'_> {
    /// What operators named and no exam asks, and the prompts of pairs that no rule concerns; the closest
    /// to the governed prompts first.
    fn own_controls(&self, governed: &[&str]) -> Vec<String> {
        let named = self.rules.0.iter().flat_map(|owned| {
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
            .filter(|item| !self.rules.0.iter().any(|owned| concerns(item, owned)))
            .map(|item| &self.sources.pairs[item.index])
            .filter(|pair| pair.prompt.len() == 1)
            .map(|pair| pair.prompt_text().to_owned());
        let mut own: Vec<String> = named.cloned().chain(retained).collect();
        let words = Words::new(
            governed
                .iter()
                .copied()
                .chain(own.iter().map(String::as_str)),
        );
        let targets: Vec<_> = governed.iter().map(|text| words.weigh(text)).collect();
        let closeness = |prompt: &String| words.weigh(prompt).closest(&targets);
        own.sort_by_cached_key(|prompt| (Descending(closeness(prompt)), prompt.clone()));
        own
    }
}

/// Prompts of the bank's forms that governed prompts have most often: the closest one of each form, then
/// the second one, and so on.
fn nearby(governed: &[&str], everyday: &[String]) -> Vec<String> {
    // Weights of everyday speech: what is frequent only in governed prompts counts most.
    let words = Words::new(everyday.iter().map(String::as_str));
    let targets: Vec<_> = governed.iter().map(|text| words.weigh(text)).collect();
    let closeness = |prompt: &String| {
        let weighed = words.weigh(prompt);
        targets.iter().map(|t| weighed.cosine(t)).sum::<f64>()
    };
    let mut ranked: Vec<(usize, Descending, String)> = Vec::new();
    for form in bank::nearby() {
        let mut form: Vec<_> = form
            .into_iter()
            .map(|p| (Descending(closeness(&p)), p))
            .collect();
        form.sort();
        let numbered = form.into_iter().enumerate();
        ranked.extend(numbered.map(|(n, (closeness, prompt))| (n, closeness, prompt)));
    }
    // Of a form, no more than two before all others.
    ranked.sort_by(|a, b| (a.0 / 2, a.1, &a.2).cmp(&(b.0 / 2, b.1, &b.2)));
    ranked.into_iter().map(|(_, _, prompt)| prompt).collect()
}

/// Questions about the words that governed prompts have most often and everyday ones do not have.
fn topical(governed: &[&str], everyday: &[String]) -> Vec<String> {
    let words = |text: &str| -> HashSet<String> {
        let split = text.split(|c: char| !c.is_alphanumeric());
        let long = split.filter(|word| word.chars().count() > 3);
        long.map(str::to_lowercase).collect()
    };
    let usual: HashSet<String> = everyday.iter().flat_map(|prompt| words(prompt)).collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for word in governed.iter().flat_map(|prompt| words(prompt)) {
        if !usual.contains(&word) {
            *counts.entry(word).or_default() += 1;
        }
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| order(&a.0).cmp(&order(&b.0))));
    counts.truncate(TOPICS);
    let ask = |frame: usize, word: usize| {
        let frame = ABOUT_A_WORD[(frame + word) % ABOUT_A_WORD.len()];
        frame.replace("{}", &counts[word].0)
    };
    let frames = 0..ABOUT_A_WORD.len();
    frames
        .flat_map(|frame| (0..counts.len()).map(move |word| (frame, word)))
        .map(|(frame, word)| ask(frame, word))
        .collect()
}

/// A number, the largest first.
#[derive(Clone, Copy, PartialEq)]
struct Descending(f64);

impl Eq for Descending {}

impl PartialOrd for Descending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Descending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0)
    }
}
