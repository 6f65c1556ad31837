//! The policy oracle: which rules a response violates.
//!
//! [`RuleOracle`] evaluates a policy set's rules; [`cache`] keeps verdicts per rule, so that
//! editing one rule re-judges only that rule. The text decides first; for rules that it leaves
//! undecided, [`probe`]s read the base model's hidden states ([`hidden`]), and [`judge`]s query an
//! endpoint. [`prepare()`] fits and measures them ([`trust`]) before a set activates.

mod bits;
pub mod blend;
pub mod cache;
pub mod calibration;
pub mod corrective;
pub mod endpoint;
pub mod error;
pub mod features;
pub mod hidden;
pub mod judge;
pub mod kernel;
pub mod matchers;
pub mod measure;
pub mod prepare;
pub mod probe;
mod rules;
pub mod scores;
pub mod text;
pub mod trust;

#[cfg(test)]
mod tests;

use serde::Serialize;

pub use crate::policy::{Exchange, Severity};
pub use cache::{CacheCounts, MemoryVerdictCache, VerdictCache, VerdictKey};
pub use error::RuleError;
pub use features::FeatureSource;
pub use hidden::{BATCH_ROWS as HIDDEN_ROWS, HiddenStates};
pub use matchers::{MatcherUsage, Matchers};
pub use prepare::{Prepared, Services, needs_services, prepare, prepare_trusted};
pub use rules::RuleOracle;
pub use scores::{MemoryScoreCache, ScoreCache};
pub use trust::RuleTrust;

/// A violation of one rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Violation {
    /// Policy id.
    pub policy: String,
    /// Rule id.
    pub rule: String,
    /// The rule's severity.
    pub severity: Severity,
}

/// The oracle's judgement of one response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// The violated rules, in policy-id order, then file order.
    pub violations: Vec<Violation>,
    /// The rules that could not be decided; empty unless hidden states or a judge failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub undecided: Vec<Undecided>,
}

/// A rule that could not be decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Undecided {
    /// Policy id.
    pub policy: String,
    /// Rule id.
    pub rule: String,
    /// The reason, in words.
    pub why: String,
}

impl Judgement {
    /// Whether no rule is violated and none is undecided.
    pub fn complies(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_empty()
    }

    /// Whether a rule is violated, even if others are undecided.
    pub fn violates(&self) -> bool {
        !self.violations.is_empty()
    }

    #[cfg(test)]
    /// The highest severity among the violations; `None` without violations.
    pub(crate) fn worst(&self) -> Option<Severity> {
        self.violations
            .iter()
            .map(|violation| violation.severity)
            .max()
    }
}

/// Judges responses against a policy set.
pub trait Oracle: Send + Sync {
    /// Judges one response. The same exchange always gets the same judgement.
    fn judge(&self, exchange: &Exchange<'_>) -> Judgement;

    /// Judges several responses, in order. Faster than one by one for rules with probes or judges.
    fn judge_many(&self, exchanges: &[Exchange<'_>]) -> Vec<Judgement> {
        exchanges
            .iter()
            .map(|exchange| self.judge(exchange))
            .collect()
    }

    /// Content hash of the policies: equal revisions give equal judgements.
    fn revision(&self) -> &str;
}
