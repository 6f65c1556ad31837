//! The reports of `triage` and `plan`. Pure.

use serde::Serialize;

use realign_align::oracle::{Exchange, Judgement, MatcherUsage, Oracle, RuleOracle, Severity};
use realign_align::preferences::{Contradiction, Dataset, Pair, SkippedLine};
use realign_align::triage::{Triage, TriagedPair};
use realign_core::thoughts::recorded;
use realign_core::{Category, TriageCounts};

/// How the preference data fits the policies.
#[derive(Clone, Debug, Serialize)]
pub struct TriageReport {
    /// Revision of the policy set that judged.
    pub(crate) policy_revision: String,
    /// Distinct pairs.
    pub(crate) pairs: usize,
    /// Pairs per category.
    pub(crate) counts: TriageCounts,
    /// Share of pairs in conflict with the policies, 0 to 1.
    pub(crate) gap_ratio: f64,
    /// Violations of each rule, in set order; rules without one included.
    pub(crate) rules: Vec<RuleCount>,
    /// Conflicting pairs, in the order of files and lines.
    pub(crate) examples: Vec<Conflict>,
    /// Lines merged into an earlier one.
    pub(crate) duplicates: usize,
    /// Lines that gave no pair.
    pub(crate) skipped: Vec<SkippedLine>,
    /// Pairs that prefer opposite responses of the same two.
    pub(crate) contradictions: Vec<Contradiction>,
    /// Pairs whose category depends on a verdict that is not available.
    pub(crate) undecided: usize,
    /// How many verdicts each kind of matcher decided, and the cost of judges.
    pub(crate) reached: Option<MatcherUsage>,
}

/// How many responses violate a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleCount {
    /// Policy id.
    pub(crate) policy: String,
    /// Rule id.
    pub(crate) rule: String,
    /// How much a violation matters.
    pub(crate) severity: Severity,
    /// Chosen responses that violate it.
    pub(crate) chosen: usize,
    /// Rejected responses that violate it.
    pub(crate) rejected: usize,
}

/// A pair in conflict with the policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// `file:line`.
    pub(crate) source: String,
    /// What training does with it.
    pub(crate) category: Category,
    /// The last user message.
    pub(crate) prompt: String,
    /// The response that the data prefers.
    pub(crate) chosen: String,
    /// The response that the data rejects.
    pub(crate) rejected: String,
    /// The rules that chosen or rejected response violates.
    pub(crate) because: Vec<Reason>,
}

/// A rule that one response of a pair violates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// `chosen` or `rejected`.
    pub(crate) response: &'static str,
    /// Policy id.
    pub(crate) policy: String,
    /// Rule id.
    pub(crate) rule: String,
    /// What in the response the rule found, where it can tell.
    pub(crate) evidence: Option<String>,
}

impl TriageReport {
    /// The report of a triage, with at most `examples` conflicting pairs.
    pub(crate) fn new(
        oracle: &RuleOracle,
        dataset: &Dataset,
        triage: &Triage,
        examples: usize,
    ) -> TriageReport {
        let mut conflicts: Vec<&TriagedPair> = triage
            .items
            .iter()
            .filter(|item| item.category.is_conflict())
            .collect();
        conflicts.sort_by_key(|item| &dataset.pairs[item.index].source);
        conflicts.truncate(examples);
        let shown = conflicts.into_iter();
        TriageReport {
            policy_revision: oracle.revision().to_owned(),
            pairs: dataset.pairs.len(),
            counts: triage.counts,
            gap_ratio: triage.gap_ratio,
            rules: rule_counts(oracle, triage),
            examples: shown
                .map(|item| conflict(oracle, &dataset.pairs[item.index], item))
                .collect(),
            duplicates: dataset.duplicates,
            skipped: dataset.skipped.clone(),
            contradictions: dataset.contradictions.clone(),
            undecided: triage.undecided,
            reached: Some(oracle.usage()),
        }
    }
}

fn rule_counts(oracle: &RuleOracle, triage: &Triage) -> Vec<RuleCount> {
    let count = |policy: &str, rule: &str, side: fn(&TriagedPair) -> &Judgement| {
        let violated = |item: &&TriagedPair| {
            let mut found = side(item).violations.iter();
            found.any(|v| v.policy == policy && v.rule == rule)
        };
        triage.items.iter().filter(violated).count()
    };
    oracle
        .rules()
        .map(|(policy, rule)| RuleCount {
            policy: policy.id.clone(),
            rule: rule.id.clone(),
            severity: rule.severity,
            chosen: count(&policy.id, &rule.id, |item| &item.chosen),
            rejected: count(&policy.id, &rule.id, |item| &item.rejected),
        })
        .collect()
}

fn conflict(oracle: &RuleOracle, pair: &Pair, item: &TriagedPair) -> Conflict {
    let sides = [
        ("chosen", &item.chosen, &pair.chosen, &pair.chosen_labels),
        (
            "rejected",
            &item.rejected,
            &pair.rejected,
            &pair.rejected_labels,
        ),
    ];
    let mut because = Vec::new();
    for (name, judgement, response, labels) in sides {
        let exchange = Exchange {
            prompt: pair.prompt_text(),
            response: &recorded(response),
            labels,
        };
        for violation in &judgement.violations {
            let rule = oracle
                .rules()
                .find(|(policy, rule)| policy.id == violation.policy && rule.id == violation.rule);
            because.push(Reason {
                response: name,
                policy: violation.policy.clone(),
                rule: violation.rule.clone(),
                evidence: rule.and_then(|(_, rule)| rule.violates.evidence(&exchange)),
            });
        }
    }
    Conflict {
        source: pair.source.to_string(),
        category: item.category,
        prompt: pair.prompt_text().to_owned(),
        chosen: pair.chosen.clone(),
        rejected: pair.rejected.clone(),
        because,
    }
}
