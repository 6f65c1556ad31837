//! Matchers that need more than the text: fitted probes, judges, and cascades of matchers.
//!
//! A policy only describes them; a [`Scores`] implementation gives their answers. Evaluation thus
//! stays pure and three-valued: without an answer, a condition is neither true nor false.

use std::sync::Arc;

use serde::Serialize;

use super::condition::{Condition, Exchange};
use super::sha256_json;

/// A response with its true verdict, to fit or to measure on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Labelled {
    /// The user's message.
    pub prompt: String,
    /// The assistant's answer.
    pub response: String,
    /// Whether it violates the rule.
    pub violates: bool,
}

impl Labelled {
    /// The exchange to judge; it carries no labels.
    pub fn exchange(&self) -> Exchange<'_> {
        Exchange {
            prompt: &self.prompt,
            response: &self.response,
            labels: &[],
        }
    }
}

/// A classifier over the base model's hidden states, to be fitted.
#[derive(Clone, Debug)]
pub struct ProbeSpec {
    /// Training data, the rule's own examples first.
    pub(crate) training: Arc<Vec<Labelled>>,
    /// Whether the labels in `training` are the rule's own verdicts, so that they also measure it.
    pub(crate) is_own: bool,
    /// The condition holds at this probability or above; `None`: fitted by cross-validation.
    pub(crate) threshold: Option<f64>,
    id: String,
}

impl ProbeSpec {
    /// A probe to be fitted on `training`.
    pub fn new(training: Vec<Labelled>, is_own: bool, threshold: Option<f64>) -> ProbeSpec {
        ProbeSpec {
            id: sha256_json(&("probe", &training, threshold.map(f64::to_bits))),
            training: Arc::new(training),
            is_own,
            threshold,
        }
    }

    /// SHA-256 (64 hex digits) over the training data and the threshold.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

/// A yes/no question to an OpenAI-compatible endpoint; yes means that the condition holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgeSpec {
    /// Base URL, e.g. `https://host/v1`.
    pub url: String,
    /// Model name, as the endpoint expects it.
    pub model: String,
    /// Environment variable that holds the API key; `None` sends no key.
    pub key_env: Option<String>,
    /// Yes/no question about the exchange.
    pub question: String,
    /// Jinja template of the user message; `None` is the built-in one.
    pub template: Option<String>,
    /// The template's `policy` variable: the rule's description.
    pub policy: String,
    /// The condition holds if the probability of yes is at least this; `None`: fitted on
    /// `examples`.
    pub threshold: Option<f64>,
    /// Maximum number of concurrent requests.
    pub concurrency: usize,
    /// Price of a million input and output tokens, in the operator's currency.
    pub price: [f64; 2],
    /// Labelled responses that the threshold is fitted on; empty if it is given.
    pub examples: Vec<Labelled>,
}

impl JudgeSpec {
    /// SHA-256 (64 hex digits) over everything that can change a verdict.
    pub(crate) fn id(&self) -> String {
        sha256_json(&(
            "judge",
            (
                &self.url,
                &self.model,
                &self.question,
                &self.template,
                &self.policy,
            ),
            self.threshold.map(f64::to_bits),
            &self.examples,
        ))
    }
}

/// One stage of a cascade; the first stage that is certain decides.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CascadeStage {
    /// If this holds, the cascade holds; otherwise the next stage runs.
    YesIf(Condition),
    /// If this holds, the cascade does not; otherwise the next stage runs.
    NoIf(Condition),
    /// A probe; certain unless its probability is in the range.
    Probe(Arc<ProbeSpec>, Option<UnsureRange>),
    /// A judge; certain unless its probability is in the range.
    Judge(Arc<JudgeSpec>, Option<UnsureRange>),
}

/// Range of probabilities, both ends included, in which a stage defers to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(into = "[f64; 2]")]
pub struct UnsureRange {
    /// The lowest probability in the range, 0 to 1.
    pub(crate) low: f64,
    /// The highest probability in the range, 0 to 1.
    pub(crate) high: f64,
}

/// The form in policy files, which hashes cover.
impl From<UnsureRange> for [f64; 2] {
    fn from(range: UnsureRange) -> Self {
        [range.low, range.high]
    }
}

impl UnsureRange {
    fn covers(self, probability: f64) -> bool {
        (self.low..=self.high).contains(&probability)
    }
}

/// Serialised as its id, which is what hashes cover.
impl Serialize for ProbeSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.id)
    }
}

/// Answer of a probe or a judge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Probability that the condition holds, 0 to 1.
    pub probability: f64,
    /// The condition holds at this probability or above.
    pub threshold: f64,
}

impl Score {
    /// Whether the condition holds.
    pub fn holds(self) -> bool {
        self.probability >= self.threshold
    }
}

/// Source of the answers of probes and judges.
pub trait Scores {
    /// A probe's answer for an exchange; `None` if there is none (yet).
    fn probe(&self, probe: &ProbeSpec, exchange: &Exchange<'_>) -> Option<Score>;

    /// A judge's answer for an exchange; `None` if there is none (yet).
    fn judge(&self, judge: &JudgeSpec, exchange: &Exchange<'_>) -> Option<Score>;
}

/// Answers no probe and no judge, so that only text and labels decide.
#[derive(Clone, Copy, Debug)]
pub struct TextOnly;

impl Scores for TextOnly {
    fn probe(&self, _: &ProbeSpec, _: &Exchange<'_>) -> Option<Score> {
        None
    }

    fn judge(&self, _: &JudgeSpec, _: &Exchange<'_>) -> Option<Score> {
        None
    }
}

/// Runs stages until one is certain; if none is, the last score decides. `None` without an answer
/// for a stage that must run.
pub(super) fn cascade(
    stages: &[CascadeStage],
    exchange: &Exchange<'_>,
    scores: &dyn Scores,
) -> Option<bool> {
    let mut last = false;
    for stage in stages {
        let (score, unsure) = match stage {
            CascadeStage::YesIf(condition) | CascadeStage::NoIf(condition) => {
                if condition.decide(exchange, scores)? {
                    return Some(matches!(stage, CascadeStage::YesIf(_)));
                }
                continue;
            }
            CascadeStage::Probe(probe, unsure) => (scores.probe(probe, exchange)?, unsure),
            CascadeStage::Judge(judge, unsure) => (scores.judge(judge, exchange)?, unsure),
        };
        if !unsure.is_some_and(|range| range.covers(score.probability)) {
            return Some(score.holds());
        }
        last = score.holds();
    }
    Some(last)
}

/// What a condition costs to evaluate; ordered, so that cheap conditions can run first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// Only the text and labels are needed.
    Text,
    /// A forward pass of the base model.
    Probe,
    /// A request to a judge's endpoint.
    Judge,
}

impl Condition {
    /// The cost of the most expensive matcher in the condition.
    pub(crate) fn cost(&self) -> Cost {
        let mut cost = Cost::Text;
        self.visit(&mut |matcher| {
            cost = cost.max(match matcher {
                Matcher::Probe(_) => Cost::Probe,
                Matcher::Judge(_) => Cost::Judge,
            });
        });
        cost
    }

    /// Calls `visitor` with every probe and judge in the condition, depth first.
    pub(crate) fn visit<'a>(&'a self, visitor: &mut dyn FnMut(Matcher<'a>)) {
        match self {
            Condition::All(parts) | Condition::Any(parts) => {
                parts.iter().for_each(|part| part.visit(visitor));
            }
            Condition::Not(part) => part.visit(visitor),
            Condition::Prompt(_) | Condition::Response(_) | Condition::Label(_) => {}
            Condition::Probe(probe) => visitor(Matcher::Probe(probe)),
            Condition::Judge(judge) => visitor(Matcher::Judge(judge)),
            Condition::Cascade(stages) => {
                for stage in stages {
                    match stage {
                        CascadeStage::YesIf(condition) | CascadeStage::NoIf(condition) => {
                            condition.visit(visitor)
                        }
                        CascadeStage::Probe(probe, _) => visitor(Matcher::Probe(probe)),
                        CascadeStage::Judge(judge, _) => visitor(Matcher::Judge(judge)),
                    }
                }
            }
        }
    }
}

/// A matcher that needs more than the text.
#[derive(Clone, Copy, Debug)]
pub enum Matcher<'a> {
    /// A classifier over hidden states.
    Probe(&'a Arc<ProbeSpec>),
    /// A question to an endpoint.
    Judge(&'a Arc<JudgeSpec>),
}
