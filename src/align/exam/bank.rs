//! Prompts that no policy of ours governs, and facts, in eight languages. We wrote them ourselves.
//!
//! Half of the prompts is for exams; the other half may be trained on. A prompt's half depends only
//! on its text, so it never changes sides.

use serde::Deserialize;
use sha2::{Digest, Sha256};

const CONTROLS: &str = include_str!("bank/controls.jsonl");
const FACTS: &str = include_str!("bank/facts.jsonl");
const NEARBY: &str = include_str!("bank/nearby.txt");

/// Whom a prompt of the bank is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Exams, and never training.
    Exam,
    /// Training, and never exams.
    Training,
}

/// A prompt of the bank.
#[derive(Clone, Debug, Deserialize)]
pub struct Control {
    /// Language, as ISO 639-1.
    pub lang: String,
    /// What a user says.
    pub prompt: String,
}

/// A question with one short right answer and three wrong ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Fact {
    /// Language, as ISO 639-1.
    pub lang: String,
    /// The question.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// Wrong answers of the same kind.
    pub others: Vec<String>,
}

/// The bank's prompts for one use, in an order that does not depend on their subject.
pub fn controls(half: Half) -> Vec<Control> {
    mixed(lines(CONTROLS), half, |control: &Control| &control.prompt)
}

/// Prompts for training only, that have the form of what policies are often about ("How much … should I
/// take?", "How do I break …?") and ask for something harmless: by form, in the file's order.
pub fn nearby() -> Vec<Vec<String>> {
    NEARBY.lines().map(forms).collect()
}

/// A line's prompts: one for each of the texts in braces.
fn forms(line: &str) -> Vec<String> {
    let parts = line.split_once('{');
    let parts = parts.and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    match parts {
        Some((before, (texts, after))) => texts
            .split('|')
            .map(|text| format!("{before}{text}{after}"))
            .collect(),
        None => vec![line.to_owned()],
    }
}

/// The facts of exams, in an order that does not depend on their subject. Facts are not trained on;
/// both halves are asked.
pub fn facts() -> Vec<Fact> {
    let mut all: Vec<Fact> = lines(FACTS);
    all.sort_by_key(|fact| digest(&fact.prompt));
    all
}

fn mixed<T>(all: Vec<T>, half: Half, text: impl Fn(&T) -> &str) -> Vec<T> {
    let mut kept: Vec<T> = all
        .into_iter()
        .filter(|item| half_of(text(item)) == half)
        .collect();
    kept.sort_by_key(|item| digest(text(item)));
    kept
}

/// The half that a prompt belongs to.
pub(crate) fn half_of(prompt: &str) -> Half {
    if digest(prompt)[31] & 1 == 0 {
        Half::Exam
    } else {
        Half::Training
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// The shipped files have a test, so a line that cannot be read is not expected; it is left out.
fn lines<T: for<'a> Deserialize<'a>>(text: &str) -> Vec<T> {
    let rows = text.lines().map(serde_json::from_str);
    rows.filter_map(Result::ok).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_bank_is_whole_and_its_halves_share_nothing() {
        let [exam, training] = [Half::Exam, Half::Training].map(controls);
        assert_eq!(exam.len() + training.len(), CONTROLS.lines().count());
        assert!(exam.len() > 190 && training.len() > 190, "{}", exam.len());
        assert_eq!(facts().len(), FACTS.lines().count());
        assert!(CONTROLS.lines().count() + FACTS.lines().count() >= 600);
        let unique: HashSet<String> = exam
            .iter()
            .chain(&training)
            .map(|control| control.prompt.to_lowercase())
            .collect();
        assert_eq!(unique.len(), exam.len() + training.len());
        let languages: HashSet<&str> = exam.iter().map(|c| c.lang.as_str()).collect();
        assert_eq!(languages.len(), 8);
        let nearby: Vec<String> = nearby().concat();
        assert!(
            nearby.len() > 500
                && nearby
                    .iter()
                    .all(|prompt| !prompt.contains(['{', '|', '}']))
        );
        let known = nearby
            .iter()
            .filter(|prompt| unique.contains(&prompt.to_lowercase()));
        assert_eq!(known.count(), 0);
        for fact in facts() {
            assert_eq!(fact.others.len(), 3, "{fact:?}");
            assert!(!fact.others.contains(&fact.answer), "{fact:?}");
        }
    }
}
