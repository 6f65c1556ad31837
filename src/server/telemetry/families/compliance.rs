//! Metrics of judged answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use prometheus::{Error, Histogram, IntCounter, IntCounterVec};

use super::{Build, Total};
use crate::telemetry::event::RuleLabels;
use crate::telemetry::names;

/// Judging times: microseconds for a few patterns, seconds if a model judges.
const LAG_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0,
];

/// Metrics of judged answers, and of answers and spans that were dropped.
#[derive(Debug)]
pub(in crate::telemetry) struct Compliance {
    pub(in crate::telemetry) responses: IntCounterVec,
    pub(in crate::telemetry) violations: RuleCounters,
    pub(in crate::telemetry) lag: Histogram,
    pub(in crate::telemetry) dropped: IntCounter,
    pub(in crate::telemetry) spans_dropped: Total,
}

impl Compliance {
    pub(in crate::telemetry) fn register(build: &Build) -> Result<Self, Error> {
        Ok(Self {
            responses: build.counters(
                names::COMPLIANCE_RESPONSES_TOTAL,
                "Answers to clients that were judged against the active policies.",
                &["verdict"],
            )?,
            violations: RuleCounters {
                counters: build.counters(
                    names::POLICY_VIOLATIONS_TOTAL,
                    "Rules that judged answers violate.",
                    &["policy", "rule", "severity"],
                )?,
                active: Mutex::default(),
            },
            lag: build.histogram(
                names::COMPLIANCE_JUDGE_LAG_SECONDS,
                "Time from an answer's last byte to its judgement.",
                LAG_BUCKETS,
            )?,
            dropped: build.counter(
                names::COMPLIANCE_RESPONSES_DROPPED_TOTAL,
                "Answers that were not judged because too many waited.",
            )?,
            spans_dropped: build.total(
                names::TRACE_SPANS_DROPPED_TOTAL,
                "Spans that did not reach the trace collector.",
            )?,
        })
    }
}

/// Counters with one series for each active rule.
#[derive(Debug)]
pub(in crate::telemetry) struct RuleCounters {
    counters: IntCounterVec,
    /// The active rules, with the answers that had been judged when each became active.
    active: Mutex<BTreeMap<RuleLabels, u64>>,
}

impl RuleCounters {
    /// Sets the active rules: new ones start at 0, existing ones keep their counts, others are
    /// removed. `judged` answers have been judged so far.
    pub(in crate::telemetry) fn set(&self, rules: BTreeSet<RuleLabels>, judged: u64) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        for rule in &rules {
            self.counters.with_label_values(&values(rule));
        }
        for removed in active.keys().filter(|rule| !rules.contains(rule)) {
            if let Err(error) = self.counters.remove_label_values(&values(removed)) {
                tracing::debug!(%error, ?removed, "an outdated series did not exist");
            }
        }
        let since = |rule: RuleLabels| {
            let since = active.get(&rule).copied().unwrap_or(judged);
            (rule, since)
        };
        *active = rules.into_iter().map(since).collect();
    }

    /// Counts a violation, unless the rule is no longer active.
    pub(in crate::telemetry) fn count(&self, rule: &RuleLabels) {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if active.contains_key(rule) {
            self.counters.with_label_values(&values(rule)).inc();
        }
    }

    /// Every active rule with its count, and the answers that were judged before it was active.
    pub(in crate::telemetry) fn counts(&self) -> Vec<(RuleLabels, u64, u64)> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |(rule, since): (&RuleLabels, &u64)| {
            let counter = self.counters.with_label_values(&values(rule));
            (rule.clone(), counter.get(), *since)
        };
        active.iter().map(count).collect()
    }
}

fn values(rule: &RuleLabels) -> [&str; 3] {
    [&rule.policy, &rule.rule, rule.severity]
}
