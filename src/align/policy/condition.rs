//! The compiled boolean tree of a rule, and its evaluation. Pure.

use std::sync::Arc;

use regex::Regex;
use serde::{Serialize, Serializer};

use super::matchers::{CascadeStage, JudgeSpec, ProbeSpec, Scores, TextOnly, cascade};
use super::model::LengthUnit;

/// Incremented whenever a matcher's meaning changes, so that verdicts cached before expire.
pub const MATCHER_VERSION: u32 = 1;

/// What a rule judges: one response to one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Exchange<'a> {
    /// The last user message.
    pub prompt: &'a str,
    /// The assistant's answer.
    pub response: &'a str,
    /// Category labels stored with the answer; empty for live traffic.
    pub labels: &'a [String],
}

/// A boolean tree over a prompt, a response and its labels.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// All hold.
    All(Vec<Condition>),
    /// At least one holds.
    Any(Vec<Condition>),
    /// It does not hold.
    Not(Box<Condition>),
    /// A test of the prompt.
    Prompt(TextTest),
    /// A test of the response.
    Response(TextTest),
    /// The response carries one of these labels (exact match).
    Label(Vec<String>),
    /// A fitted classifier's probability reaches its threshold.
    Probe(Arc<ProbeSpec>),
    /// A judge answers yes.
    Judge(Arc<JudgeSpec>),
    /// The first stage that is certain decides.
    Cascade(Vec<CascadeStage>),
}

/// A boolean tree over one text.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TextTest {
    /// All hold.
    All(Vec<TextTest>),
    /// At least one holds.
    Any(Vec<TextTest>),
    /// It does not hold.
    Not(Box<TextTest>),
    /// At least one pattern is found.
    AnyRegex(Vec<Pattern>),
    /// Every pattern is found.
    AllRegex(Vec<Pattern>),
    /// At least one phrase is found as whole words.
    AnyPhrase(Vec<Pattern>),
    /// The length lies in the range, ends included.
    Length {
        /// Least length.
        min: Option<usize>,
        /// Largest length.
        max: Option<usize>,
        /// What is counted.
        unit: LengthUnit,
    },
}

/// A compiled regular expression with the text it was written as.
#[derive(Clone, Debug)]
pub struct Pattern {
    source: String,
    regex: Regex,
}

impl Pattern {
    pub(super) fn new(source: &str, regex: Regex) -> Pattern {
        Pattern {
            source: source.to_owned(),
            regex,
        }
    }

    /// Every place in a text where it is found, in bytes.
    pub(super) fn places(&self, text: &str) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.regex.find_iter(text).map(|found| found.range())
    }

    /// The pattern or phrase as written in the policy file.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

/// Serialised as its source, which is what hashes cover.
impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

impl Condition {
    /// Whether the condition holds for a response, using only its text and labels. `false` if that
    /// depends on a probe or a judge.
    pub(crate) fn holds(&self, exchange: &Exchange<'_>) -> bool {
        self.decide(exchange, &TextOnly) == Some(true)
    }

    /// Whether the condition holds for a response; `None` if that depends on a probe or a judge
    /// for which `scores` has no answer (Kleene's three-valued logic).
    pub(crate) fn decide(&self, exchange: &Exchange<'_>, scores: &dyn Scores) -> Option<bool> {
        match self {
            Condition::All(parts) => decide_parts(parts, false, exchange, scores),
            Condition::Any(parts) => decide_parts(parts, true, exchange, scores),
            Condition::Not(part) => part.decide(exchange, scores).map(|holds| !holds),
            Condition::Prompt(test) => Some(test.holds(exchange.prompt)),
            Condition::Response(test) => Some(test.holds(exchange.response)),
            Condition::Label(wanted) => {
                Some(wanted.iter().any(|label| exchange.labels.contains(label)))
            }
            Condition::Probe(probe) => scores.probe(probe, exchange).map(|score| score.holds()),
            Condition::Judge(judge) => scores.judge(judge, exchange).map(|score| score.holds()),
            Condition::Cascade(stages) => cascade(stages, exchange, scores),
        }
    }

    /// Whether the prompt alone decides the condition.
    pub(super) fn is_about_prompt(&self) -> bool {
        match self {
            Condition::All(parts) | Condition::Any(parts) => {
                parts.iter().all(Condition::is_about_prompt)
            }
            Condition::Not(part) => part.is_about_prompt(),
            Condition::Prompt(_) => true,
            Condition::Response(_)
            | Condition::Label(_)
            | Condition::Probe(_)
            | Condition::Judge(_)
            | Condition::Cascade(_) => false,
        }
    }

    /// Describes the first leaf that makes the condition hold. `None` if it does not hold, or holds
    /// only because something is absent.
    pub fn evidence(&self, exchange: &Exchange<'_>) -> Option<String> {
        match self {
            Condition::All(parts) | Condition::Any(parts) => parts
                .iter()
                .filter(|p| p.holds(exchange))
                .find_map(|p| p.evidence(exchange)),
            Condition::Not(_) => None,
            Condition::Prompt(test) => test
                .evidence(exchange.prompt)
                .map(|e| format!("the prompt {e}")),
            Condition::Response(test) => test
                .evidence(exchange.response)
                .map(|e| format!("the response {e}")),
            Condition::Label(wanted) => wanted
                .iter()
                .find(|label| exchange.labels.contains(label))
                .map(|label| format!("it carries the label `{label}`")),
            Condition::Probe(_) => None,
            Condition::Judge(_) => None,
            Condition::Cascade(stages) => stages.iter().find_map(|stage| match stage {
                CascadeStage::YesIf(part) if part.holds(exchange) => part.evidence(exchange),
                _ => None,
            }),
        }
    }
}

/// `deciding` if any part has that value, unknown (`None`) if any part is unknown, the opposite
/// otherwise. Parts are ordered cheapest first.
fn decide_parts(
    parts: &[Condition],
    deciding: bool,
    exchange: &Exchange<'_>,
    scores: &dyn Scores,
) -> Option<bool> {
    let mut unknown = false;
    for part in parts {
        match part.decide(exchange, scores) {
            Some(value) if value == deciding => return Some(deciding),
            Some(_) => {}
            None => unknown = true,
        }
    }
    (!unknown).then_some(!deciding)
}

impl TextTest {
    /// Whether the test holds for a text.
    pub(crate) fn holds(&self, text: &str) -> bool {
        match self {
            TextTest::All(parts) => parts.iter().all(|part| part.holds(text)),
            TextTest::Any(parts) => parts.iter().any(|part| part.holds(text)),
            TextTest::Not(part) => !part.holds(text),
            TextTest::AnyRegex(patterns) | TextTest::AnyPhrase(patterns) => {
                patterns.iter().any(|pattern| pattern.regex.is_match(text))
            }
            TextTest::AllRegex(patterns) => {
                patterns.iter().all(|pattern| pattern.regex.is_match(text))
            }
            TextTest::Length { min, max, unit } => {
                let length = count(text, *unit);
                min.is_none_or(|min| length >= min) && max.is_none_or(|max| length <= max)
            }
        }
    }

    fn evidence(&self, text: &str) -> Option<String> {
        match self {
            TextTest::All(parts) | TextTest::Any(parts) => parts
                .iter()
                .filter(|p| p.holds(text))
                .find_map(|p| p.evidence(text)),
            TextTest::Not(_) => None,
            TextTest::AnyRegex(patterns)
            | TextTest::AllRegex(patterns)
            | TextTest::AnyPhrase(patterns) => patterns.iter().find_map(|pattern| {
                let found = pattern.regex.find(text)?;
                let shown: String = found.as_str().chars().take(60).collect();
                Some(format!("has {shown:?}, which `{}` matches", pattern.source))
            }),
            TextTest::Length { unit, .. } => {
                let length = count(text, *unit);
                self.holds(text).then(|| match unit {
                    LengthUnit::Characters => format!("has {length} characters"),
                    LengthUnit::Words => format!("has {length} words"),
                })
            }
        }
    }
}

pub(super) fn count(text: &str, unit: LengthUnit) -> usize {
    match unit {
        LengthUnit::Characters => text.chars().count(),
        LengthUnit::Words => text.split_whitespace().count(),
    }
}
