//! The policy oracle: which rules a response violates. Pure.
//!
//! [`RuleOracle`] evaluates a policy set's rules; [`cache`] keeps verdicts per rule, so that
//! editing one rule re-judges that rule alone.

pub mod cache;
mod rules;

#[cfg(test)]
mod tests;

use serde::Serialize;

pub use crate::policy::{Exchange, Severity};
pub use cache::{CacheCounts, MemoryVerdictCache, VerdictCache, VerdictKey};
pub use rules::RuleOracle;

/// A rule that a response violates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Violation {
    /// Policy id.
    pub policy: String,
    /// Rule id.
    pub rule: String,
    /// How much it matters.
    pub severity: Severity,
}

/// What the oracle says about one response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// The violated rules, in policy-id order, then file order.
    pub violations: Vec<Violation>,
}

impl Judgement {
    /// Whether no rule is violated.
    pub fn complies(&self) -> bool {
        self.violations.is_empty()
    }

    /// The gravest violation's severity.
    pub fn worst(&self) -> Option<Severity> {
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

    /// Content hash of what it judges by: equal revisions, equal judgements.
    fn revision(&self) -> &str;
}
