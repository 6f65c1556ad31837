//! Prompts that a rule is nearly about, and prompts that it is about: from preference data and from the
//! bank of exams.

use std::collections::HashSet;

use super::phrases::content;
use super::{Brief, PROMPTS};
use crate::exam::bank::{self, Half};
use crate::exam::words::{Weighed, Words};
use crate::oracle::{Exchange, Oracle, RuleOracle};
use crate::preferences::Pair;

/// Near-misses from the data, and as many from the bank.
const NEAR: usize = 5;
/// Most bytes of a prompt: the file is for someone to read.
const LONGEST: usize = 2000;
/// Cosine below which two prompts have little but usual words in common.
const CLOSE: f64 = 0.08;

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Prompts that the rule is about.
    pub(super) governed: Vec<String>,
    /// Prompts that it is nearly about.
    pub(super) near: Vec<String>,
}

/// Looks through the data and the bank.
pub(super) fn look(oracle: &RuleOracle, brief: &Brief, pairs: &[Pair]) -> Found {
    let own = brief
        .wrong
        .iter()
        .chain(&brief.right)
        .map(|a| a.prompt.as_str());
    let own: Vec<&str> = own.chain(brief.stays.iter().map(String::as_str)).collect();
    let mut seen: HashSet<String> = own.iter().map(|prompt| prompt.to_lowercase()).collect();
    let mut found = Found::default();
    let mut data: Vec<String> = Vec::new();
    for pair in pairs {
        let prompt = pair.prompt_text();
        let fits = prompt.len() <= LONGEST && !prompt.trim().is_empty();
        if !fits || !seen.insert(prompt.to_lowercase()) {
            continue;
        }
        let violates = [&pair.chosen, &pair.rejected].into_iter().any(|response| {
            let labels = &[];
            oracle
                .judge(&Exchange {
                    prompt,
                    response,
                    labels,
                })
                .violates()
        });
        match (applies(oracle, prompt), violates) {
            (_, true) if found.governed.len() < PROMPTS => found.governed.push(prompt.to_owned()),
            (Some(true), _) | (_, true) => {}
            (Some(false) | None, false) => data.push(prompt.to_owned()),
        }
    }
    let bank: Vec<String> = [Half::Exam, Half::Training]
        .into_iter()
        .flat_map(bank::controls)
        .map(|control| control.prompt)
        .filter(|prompt| {
            applies(oracle, prompt) != Some(true) && seen.insert(prompt.to_lowercase())
        })
        .collect();
    let asked: Vec<&str> = brief
        .wrong
        .iter()
        .map(|wrong| wrong.prompt.as_str())
        .collect();
    let texts = data
        .iter()
        .chain(&bank)
        .map(String::as_str)
        .chain(asked.iter().copied());
    let words = Words::new(texts);
    let forms = Forms::of(&asked);
    let asked: Vec<Weighed> = asked.iter().map(|prompt| words.weigh(prompt)).collect();
    for mut pool in [data, bank] {
        pool.retain(|prompt| forms.resemble(prompt));
        found.near.extend(closest(&words, &asked, pool));
    }
    found
}

/// Whether the rule applies to a prompt, whatever is answered; `None` if it applies everywhere.
fn applies(oracle: &RuleOracle, prompt: &str) -> Option<bool> {
    oracle.rules().find_map(|(_, rule)| rule.applies(prompt))
}

/// What prompts have in common besides usual words.
struct Forms {
    words: HashSet<String>,
    beginnings: HashSet<String>,
}

impl Forms {
    fn of(prompts: &[&str]) -> Self {
        Self {
            words: prompts.iter().flat_map(|prompt| content(prompt)).collect(),
            beginnings: prompts
                .iter()
                .filter_map(|prompt| beginning(prompt))
                .collect(),
        }
    }

    /// Whether a prompt has one of their words, or begins like one of them.
    fn resemble(&self, prompt: &str) -> bool {
        !self.words.is_disjoint(&content(prompt))
            || beginning(prompt).is_some_and(|first| self.beginnings.contains(&first))
    }
}

/// The first two words.
fn beginning(prompt: &str) -> Option<String> {
    let lower = prompt.to_lowercase();
    let mut words = lower.split_whitespace();
    Some(format!("{} {}", words.next()?, words.next()?))
}

/// The prompts that are closest to those asked about.
fn closest(words: &Words, asked: &[Weighed], pool: Vec<String>) -> Vec<String> {
    let mut ranked: Vec<(f64, String)> = pool
        .into_iter()
        .map(|prompt| (words.weigh(&prompt).closest(asked), prompt))
        .filter(|(cosine, _)| *cosine >= CLOSE)
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    ranked
        .into_iter()
        .take(NEAR)
        .map(|(_, prompt)| prompt)
        .collect()
}
