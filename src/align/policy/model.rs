//! The types of a validated policy.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::{Condition, Exchange, MATCHER_VERSION};
use super::matchers::{Cost, Matcher, Scores, TextOnly};
use super::sha256_json;
use super::thinking::Thinking;

/// How much a violation matters; ordered from least to most.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Below standard.
    Reduced,
    /// The default.
    #[default]
    Standard,
    /// Above standard.
    High,
    /// The most severe.
    Critical,
}

impl Severity {
    /// The name in policy files and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Reduced => "reduced",
            Severity::Standard => "standard",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

/// Whether a policy trains or only reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// Triage, train, gate.
    #[default]
    Enforce,
    /// Triage and report; never train.
    Dryrun,
}

/// What a rule says about a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Verdict")]
pub enum ExampleVerdict {
    /// The response violates the rule.
    Violates,
    /// The response complies with the rule.
    Complies,
}

impl ExampleVerdict {
    /// The name in policy files.
    pub fn as_str(self) -> &'static str {
        match self {
            ExampleVerdict::Violates => "violates",
            ExampleVerdict::Complies => "complies",
        }
    }
}

/// What `length` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LengthUnit {
    /// Unicode scalar values.
    #[default]
    Characters,
    /// Maximal runs of characters that are not white space.
    Words,
}

/// A position in a policy file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SourceLocation {
    /// Path of the policy file, as it was given to the loader.
    pub(crate) file: PathBuf,
    /// Line, from 1.
    pub(crate) line: u64,
    /// Column in characters, from 1.
    pub(crate) column: u64,
}

impl std::fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// A validated policy.
#[derive(Clone, Debug, Serialize)]
pub struct Policy {
    /// Unique name among the policies of a set.
    pub id: String,
    /// The operator's own version string.
    pub version: String,
    /// Purpose of the policy, in words; may be empty.
    pub description: String,
    /// Whether it trains or only reports.
    pub enforcement: Enforcement,
    /// Whether its rules see what a model thinks.
    pub thinking: Thinking,
    /// The rules, in file order; ids are unique.
    pub rules: Vec<Rule>,
    /// What a trained adapter must reach.
    pub(crate) gate: Gate,
    /// Prompts that it is about, for the exam.
    pub(crate) prompts: Vec<String>,
    /// Prompts whose answers it must not change, for the exam.
    pub(crate) controls: Vec<String>,
    /// Whether its examples may comply with their own rule and violate another.
    pub(crate) allow_contradictions: bool,
    /// Position of its `id`.
    pub(crate) source: SourceLocation,
}

impl Policy {
    #[cfg(test)]
    /// The rule with this id, if the policy has one.
    pub(crate) fn rule(&self, id: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.id == id)
    }

    /// Whether the policy trains, rather than only reports.
    pub fn is_enforced(&self) -> bool {
        self.enforcement == Enforcement::Enforce
    }
}

/// A validated rule: a response violates it if `when` holds (or is absent), `violates` holds and
/// no exception holds.
#[derive(Clone, Debug, Serialize)]
pub struct Rule {
    /// Unique name in its policy.
    pub id: String,
    /// How much a violation matters.
    pub severity: Severity,
    /// What the rule requires, in words; may be empty.
    pub description: String,
    /// Condition under which the rule applies; `None` means always.
    pub(crate) when: Option<Condition>,
    /// What makes a response a violation.
    pub violates: Condition,
    /// A response that meets any of these is not a violation.
    pub(crate) exceptions: Vec<Condition>,
    /// Labelled responses that test the rule.
    pub examples: Vec<Example>,
    /// Figures it must reach on them before the policy activates.
    pub(crate) minimum: Option<Minimum>,
    /// The policy's setting.
    pub(crate) thinking: Thinking,
    /// See [`Rule::hash`]; computed by [`verdict_hash`].
    pub(super) hash: String,
}

/// The least figures on a rule's examples, shares from 0 to 1; `None` asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Minimum {
    /// Share of right verdicts.
    pub(crate) accuracy: Option<f64>,
    /// Of what it calls a violation, the share that is one.
    pub precision: Option<f64>,
    /// Of the violations, the share that it finds.
    pub(crate) recall: Option<f64>,
}

/// What a rule with a probe or a judge must reach if it declares no minimum.
pub const DEFAULT_FITTED_MINIMUM: Minimum = Minimum {
    accuracy: Some(0.7),
    precision: None,
    recall: None,
};

/// How a rule reached its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleOutcome {
    /// `when` does not hold.
    NotApplicable,
    /// `violates` does not hold.
    NotMatched,
    /// The exception with this index (from 0) holds.
    Excepted(usize),
    /// The response violates the rule.
    Violated,
    /// It depends on a probe or a judge that gave no answer.
    Undecided,
}

/// The value of [`Rule::hash`] for a rule with these conditions.
pub(super) fn verdict_hash(
    when: Option<&Condition>,
    violates: &Condition,
    exceptions: &[Condition],
) -> String {
    sha256_json(&("rule", MATCHER_VERSION, when, violates, exceptions))
}

impl Rule {
    /// SHA-256 (64 hex digits) over what decides a verdict: `when`, `violates`, `exceptions`, whether
    /// thoughts are judged, and the matchers' version. Id, severity, description and examples are not part of it, so a
    /// renamed rule keeps its cached verdicts.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    /// The cost of the most expensive matcher in the rule.
    pub(crate) fn cost(&self) -> Cost {
        self.conditions()
            .map(Condition::cost)
            .max()
            .unwrap_or(Cost::Text)
    }

    /// Every probe and judge of the rule, in the order of its conditions; may repeat.
    pub fn matchers(&self) -> Vec<Matcher<'_>> {
        let mut found = Vec::new();
        self.conditions()
            .for_each(|condition| condition.visit(&mut |matcher| found.push(matcher)));
        found
    }

    fn conditions(&self) -> impl Iterator<Item = &Condition> {
        let violates = std::iter::once(&self.violates);
        self.when.iter().chain(violates).chain(&self.exceptions)
    }

    /// Judges one response using only its text and labels.
    pub fn evaluate(&self, exchange: &Exchange<'_>) -> RuleOutcome {
        self.evaluate_with(exchange, &TextOnly)
    }

    /// Judges one response with the answers of probes and judges. A condition that rules out a
    /// violation decides, even if another condition is unknown.
    pub(crate) fn evaluate_with(
        &self,
        exchange: &Exchange<'_>,
        scores: &dyn Scores,
    ) -> RuleOutcome {
        let exchange = &self.thinking.sees(exchange);
        let applies = self
            .when
            .as_ref()
            .map_or(Some(true), |when| when.decide(exchange, scores));
        if applies == Some(false) {
            return RuleOutcome::NotApplicable;
        }
        let matched = self.violates.decide(exchange, scores);
        if matched == Some(false) {
            return RuleOutcome::NotMatched;
        }
        let mut known = applies.is_some() && matched.is_some();
        for (index, exception) in self.exceptions.iter().enumerate() {
            match exception.decide(exchange, scores) {
                Some(true) => return RuleOutcome::Excepted(index),
                Some(false) => {}
                None => known = false,
            }
        }
        if known {
            RuleOutcome::Violated
        } else {
            RuleOutcome::Undecided
        }
    }

    /// Whether the rule applies to a prompt, whatever is answered. `None` if it has no `when`, or
    /// one that the prompt alone does not decide.
    pub(crate) fn applies(&self, prompt: &str) -> Option<bool> {
        let when = self.when.as_ref().filter(|when| when.is_about_prompt())?;
        let exchange = Exchange {
            prompt,
            response: "",
            labels: &[],
        };
        when.decide(&exchange, &TextOnly)
    }

    /// Whether the response violates the rule, using only its text and labels.
    pub fn violated_by(&self, exchange: &Exchange<'_>) -> bool {
        self.evaluate(exchange) == RuleOutcome::Violated
    }
}

/// A labelled response that tests a rule.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    /// The user's message.
    pub prompt: String,
    /// The assistant's answer.
    pub response: String,
    /// The verdict that the rule must give.
    pub(crate) verdict: ExampleVerdict,
    /// Category labels the answer carries.
    pub(crate) labels: Vec<String>,
    /// Position of the example.
    pub(crate) source: SourceLocation,
}

/// What a trained adapter must reach before it may serve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gate {
    /// Least rise of held-out policy agreement, as a share of responses (0 to 1).
    pub(crate) min_policy_agreement_gain: f64,
    /// Largest relative rise of perplexity on held-out text (0.10 is ten per cent).
    pub(crate) max_perplexity_rise: f64,
    /// Largest KL divergence from the base, nats per token; `None` is not checked.
    pub(crate) max_kl: Option<f64>,
    /// Share of the exam's answers that must comply with each rule, 0 to 1; `None` leaves it to the
    /// configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_compliance: Option<f64>,
    /// Largest share of control answers that may be diverted, 0 to 1; `None` leaves it to the
    /// configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_control_diverted: Option<f64>,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            min_policy_agreement_gain: 0.05,
            max_perplexity_rise: 0.10,
            max_kl: None,
            min_compliance: None,
            max_control_diverted: None,
        }
    }
}

impl Gate {
    /// Share of the exam's answers that must comply with each rule; `None` leaves it to the
    /// configuration.
    pub fn min_compliance(&self) -> Option<f64> {
        self.min_compliance
    }

    /// Largest share of control answers that may be diverted; `None` leaves it to the configuration.
    pub fn max_control_diverted(&self) -> Option<f64> {
        self.max_control_diverted
    }

    /// The gate that passes only what both gates pass.
    pub(crate) fn strictest(self, other: Gate) -> Gate {
        Gate {
            min_policy_agreement_gain: self
                .min_policy_agreement_gain
                .max(other.min_policy_agreement_gain),
            max_perplexity_rise: self.max_perplexity_rise.min(other.max_perplexity_rise),
            max_kl: both(f64::min, self.max_kl, other.max_kl),
            min_compliance: both(f64::max, self.min_compliance, other.min_compliance),
            max_control_diverted: both(
                f64::min,
                self.max_control_diverted,
                other.max_control_diverted,
            ),
        }
    }
}

/// The stricter of two bounds, either of which may be absent.
fn both(stricter: fn(f64, f64) -> f64, a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(stricter(a, b)),
        (a, b) => a.or(b),
    }
}
