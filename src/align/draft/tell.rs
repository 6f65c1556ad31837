//! What tells wrong answers from right ones: something said, something missing, or the length. Each
//! kind of test is learned from all examples but one and asked about that one, in turn; the kind that
//! decides best about what it did not see is taken.

use std::collections::HashSet;

use regex::Regex;

use super::patterns;
use super::phrases::{Gram, content, names, places};
use crate::policy::phrase_pattern;

/// Beginnings of a rule's words that speak of length.
const LENGTHS: [&str; 13] = [
    "short", "brief", "concise", "long", "length", "words", "sentence", "terse", "verbose",
    "detail", "thorough", "kurz", "corto",
];
/// What it is worth that the rule itself has the words of a test.
const NAMED: f64 = 0.1;
/// What a test is worth at most that asks for words which the rule does not ask for.
const UNASKED: f64 = 0.25;
/// Words with which a rule forbids.
const DENIALS: [&str; 10] = [
    "no", "not", "never", "without", "cannot", "neither", "nor", "don't", "doesn't", "avoid",
];
/// What a test is worth that finds a name in every wrong answer: names do not recur by chance.
const NAMES: f64 = 0.9;

/// A test of a response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tell {
    /// One of these is said.
    Says {
        /// Whole words.
        phrases: Vec<String>,
        /// Expressions.
        patterns: Vec<String>,
    },
    /// None of these is said.
    Lacks(Vec<String>),
    /// At least so many words.
    AtLeast(usize),
    /// At most so many words.
    AtMost(usize),
}

impl Tell {
    pub(super) fn how(&self) -> String {
        let list = |items: &[String]| {
            let quoted: Vec<String> = items.iter().map(|item| format!("`{item}`")).collect();
            quoted.join(", ")
        };
        match self {
            Tell::Says { phrases, patterns } => {
                let mut said = patterns.clone();
                said.extend(phrases.iter().cloned());
                format!("an answer is wrong that has {}", list(&said))
            }
            Tell::Lacks(phrases) => {
                format!("an answer is wrong that has none of {}", list(phrases))
            }
            Tell::AtLeast(words) => format!("an answer is wrong from {words} words on"),
            Tell::AtMost(words) => format!("an answer is wrong with at most {words} words"),
        }
    }

    /// Whether it calls a response wrong.
    fn holds(&self, response: &str) -> bool {
        let has = |phrase: &String| has(phrase, response);
        let words = response.split_whitespace().count();
        match self {
            Tell::Says { phrases, patterns } => {
                let matches =
                    |source: &String| Regex::new(source).is_ok_and(|r| r.is_match(response));
                phrases.iter().any(has) || patterns.iter().any(matches)
            }
            Tell::Lacks(phrases) => !phrases.iter().any(has),
            Tell::AtLeast(least) => words >= *least,
            Tell::AtMost(most) => words <= *most,
        }
    }
}

/// Learns a test from wrong and right answers under a rule.
type Learn = fn(&[&str], &[&str], &Rule<'_>) -> Option<Tell>;

/// A test.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) tell: Tell,
    /// What it is worth, from 0 to 1 and a little above.
    pub(super) score: f64,
    /// Share of right decisions about examples that it was not learned from.
    pub(super) unseen: f64,
}

/// The best test that separates the answers; `None` if none does. `everywhere`: the rule applies to every
/// question.
pub(super) fn tell(
    wrong: &[String],
    right: &[String],
    (rule, everywhere): (&str, bool),
) -> Option<Told> {
    let wrong: Vec<&str> = wrong.iter().map(String::as_str).collect();
    let right: Vec<&str> = right.iter().map(String::as_str).collect();
    let about_length = is_about_length(rule);
    let rule = Rule::new(rule, everywhere);
    let kinds: [Learn; 3] = [says, lacks, length];
    let mut best: Option<Told> = None;
    for (kind, learn) in kinds.into_iter().enumerate() {
        let Some(tell) = learn(&wrong, &right, &rule) else {
            continue;
        };
        let separates =
            wrong.iter().all(|text| tell.holds(text)) && !right.iter().any(|text| tell.holds(text));
        if !separates {
            continue;
        }
        let unseen = unseen(learn, &wrong, &right, &rule);
        let score = match kind {
            2 if about_length => unseen + 0.5,
            // A length by chance is the last resort.
            2 => unseen.min(0.5),
            1 if !rule.asks_for(&tell) => unseen.min(UNASKED),
            _ => worth(&tell, unseen, &wrong, &rule),
        };
        if best.as_ref().is_none_or(|best| score > best.score) {
            best = Some(Told {
                tell,
                score,
                unseen,
            });
        }
    }
    best
}

pub(super) fn is_about_length(rule: &str) -> bool {
    let lower = rule.to_lowercase();
    let mut words = lower.split(|c: char| !c.is_alphanumeric());
    words.any(|word| LENGTHS.iter().any(|length| word.starts_with(length)))
}

/// What a rule says.
struct Rule<'a> {
    text: &'a str,
    /// The beginnings of its words, which forms of a word share.
    stems: HashSet<String>,
    /// Those of its parts that forbid nothing.
    wanted: HashSet<String>,
    /// Whether it forbids something, or applies to every question: then what right answers happen to
    /// say is hardly what it asks for.
    needs_asking: bool,
}

impl<'a> Rule<'a> {
    fn new(text: &'a str, everywhere: bool) -> Self {
        let lower = text.to_lowercase();
        let parts = lower
            .split([',', '.', ';', ':'])
            .flat_map(|part| part.split(" and "))
            .flat_map(|part| part.split(" but "));
        let (forbidding, wanted): (Vec<&str>, Vec<&str>) = parts.partition(|part| denies(part));
        Self {
            text,
            stems: stems(text),
            wanted: wanted.into_iter().flat_map(stems).collect(),
            needs_asking: everywhere || !forbidding.is_empty(),
        }
    }

    /// Whether a phrase has a word of the rule, or a form of one.
    fn has(&self, phrase: &str) -> bool {
        !self.stems.is_disjoint(&stems(phrase))
    }

    /// Whether what a test wants said may be what the rule asks for.
    fn asks_for(&self, tell: &Tell) -> bool {
        match tell {
            Tell::Lacks(phrases) if self.needs_asking => phrases.iter().any(|phrase| {
                // "Say that this is not advice" asks for its denial, word for word.
                (denies(phrase) && has(phrase, self.text))
                    || !self.wanted.is_disjoint(&stems(phrase))
            }),
            _ => true,
        }
    }
}

fn denies(text: &str) -> bool {
    let mut words = text.split_whitespace();
    words.any(|word| DENIALS.contains(&word.to_lowercase().as_str()))
}

fn stems(text: &str) -> HashSet<String> {
    let stem = |word: String| word.chars().take(5).collect();
    content(text).into_iter().map(stem).collect()
}

/// The share of right decisions about examples left out of learning: the mean over wrong and right ones.
fn unseen(learn: Learn, wrong: &[&str], right: &[&str], rule: &Rule<'_>) -> f64 {
    let without = |all: &[&'_ str], index: usize| -> Vec<String> {
        let others = all.iter().enumerate().filter(|(at, _)| *at != index);
        others.map(|(_, text)| (*text).to_owned()).collect()
    };
    let share = |all: &[&str], learned: &dyn Fn(usize) -> Option<Tell>, wanted: bool| {
        let good =
            (0..all.len()).filter(|at| learned(*at).is_some_and(|t| t.holds(all[*at]) == wanted));
        good.count() as f64 / all.len().max(1) as f64
    };
    let found = share(
        wrong,
        &|at| {
            let kept = without(wrong, at);
            let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
            learn(&kept, right, rule)
        },
        true,
    );
    let spared = share(
        right,
        &|at| {
            let kept = without(right, at);
            let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
            learn(wrong, &kept, rule)
        },
        false,
    );
    (found + spared) / 2.0
}

/// What a test of words is worth: what it says about unseen examples, and whether its words are names or
/// the rule's own.
fn worth(tell: &Tell, unseen: f64, wrong: &[&str], rule: &Rule<'_>) -> f64 {
    let (phrases, patterns): (&[String], usize) = match tell {
        Tell::Says { phrases, patterns } => (phrases, patterns.len()),
        Tell::Lacks(phrases) => (phrases, 0),
        Tell::AtLeast(_) | Tell::AtMost(_) => return unseen,
    };
    let named = phrases.iter().filter(|phrase| rule.has(phrase)).count();
    let mut score = unseen;
    if matches!(tell, Tell::Says { .. }) && patterns == 0 {
        let all = places(wrong);
        let is_name = |p: &String| {
            all.get(&p.to_lowercase())
                .is_none_or(|(gram, _)| gram.is_name)
        };
        if phrases.iter().all(is_name) {
            score = score.max(NAMES);
        }
    }
    score + NAMED * named as f64 / phrases.len().max(1) as f64
}

fn has(phrase: &str, text: &str) -> bool {
    has_any(phrase, &[text])
}

/// Whether one of the texts has a phrase.
fn has_any(phrase: &str, texts: &[&str]) -> bool {
    let regex = phrase_pattern(phrase).and_then(|pattern| Regex::new(&pattern).ok());
    regex.is_some_and(|regex| texts.iter().any(|text| regex.is_match(text)))
}

/// What wrong answers say and right ones do not: names in the rule, patterns, and phrases, the widest
/// first.
fn says(wrong: &[&str], right: &[&str], rule: &Rule<'_>) -> Option<Tell> {
    let free = |phrase: &String| !has_any(phrase, right);
    let named: Vec<String> = names(rule.text).into_iter().filter(free).collect();
    let occurs = named.iter().any(|name| has_any(name, wrong));
    let mut phrases = if occurs { named } else { Vec::new() };
    let mut patterns = Vec::new();
    let mut open: Vec<usize> = (0..wrong.len())
        .filter(|at| !phrases.iter().any(|phrase| has(phrase, wrong[*at])))
        .collect();
    let mut forms = patterns::candidates(wrong, rule.text);
    forms.retain(|form| !right.iter().any(|text| form.regex.is_match(text)));
    let grams = candidates(wrong, &free);
    while !open.is_empty() {
        let covers = |at: &[usize]| open.iter().filter(|o| at.contains(o)).count();
        let form = forms.iter().map(|form| {
            let at: Vec<usize> = (0..wrong.len())
                .filter(|at| form.regex.is_match(wrong[*at]))
                .collect();
            ((covers(&at), form.is_named), form, at)
        });
        let form = form.max_by_key(|(key, _, _)| *key);
        let gram = grams
            .iter()
            .map(|(gram, at)| (Worth::said(gram, covers(at), rule), gram, at));
        let gram = gram.max_by(|a, b| a.0.cmp(&b.0));
        match (form, gram) {
            (Some(((count, named), form, at)), gram)
                if count > 0
                    && gram
                        .as_ref()
                        .is_none_or(|(w, _, _)| (count, named) >= (w.covers, w.is_named)) =>
            {
                patterns.push(form.source.clone());
                open.retain(|o| !at.contains(o));
            }
            (_, Some((worth, gram, at))) if worth.covers > 0 => {
                phrases.push(gram.text.clone());
                open.retain(|o| !at.contains(o));
            }
            _ => return None,
        }
    }
    Some(Tell::Says { phrases, patterns })
}

/// What right answers say and wrong ones do not.
fn lacks(wrong: &[&str], right: &[&str], rule: &Rule<'_>) -> Option<Tell> {
    let free = |phrase: &String| !has_any(phrase, wrong);
    let mut grams = candidates(right, &free);
    // What is wanted is a thing, or a denial, not the words around it.
    grams.retain(|(gram, _)| gram.is_framed());
    let mut phrases = Vec::new();
    let mut open: Vec<usize> = (0..right.len()).collect();
    while !open.is_empty() {
        let covers = |at: &[usize]| open.iter().filter(|o| at.contains(o)).count();
        let best = grams
            .iter()
            .map(|(gram, at)| (Worth::wanted(gram, covers(at), rule), gram, at));
        let (worth, gram, at) = best.max_by(|a, b| a.0.cmp(&b.0))?;
        if worth.covers == 0 {
            return None;
        }
        phrases.push(gram.text.clone());
        open.retain(|o| !at.contains(o));
    }
    Some(Tell::Lacks(phrases))
}

/// Phrases of texts that are free to use, in an order of their own, with the texts that have them.
fn candidates(texts: &[&str], free: &dyn Fn(&String) -> bool) -> Vec<(Gram, Vec<usize>)> {
    let mut all: Vec<(Gram, Vec<usize>)> = places(texts).into_values().collect();
    all.sort_by(|a, b| b.0.text.cmp(&a.0.text));
    all.retain(|(gram, _)| free(&gram.text));
    all
}

/// How good a phrase is; the largest is taken.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    covers: usize,
    /// Words of a phrase that the rule itself has, word for word.
    literal: usize,
    is_named: bool,
    is_name: bool,
    /// More words are more certain, fewer are more general.
    words: isize,
    letters: usize,
}

impl Worth {
    /// Of something said: a phrase that several answers have is better long, one of a single answer short.
    fn said(gram: &Gram, covers: usize, rule: &Rule<'_>) -> Self {
        let words = gram.words as isize;
        Self {
            covers,
            literal: 0,
            is_named: rule.has(&gram.text),
            is_name: gram.is_name,
            words: if covers > 1 { words } else { -words },
            letters: gram.text.len(),
        }
    }

    /// Of something wanted: what the rule says word for word; else the fewer words, the more ways to
    /// comply.
    fn wanted(gram: &Gram, covers: usize, rule: &Rule<'_>) -> Self {
        let is_literal = has(&gram.text, rule.text);
        Self {
            covers,
            literal: if is_literal { gram.words } else { 0 },
            is_named: rule.has(&gram.text),
            is_name: false,
            words: -(gram.words as isize),
            letters: gram.text.len(),
        }
    }
}

/// A number of words between the longest of one kind and the shortest of the other.
fn length(wrong: &[&str], right: &[&str], _: &Rule<'_>) -> Option<Tell> {
    let words = |texts: &[&str]| -> Option<(usize, usize)> {
        let counts = texts.iter().map(|text| text.split_whitespace().count());
        Some((counts.clone().min()?, counts.max()?))
    };
    let ((wrong_min, wrong_max), (right_min, right_max)) = (words(wrong)?, words(right)?);
    if right_max < wrong_min {
        return Some(Tell::AtLeast(
            right_max + (wrong_min - right_max).div_ceil(2),
        ));
    }
    (wrong_max < right_min).then(|| Tell::AtMost(wrong_max + (right_min - wrong_max) / 2))
}
