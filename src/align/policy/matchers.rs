//! Matchers that need more than the text: a fitted probe, a judge, and cascades of matchers.
//!
//! A policy only describes them. What answers them is a [`Scores`], so that evaluation stays pure
//! and three-valued: where nothing answers, a condition is neither true nor false.

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
    /// What a rule judges of it.
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
    /// What it is fitted on, the rule's own examples first.
    pub training: Arc<Vec<Labelled>>,
    /// Whether `training` are verdicts of the rule itself, so that they also measure it.
    pub is_own: bool,
    /// Probability from which on it holds; `None` is fitted.
    pub threshold: Option<f64>,
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

    /// SHA-256 (64 hex digits) over what it is fitted on and its threshold.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// A yes/no question to an OpenAI-compatible endpoint; yes means that the condition holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgeSpec {
    /// Base URL, e.g. `https://host/v1`.
    pub url: String,
    /// The model to ask for.
    pub model: String,
    /// Environment variable that holds the key; `None` sends none.
    pub key_env: Option<String>,
    /// The question.
    pub question: String,
    /// Jinja template of the user message; `None` is the built-in one.
    pub template: Option<String>,
    /// What the template's `policy` stands for: the rule's own words.
    pub policy: String,
    /// Probability of yes from which on it holds; `None` is fitted on `examples`.
    pub threshold: Option<f64>,
    /// Most questions under way at once.
    pub concurrency: usize,
    /// Price of a million tokens in and out, in whatever currency the operator counts.
    pub price: [f64; 2],
    /// What the threshold is fitted on.
    pub examples: Vec<Labelled>,
}

impl JudgeSpec {
    /// SHA-256 (64 hex digits) over everything that can change a verdict.
    pub fn id(&self) -> String {
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

/// One stage of a cascade; the first that is sure decides.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Where this holds, the cascade holds.
    YesIf(Condition),
    /// Where this holds, the cascade does not.
    NoIf(Condition),
    /// A probe, sure outside the range of probabilities.
    Probe(Arc<ProbeSpec>, Option<Unsure>),
    /// A judge, sure outside the range of probabilities.
    Judge(Arc<JudgeSpec>, Option<Unsure>),
}

/// Probabilities between which a stage leaves the decision to the next, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Unsure(pub f64, pub f64);

impl Unsure {
    fn covers(self, probability: f64) -> bool {
        (self.0..=self.1).contains(&probability)
    }
}

/// Written as its id: that is what hashes cover.
impl Serialize for ProbeSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.id)
    }
}

/// What a probe or a judge says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Probability that the condition holds, 0 to 1.
    pub probability: f64,
    /// From which probability on it does.
    pub threshold: f64,
}

impl Score {
    /// Whether the condition holds.
    pub fn holds(self) -> bool {
        self.probability >= self.threshold
    }
}

/// What answers probes and judges; `None` where there is no answer (yet).
pub trait Scores {
    /// A probe's answer.
    fn probe(&self, probe: &ProbeSpec, exchange: &Exchange<'_>) -> Option<Score>;

    /// A judge's answer.
    fn judge(&self, judge: &JudgeSpec, exchange: &Exchange<'_>) -> Option<Score>;
}

/// Answers nothing: only the text and its labels decide.
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

/// Runs stages until one is sure. The last one asked decides if none was.
pub(super) fn cascade(
    stages: &[Stage],
    exchange: &Exchange<'_>,
    scores: &dyn Scores,
) -> Option<bool> {
    let mut leaning = false;
    for stage in stages {
        let (score, unsure) = match stage {
            Stage::YesIf(condition) | Stage::NoIf(condition) => {
                if condition.decide(exchange, scores)? {
                    return Some(matches!(stage, Stage::YesIf(_)));
                }
                continue;
            }
            Stage::Probe(probe, unsure) => (scores.probe(probe, exchange)?, unsure),
            Stage::Judge(judge, unsure) => (scores.judge(judge, exchange)?, unsure),
        };
        if !unsure.is_some_and(|range| range.covers(score.probability)) {
            return Some(score.holds());
        }
        leaning = score.holds();
    }
    Some(leaning)
}

/// What a condition costs to decide, so that cheap ones are asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// The text alone.
    Text,
    /// A forward pass of the base model.
    Probe,
    /// A request to a judge.
    Judge,
}

impl Condition {
    /// The dearest matcher in it.
    pub fn cost(&self) -> Cost {
        let mut cost = Cost::Text;
        self.visit(&mut |matcher| {
            cost = cost.max(match matcher {
                Matcher::Probe(_) => Cost::Probe,
                Matcher::Judge(_) => Cost::Judge,
            });
        });
        cost
    }

    /// Shows every probe and judge in it.
    pub fn visit<'a>(&'a self, show: &mut dyn FnMut(Matcher<'a>)) {
        match self {
            Condition::All(parts) | Condition::Any(parts) => {
                parts.iter().for_each(|part| part.visit(show));
            }
            Condition::Not(part) => part.visit(show),
            Condition::Prompt(_) | Condition::Response(_) | Condition::Label(_) => {}
            Condition::Probe(probe) => show(Matcher::Probe(probe)),
            Condition::Judge(judge) => show(Matcher::Judge(judge)),
            Condition::Cascade(stages) => {
                for stage in stages {
                    match stage {
                        Stage::YesIf(condition) | Stage::NoIf(condition) => condition.visit(show),
                        Stage::Probe(probe, _) => show(Matcher::Probe(probe)),
                        Stage::Judge(judge, _) => show(Matcher::Judge(judge)),
                    }
                }
            }
        }
    }
}

/// A matcher that needs more than the text.
#[derive(Clone, Copy, Debug)]
pub enum Matcher<'a> {
    /// A probe.
    Probe(&'a Arc<ProbeSpec>),
    /// A judge.
    Judge(&'a Arc<JudgeSpec>),
}
