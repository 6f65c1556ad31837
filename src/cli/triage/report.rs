//! The reports of `triage` and `plan`. Pure.

use serde::Serialize;

use super::Flips;
use realign_align::oracle::{Exchange, Judgement, MatcherUsage, Oracle, RuleOracle, Severity};
use realign_align::pipeline::holdout_ratio;
use realign_align::preferences::{Contradiction, Dataset, Pair, SkippedLine, split};
use realign_align::train::Recipe;
use realign_align::triage::{Triage, TriagedPair};
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
            response,
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

/// What a server would do with the data and the policies.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// How the data fits the policies.
    #[serde(flatten)]
    pub(crate) triage: TriageReport,
    /// Whether there is something to train on.
    pub(crate) trains: bool,
    /// Name of the recipe.
    pub(crate) recipe: String,
    /// Pairs to train on, `train.max_pairs` respected.
    pub(crate) train_pairs: usize,
    /// Conflicting pairs outside the held-out part, `train.max_pairs` not counted.
    pub(crate) train_conflicts: usize,
    /// Pairs to measure on.
    pub(crate) holdout_pairs: usize,
    /// Conflicting pairs to measure on.
    pub(crate) holdout_conflicts: usize,
    /// Most optimiser steps.
    pub(crate) steps: usize,
    /// Pairs per optimiser step.
    pub(crate) pairs_per_step: usize,
    /// Passes over the pairs.
    pub(crate) epochs: usize,
    /// Minutes that the whole realignment takes at the rate of the demo on two cores.
    pub(crate) minutes: f64,
    /// Verdicts that would reach a judge.
    pub(crate) judge_calls: u64,
    /// What is likely to go wrong.
    pub(crate) warning: Option<&'static str>,
    /// Changes from the active set, if that is another.
    pub(crate) flips: Option<Flips>,
}

/// The demo: 211 seconds from triage to swap with 192 pairs on two cores, default model and recipe.
const DEMO_SECONDS: f64 = 211.0;
const DEMO_PAIRS: f64 = 192.0;

impl Plan {
    /// The plan for a triaged data set. `configured_ratio` is `gate.holdout_ratio`.
    pub(crate) fn new(
        report: TriageReport,
        recipe: &Recipe,
        dataset: &Dataset,
        triage: &Triage,
        configured_ratio: f64,
    ) -> Plan {
        let ratio = holdout_ratio(&dataset.pairs, configured_ratio);
        let parts = split(&dataset.pairs, ratio, recipe.seed);
        let conflicts = |of: &[usize]| {
            let in_conflict = of
                .iter()
                .filter(|&&i| triage.items[i].category.is_conflict());
            in_conflict.count()
        };
        let train_conflicts = conflicts(&parts.train);
        let train_pairs = match recipe.max_pairs {
            0 => parts.train.len(),
            limit => parts.train.len().min(limit),
        };
        let trains = train_conflicts > 0;
        Plan {
            trains,
            recipe: recipe.name.clone(),
            train_pairs,
            train_conflicts,
            holdout_pairs: parts.holdout.len(),
            holdout_conflicts: conflicts(&parts.holdout),
            steps: if trains {
                realign_align::train::run::steps(train_pairs, recipe)
            } else {
                0
            },
            minutes: if trains {
                train_pairs as f64 / DEMO_PAIRS * DEMO_SECONDS / 60.0
            } else {
                0.0
            },
            judge_calls: 0,
            warning: None,
            flips: None,
            pairs_per_step: recipe.pairs_per_step,
            epochs: recipe.epochs,
            triage: report,
        }
    }
}
