//! What a candidate brings each policy. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::report::{Report, RuleResult, Standing};
use crate::policy::Severity;

/// How a policy is complied with, by what serves and by a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyOutcome {
    /// Id of the policy.
    pub policy: String,
    /// Whether what serves does what it asks.
    pub before: Standing,
    /// Whether the candidate does.
    pub after: Standing,
}

/// The outcome of every policy that decides something, in the order of the exam's rules.
pub fn outcomes(before: &Report, after: &Report) -> Vec<PolicyOutcome> {
    let mut found: Vec<PolicyOutcome> = Vec::new();
    for rule in deciding(after) {
        if found.iter().all(|outcome| outcome.policy != rule.policy) {
            found.push(PolicyOutcome {
                policy: rule.policy.clone(),
                before: standing(before, &rule.policy),
                after: standing(after, &rule.policy),
            });
        }
    }
    found
}

/// Whether some policy is met that was not, and none is lost.
pub(super) fn is_progress(outcomes: &[PolicyOutcome]) -> bool {
    let met = |standing| standing == Standing::Meets;
    let gained = |o: &PolicyOutcome| !met(o.before) && met(o.after);
    let lost = |o: &PolicyOutcome| met(o.before) && !met(o.after);
    outcomes.iter().any(gained) && !outcomes.iter().any(lost)
}

/// What a promotion leaves undone, in a sentence; `None` if every policy is met.
pub fn left_open(outcomes: &[PolicyOutcome]) -> Option<String> {
    let names = |of: &dyn Fn(&&PolicyOutcome) -> bool| -> Vec<&str> {
        let chosen = outcomes.iter().filter(of);
        chosen.map(|outcome| outcome.policy.as_str()).collect()
    };
    let open = names(&|o| o.after != Standing::Meets);
    let gained = names(&|o| o.before != Standing::Meets && o.after == Standing::Meets);
    (!open.is_empty()).then(|| {
        format!(
            "it serves for {}, and does not do yet what {} asks (`gate.all_or_nothing = true` would \
             have refused it)",
            gained.join(", "),
            open.join(", ")
        )
    })
}

fn deciding(report: &Report) -> impl Iterator<Item = &RuleResult> {
    let rules = report.rules.iter();
    rules.filter(|rule| rule.severity >= Severity::Standard)
}

fn standing(report: &Report, policy: &str) -> Standing {
    let rules = deciding(report).filter(|rule| rule.policy == policy);
    let worse = |worst, rule: &RuleResult| match (worst, rule.standing) {
        (Standing::Misses, _) | (_, Standing::Misses) => Standing::Misses,
        (Standing::Unknown, _) | (_, Standing::Unknown) => Standing::Unknown,
        _ => Standing::Meets,
    };
    rules.fold(Standing::Meets, worse)
}
