//! `realign triage --data FILE`: one file of any size, in bounded memory.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::part::Part;
use super::{CliError, RuleCount};
use realign_align::oracle::{Oracle, RuleOracle};
use realign_align::preferences::{Pair, SkippedLine, for_each_pair};
use realign_core::TriageCounts;

/// Pairs judged at once.
const CHUNK: usize = 1024;
/// Bad lines that are shown; all are counted.
const SHOWN: usize = 20;

/// The triage of a file that is read as a stream.
#[derive(Debug, Serialize)]
pub struct StreamReport {
    /// Revision of the policy set that judged.
    pub(crate) policy_revision: String,
    /// Pairs, repeated ones left out.
    pub(crate) pairs: usize,
    /// Pairs per category.
    pub(crate) counts: TriageCounts,
    /// Share of pairs in conflict with the policies, 0 to 1.
    pub(crate) gap_ratio: f64,
    /// Pairs whose category depends on a verdict that is not available.
    pub(crate) undecided: usize,
    /// Violations of each rule, in set order.
    pub(crate) rules: Vec<RuleCount>,
    /// Pairs that repeat an earlier one.
    pub(crate) duplicates: usize,
    /// Pairs that prefer the other response of an earlier pair.
    pub(crate) contradictions: usize,
    /// Lines that gave no pair.
    pub(crate) skipped: usize,
    /// The first skipped lines.
    pub(crate) skipped_lines: Vec<SkippedLine>,
}

impl StreamReport {
    /// Triages a file; `judged` is called with the number of pairs in each finished chunk.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn read(
        (oracle, part): (&RuleOracle, &Part),
        file: &Path,
        mut judged: impl FnMut(usize),
    ) -> Result<StreamReport, CliError> {
        let rules = oracle.rules().map(|(policy, rule)| RuleCount {
            policy: policy.id.clone(),
            rule: rule.id.clone(),
            severity: rule.severity,
            chosen: 0,
            rejected: 0,
        });
        let mut report = StreamReport {
            policy_revision: oracle.revision().to_owned(),
            pairs: 0,
            counts: TriageCounts::default(),
            gap_ratio: 0.0,
            undecided: 0,
            rules: rules.collect(),
            duplicates: 0,
            contradictions: 0,
            skipped: 0,
            skipped_lines: Vec::new(),
        };
        let mut earlier = EarlierPairs::default();
        let mut chunk: Vec<Pair> = Vec::with_capacity(CHUNK);
        for_each_pair(file, |line| match line {
            Ok(pair) => match earlier.insert(&pair) {
                _ if !part.has(&pair) => {}
                Repeats::Pair => report.duplicates += 1,
                repeats => {
                    report.contradictions += usize::from(repeats == Repeats::Opposite);
                    chunk.push(pair);
                    if chunk.len() == CHUNK {
                        report.add(oracle, part, &chunk);
                        judged(chunk.len());
                        chunk.clear();
                    }
                }
            },
            Err(line) => {
                report.skipped += 1;
                if report.skipped_lines.len() < SHOWN {
                    report.skipped_lines.push(line);
                }
            }
        })?;
        report.add(oracle, part, &chunk);
        report.gap_ratio = report.counts.gap_ratio();
        Ok(report)
    }

    fn add(&mut self, oracle: &RuleOracle, part: &Part, pairs: &[Pair]) {
        let done = part.triage(pairs, oracle);
        self.pairs += pairs.len();
        self.counts.invert += done.counts.invert;
        self.counts.punish += done.counts.punish;
        self.counts.retain += done.counts.retain;
        self.undecided += done.undecided;
        for item in &done.items {
            for violation in &item.chosen.violations {
                self.rule(&violation.policy, &violation.rule, |count| {
                    count.chosen += 1
                });
            }
            for violation in &item.rejected.violations {
                self.rule(&violation.policy, &violation.rule, |count| {
                    count.rejected += 1
                });
            }
        }
    }

    fn rule(&mut self, policy: &str, rule: &str, change: impl Fn(&mut RuleCount)) {
        let named = |count: &&mut RuleCount| count.policy == policy && count.rule == rule;
        self.rules.iter_mut().find(named).map(change);
    }

    /// The report as text for a terminal.
    pub(crate) fn text(&self) -> String {
        let c = self.counts;
        let mut text = format!(
            "{} pairs: {} invert, {} punish, {} retain; gap ratio {:.3}\n{} duplicates left out, {} contradictions, {} lines skipped, {} pairs undecided\n",
            self.pairs,
            c.invert,
            c.punish,
            c.retain,
            self.gap_ratio,
            self.duplicates,
            self.contradictions,
            self.skipped,
            self.undecided
        );
        for line in &self.skipped_lines {
            let _infallible = writeln!(text, "skipped {line}");
        }
        for rule in &self.rules {
            let _infallible = writeln!(
                text,
                "{}:{}  {}  violated by {} chosen, {} rejected",
                rule.policy,
                rule.rule,
                rule.severity.as_str(),
                rule.chosen,
                rule.rejected
            );
        }
        text
    }
}

/// What a pair repeats of the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeats {
    Nothing,
    Pair,
    /// A pair that prefers the other response.
    Opposite,
}

/// Hashes of the pairs so far, 64 bits each: of two million pairs, two coincide by chance once in
/// four million files.
#[derive(Default)]
struct EarlierPairs {
    hashes: HashSet<u64>,
}

impl EarlierPairs {
    fn insert(&mut self, pair: &Pair) -> Repeats {
        let (hash, order) = pair.unordered_hash();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        let key = u64::from_le_bytes(first) & !1 | u64::from(order);
        match (self.hashes.insert(key), self.hashes.contains(&(key ^ 1))) {
            (false, _) => Repeats::Pair,
            (true, true) => Repeats::Opposite,
            (true, false) => Repeats::Nothing,
        }
    }
}
