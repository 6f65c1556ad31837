//! What a validated policy is.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::{Condition, Exchange, MATCHER_VERSION};
use super::matchers::{Cost, Matcher, Scores, TextOnly};
use super::sha256_json;

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
pub enum Verdict {
    /// The response violates the rule.
    Violates,
    /// The response complies with the rule.
    Complies,
}

impl Verdict {
    /// The name in policy files.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Violates => "violates",
            Verdict::Complies => "complies",
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

/// A place in a policy file; line and column count from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SourceLocation {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
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
    /// What the policy is for.
    pub description: String,
    /// Whether it trains or only reports.
    pub enforcement: Enforcement,
    /// The rules, in file order; ids are unique.
    pub rules: Vec<Rule>,
    /// What a trained adapter must reach.
    pub gate: Gate,
    /// Where its `id` stands.
    pub source: SourceLocation,
}

impl Policy {
    /// The rule of that id.
    pub fn rule(&self, id: &str) -> Option<&Rule> {
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
    /// What the rule asks for.
    pub description: String,
    /// Where the rule applies; `None` is everywhere.
    pub when: Option<Condition>,
    /// What makes a response a violation.
    pub violates: Condition,
    /// What excuses it.
    pub exceptions: Vec<Condition>,
    /// The rule's own tests.
    pub examples: Vec<Example>,
    /// How well it must do on them before it may act.
    pub minimum: Option<Minimum>,
    hash: String,
}

/// The least figures on a rule's examples, shares from 0 to 1; `None` asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Minimum {
    /// Share of right verdicts.
    pub accuracy: Option<f64>,
    /// Of what it calls a violation, the share that is one.
    pub precision: Option<f64>,
    /// Of the violations, the share that it finds.
    pub recall: Option<f64>,
}

/// What a probe or a judge must reach where the rule declares nothing.
pub const DEFAULT_FITTED_MINIMUM: Minimum = Minimum {
    accuracy: Some(0.7),
    precision: None,
    recall: None,
};

/// How a rule came to its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleOutcome {
    /// `when` does not hold.
    NotApplicable,
    /// `violates` does not hold.
    NotMatched,
    /// The exception of this index (from 0) holds.
    Excepted(usize),
    /// The response violates the rule.
    Violated,
    /// A probe or a judge would have to say, and has not.
    Undecided,
}

/// The parts of a rule that `Rule::new` seals under its hash.
pub(super) struct RuleParts {
    pub id: String,
    pub severity: Severity,
    pub description: String,
    pub when: Option<Condition>,
    pub violates: Condition,
    pub exceptions: Vec<Condition>,
    pub examples: Vec<Example>,
    pub minimum: Option<Minimum>,
}

impl Rule {
    pub(super) fn new(parts: RuleParts) -> Rule {
        let hash = sha256_json(&(
            "rule",
            MATCHER_VERSION,
            &parts.when,
            &parts.violates,
            &parts.exceptions,
        ));
        Rule {
            id: parts.id,
            severity: parts.severity,
            description: parts.description,
            when: parts.when,
            violates: parts.violates,
            exceptions: parts.exceptions,
            examples: parts.examples,
            minimum: parts.minimum,
            hash,
        }
    }

    /// SHA-256 (64 hex digits) over what decides a verdict: `when`, `violates`, `exceptions` and
    /// the matchers' version. Id, severity, words and examples are not part of it, so a renamed
    /// rule finds its cached verdicts again.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The dearest matcher that the rule may ask.
    pub fn cost(&self) -> Cost {
        self.conditions()
            .map(Condition::cost)
            .max()
            .unwrap_or(Cost::Text)
    }

    /// Every probe and judge of the rule.
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

    /// Judges one response by its text and labels alone, and says how the verdict came about.
    pub fn evaluate(&self, exchange: &Exchange<'_>) -> RuleOutcome {
        self.evaluate_with(exchange, &TextOnly)
    }

    /// Judges one response, and says how the verdict came about. Whatever already excludes a
    /// violation decides, even where something else is not known.
    pub fn evaluate_with(&self, exchange: &Exchange<'_>, scores: &dyn Scores) -> RuleOutcome {
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
        match known {
            true => RuleOutcome::Violated,
            false => RuleOutcome::Undecided,
        }
    }

    /// Whether the response violates the rule, by its text and labels alone.
    pub fn violated_by(&self, exchange: &Exchange<'_>) -> bool {
        self.evaluate(exchange) == RuleOutcome::Violated
    }
}

/// One test of a rule.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    /// The user's message.
    pub prompt: String,
    /// The assistant's answer.
    pub response: String,
    /// What the rule must say.
    pub verdict: Verdict,
    /// Category labels the answer carries.
    pub labels: Vec<String>,
    /// Where the example stands.
    pub source: SourceLocation,
}

/// What a trained adapter must reach before it may serve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gate {
    /// Least rise of held-out policy agreement, as a share of responses (0 to 1).
    pub min_policy_agreement_gain: f64,
    /// Largest relative rise of perplexity on held-out text (0.10 is ten per cent).
    pub max_perplexity_rise: f64,
    /// Largest KL divergence from the base, nats per token; `None` is not checked.
    pub max_kl: Option<f64>,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            min_policy_agreement_gain: 0.05,
            max_perplexity_rise: 0.10,
            max_kl: None,
        }
    }
}

impl Gate {
    /// The gate that lets through only what both let through.
    pub fn strictest(self, other: Gate) -> Gate {
        Gate {
            min_policy_agreement_gain: self
                .min_policy_agreement_gain
                .max(other.min_policy_agreement_gain),
            max_perplexity_rise: self.max_perplexity_rise.min(other.max_perplexity_rise),
            max_kl: match (self.max_kl, other.max_kl) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }
}
