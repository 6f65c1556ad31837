//! What is wrong with an answer whatever it says. Pure.

use std::collections::{HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A defect of an answer.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Defect {
    /// It has no words.
    Empty,
    /// It repeats itself.
    Loop,
    /// It is in another language than the base's answer.
    Language,
    /// It has less than a quarter of the words of the base's answer.
    Collapse,
}

impl Defect {
    /// All defects.
    pub const ALL: [Defect; 4] = [
        Defect::Empty,
        Defect::Loop,
        Defect::Language,
        Defect::Collapse,
    ];

    /// What is said about an answer that has it.
    pub fn describe(self) -> &'static str {
        match self {
            Defect::Empty => "the answer is empty",
            Defect::Loop => "the answer repeats itself",
            Defect::Language => "the answer is in another language than the base model's",
            Defect::Collapse => "the answer is much shorter than the base model's",
        }
    }
}

/// Words of a phrase whose repetitions are counted.
const PHRASE: usize = 4;
/// The base's answer has at least this many words where a shorter one can be called collapsed.
const LONG_ANSWER: usize = 12;

/// The defects of an answer, given what the base model answers; `None` where the answer may
/// legitimately differ from the base's.
pub fn defects(answer: &str, base: Option<&str>) -> Vec<Defect> {
    let words = answer.split_whitespace().count();
    if !answer.chars().any(char::is_alphanumeric) {
        return vec![Defect::Empty];
    }
    let mut found = Vec::new();
    if is_loop(answer) {
        found.push(Defect::Loop);
    }
    if let Some(base) = base {
        let of_base = language(base);
        if of_base.is_some() && language(answer).is_some_and(|own| Some(own) != of_base) {
            found.push(Defect::Language);
        }
        let base_words = base.split_whitespace().count();
        if base_words >= LONG_ANSWER && words * 4 < base_words {
            found.push(Defect::Collapse);
        }
    }
    found
}

/// Whether one phrase makes up a third of a text and occurs three times, or one character makes up
/// most of it.
fn is_loop(text: &str) -> bool {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    if words.len() >= 3 * PHRASE {
        let mut counts: HashMap<&[String], usize> = HashMap::new();
        for phrase in words.windows(PHRASE) {
            *counts.entry(phrase).or_default() += 1;
        }
        let most = counts.into_values().max().unwrap_or(0);
        if most >= 3 && most * PHRASE * 3 >= words.len() {
            return true;
        }
    }
    if words.len() >= 12 {
        let unique: HashSet<&String> = words.iter().collect();
        if unique.len() * 4 <= words.len() {
            return true;
        }
    }
    let characters: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let mut counts: HashMap<char, usize> = HashMap::new();
    characters
        .iter()
        .for_each(|c| *counts.entry(*c).or_default() += 1);
    let most = counts.into_values().max().unwrap_or(0);
    characters.len() >= 16 && most * 2 > characters.len()
}

/// Frequent short words of languages in Latin script.
const COMMON: [(&str, &[&str]); 7] = [
    (
        "en",
        &[
            "the", "and", "is", "are", "to", "of", "you", "it", "that", "with", "your", "can",
            "for", "this",
        ],
    ),
    (
        "de",
        &[
            "der", "die", "das", "und", "ist", "nicht", "ein", "eine", "sie", "ich", "mit", "zu",
            "den", "es",
        ],
    ),
    (
        "fr",
        &[
            "le", "la", "les", "et", "est", "des", "une", "un", "vous", "pour", "dans", "que",
            "du", "il",
        ],
    ),
    (
        "es",
        &[
            "el", "los", "las", "y", "es", "una", "para", "con", "por", "del", "que", "se", "su",
            "la",
        ],
    ),
    (
        "it",
        &[
            "il", "gli", "e", "è", "una", "per", "con", "che", "di", "non", "sono", "del", "della",
            "la",
        ],
    ),
    (
        "pt",
        &[
            "o", "os", "as", "e", "é", "uma", "para", "com", "não", "que", "do", "da", "em", "você",
        ],
    ),
    (
        "nl",
        &[
            "de", "het", "een", "en", "is", "niet", "van", "je", "voor", "met", "dat", "ik", "op",
            "zijn",
        ],
    ),
];

/// The language of a text, as far as its script and its commonest words tell; `None` if they do not.
pub(super) fn language(text: &str) -> Option<&'static str> {
    let letters = text.chars().filter(|c| c.is_alphabetic());
    let mut scripts: HashMap<&'static str, usize> = HashMap::new();
    for letter in letters {
        *scripts.entry(script(letter)).or_default() += 1;
    }
    let total: usize = scripts.values().sum();
    if total < 8 {
        return None;
    }
    let kana = scripts.get("ja").copied().unwrap_or(0);
    let (&leading, &count) = scripts
        .iter()
        .max_by_key(|(name, count)| (**count, **name))?;
    if leading != "latin" {
        let is_japanese = kana * 10 > total;
        return (count * 2 > total).then_some(if is_japanese { "ja" } else { leading });
    }
    let mut hits: Vec<(usize, &str)> = Vec::new();
    let words: Vec<String> = text
        .split(|c: char| !c.is_alphabetic())
        .map(str::to_lowercase)
        .collect();
    for (name, common) in COMMON {
        let count = words
            .iter()
            .filter(|w| common.contains(&w.as_str()))
            .count();
        hits.push((count, name));
    }
    hits.sort_by(|a, b| b.cmp(a));
    // A clear lead, over words that several languages share.
    let (best, name) = *hits.first()?;
    let second = hits.get(1).map_or(0, |hit| hit.0);
    (best >= 3 && best >= 2 * second).then_some(name)
}

fn script(letter: char) -> &'static str {
    match letter as u32 {
        0x0000..=0x024f | 0x1e00..=0x1eff => "latin",
        0x0370..=0x03ff => "greek",
        0x0400..=0x052f => "cyrillic",
        0x0590..=0x05ff => "hebrew",
        0x0600..=0x06ff => "arabic",
        0x0900..=0x097f => "devanagari",
        0x3040..=0x30ff => "ja",
        0x4e00..=0x9fff | 0x3400..=0x4dbf => "zh",
        0xac00..=0xd7af => "ko",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGLISH: &str = "The best way to clean it is with warm water and a little soap, so that \
        you can see the surface again.";

    #[test]
    fn defects_are_found() {
        let long = "I can do that. ".repeat(6);
        let german = "Das ist nicht der Weg, und es ist mit der Zeit auch nicht die Lösung.";
        for (answer, base, expected) in [
            (" \n", Some(ENGLISH), vec![Defect::Empty]),
            ("...", None, vec![Defect::Empty]),
            (long.as_str(), None, vec![Defect::Loop]),
            ("aaaaaaaaaaaaaaaaaaaaaaaa", None, vec![Defect::Loop]),
            (german, Some(ENGLISH), vec![Defect::Language]),
            (
                "这是一个很长的回答，没有英文。",
                Some(ENGLISH),
                vec![Defect::Language, Defect::Collapse],
            ),
            ("Use soap.", Some(ENGLISH), vec![Defect::Collapse]),
            ("Use soap.", None, vec![]),
            (ENGLISH, Some(german), vec![Defect::Language]),
            (ENGLISH, Some("42"), vec![]),
        ] {
            assert_eq!(defects(answer, base), expected, "{answer:?}");
        }
    }

    #[test]
    fn languages_are_told_apart() {
        for (text, expected) in [
            (ENGLISH, Some("en")),
            (
                "Il faut laver les draps dans une machine, et la nuit il est bon de les étendre.",
                Some("fr"),
            ),
            ("これは日本語の文章です。水は冷たい。", Some("ja")),
            ("水的化学式是什么？它很简单。", Some("zh")),
            ("Paris", None),
            ("def f(x): return x + 1", None),
        ] {
            assert_eq!(language(text), expected, "{text}");
        }
    }

    #[test]
    fn a_list_and_a_poem_are_no_loops() {
        for text in [
            "1. Wash the rice. 2. Boil the water. 3. Add the rice and stir. 4. Wait for a while.",
            "Row, row, row your boat, gently down the stream; merrily, merrily, life is but a dream.",
            "Yes.",
        ] {
            assert!(!is_loop(text), "{text}");
        }
    }
}
