//! What was seen of two generations, and what follows from it.

use std::collections::BTreeSet;

use serde::Serialize;

use super::CanaryRules;
use super::histogram::Histogram;
use super::sequential::Evidence;
use super::split::WHOLE;

/// The probability that a generation which is no worse goes back, over a whole canary and all signals.
const FALSE_ALARMS: f64 = 0.01;
/// Answers of both generations before times are compared: the next one's caches are empty at first.
const WARM: u64 = 30;
/// Beyond so many times what nine of ten answers of the current generation take, an answer is slow.
const SLOW: f64 = 1.5;
/// So many standard errors above what is tolerated, a step does not go on, although nothing is proven: where
/// few users make many requests, there is little to prove it by.
const DOUBT: f64 = 2.0;
/// Most keys whose failures are remembered. Once they are reached, the test has long decided.
const MOST_KEYS: usize = 4096;

/// What is compared, and how many times as often the next generation may have it.
const SIGNALS: [(&str, f64); 3] = [("errors", 1.2), ("slow", 1.5), ("violations", 1.2)];
const ERRORS: usize = 0;
const SLOWNESS: usize = 1;
const VIOLATIONS: usize = 2;

/// What was seen of a request in a canary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The generation that the canary is of.
    pub candidate: String,
    /// Its share when the request came.
    pub share: u16,
    /// Whether the request got it.
    pub of_candidate: bool,
    /// What stands for the request's key, if it had one.
    pub key: Option<u64>,
    /// What was seen.
    pub seen: Seen,
}

/// What can be seen of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Its answer ended.
    Answer {
        /// Whether it was an error of the server, or broke off; `None` if the client left.
        failed: Option<bool>,
        /// Milliseconds to its first byte.
        first_byte_ms: Option<u64>,
    },
    /// It was judged.
    Verdict {
        /// Whether it violates a policy.
        violates: bool,
    },
}

/// What was seen of one generation in a step.
#[derive(Clone, Debug, Default)]
struct Arm {
    answers: u64,
    failures: u64,
    slow: u64,
    verdicts: u64,
    violations: u64,
    first_byte: Histogram,
}

impl Arm {
    /// How many have a signal, and of how many.
    fn of(&self, signal: usize) -> (u64, u64) {
        match signal {
            ERRORS => (self.failures, self.answers),
            SLOWNESS => (self.slow, self.first_byte.total()),
            _ => (self.violations, self.verdicts),
        }
    }
}

/// What follows from what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not enough was seen.
    Wait,
    /// To the next share.
    On,
    /// Back to the current generation, and why.
    Back(String),
}

/// The comparison of two generations. Counts are those of a step, evidence that of all steps.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    candidate: String,
    share: u16,
    since: u64,
    /// The current generation's and the candidate's.
    arms: [Arm; 2],
    /// From so many milliseconds on, an answer is slow; fixed once there is something to fix it by.
    slow_from: Option<u64>,
    evidence: [Evidence; SIGNALS.len()],
    /// Keys with the signals that were counted for them. The requests of one key are no independent
    /// draws: only its first failure counts.
    counted: BTreeSet<(usize, u64)>,
}

impl Trial {
    pub(crate) fn new(candidate: &str, share: u16, now: u64) -> Self {
        Self {
            candidate: candidate.into(),
            share,
            since: now,
            arms: Default::default(),
            slow_from: None,
            evidence: SIGNALS.map(|(_, tolerated)| Evidence::new(tolerated)),
            counted: BTreeSet::new(),
        }
    }

    /// Whether it is the comparison for this candidate.
    pub(crate) fn is_of(&self, candidate: &str) -> bool {
        self.candidate == candidate
    }

    /// The next step.
    pub(crate) fn widen(&mut self, share: u16, now: u64) {
        self.share = share;
        self.since = now;
        self.arms = Default::default();
        self.slow_from = None;
    }

    /// The step's time begins again.
    pub(crate) fn restart_clock(&mut self, now: u64) {
        self.since = now;
    }

    /// Takes note of what was seen of a request.
    pub(crate) fn see(&mut self, observed: &Observation) {
        if observed.candidate != self.candidate {
            return;
        }
        let is_of_step = observed.share == self.share;
        let mut unused = Arm::default();
        let arm = match is_of_step {
            true => &mut self.arms[usize::from(observed.of_candidate)],
            false => &mut unused,
        };
        let mut bad = Vec::new();
        match observed.seen {
            Seen::Answer {
                failed,
                first_byte_ms,
            } => {
                if let Some(failed) = failed {
                    arm.answers += 1;
                    arm.failures += u64::from(failed);
                    bad.extend(failed.then_some(ERRORS));
                }
                // An error is quick.
                if let Some(ms) = first_byte_ms.filter(|_| failed != Some(true)) {
                    let is_slow = is_of_step && self.slow_from.is_some_and(|from| ms > from);
                    arm.first_byte.add(ms);
                    arm.slow += u64::from(is_slow);
                    bad.extend(is_slow.then_some(SLOWNESS));
                }
            }
            Seen::Verdict { violates } => {
                arm.verdicts += 1;
                arm.violations += u64::from(violates);
                bad.extend(violates.then_some(VIOLATIONS));
            }
        }
        for signal in bad {
            if self.counts(signal, observed.key) {
                self.evidence[signal].failed(observed.of_candidate, observed.share);
            }
        }
        self.fix_slow();
    }

    /// Whether a failure of this key counts.
    fn counts(&mut self, signal: usize, key: Option<u64>) -> bool {
        let Some(key) = key else { return true };
        self.counted.len() < MOST_KEYS && self.counted.insert((signal, key))
    }

    fn fix_slow(&mut self) {
        let warm = |arm: &Arm| arm.first_byte.total() >= WARM;
        if self.slow_from.is_none() && self.arms.iter().all(warm) {
            let most = self.arms[0].first_byte.quantile(0.9);
            self.slow_from = most.map(|ms| (ms as f64 * SLOW) as u64);
        }
    }

    /// What follows at this time.
    pub(crate) fn verdict(&self, now: u64, rules: &CanaryRules) -> Verdict {
        if let Some(why) = self.against() {
            return Verdict::Back(why);
        }
        let took = now.saturating_sub(self.since);
        let enough = |arm: &Arm| arm.answers >= rules.min_requests;
        let is_enough = self.arms.iter().all(enough);
        let doubt = (0..SIGNALS.len()).find(|signal| self.looks_worse(*signal));
        if is_enough && doubt.is_none() && took >= rules.min_ms {
            return Verdict::On;
        }
        if took < rules.max_ms {
            return Verdict::Wait;
        }
        if let Some(signal) = doubt.filter(|_| is_enough) {
            let (seconds, why) = (rules.max_ms / 1000, self.compare(signal));
            return Verdict::Back(format!("{why}; that was not refuted within {seconds} s"));
        }
        let [current, candidate] = self.arms.each_ref().map(|arm| arm.answers);
        Verdict::Back(format!(
            "canary: too few requests to compare within {} s at a share of {}: the new generation answered \
             {candidate} and the current one {current}, and {} of each are needed",
            rules.max_ms / 1000,
            percent(self.share),
            rules.min_requests
        ))
    }

    /// The evidence that the candidate is worse, if there is enough of it.
    fn against(&self) -> Option<String> {
        let is_proven = |e: &Evidence| e.log() >= limit().ln();
        let signal = self.evidence.iter().position(is_proven)?;
        Some(self.compare(signal))
    }

    /// Whether the candidate's share of a signal in this step is above what is tolerated by more than
    /// chance makes likely.
    fn looks_worse(&self, signal: usize) -> bool {
        let [current, candidate] = self.arms.each_ref().map(|arm| arm.of(signal));
        let (n, m) = (current.1 as f64, candidate.1 as f64);
        if n == 0.0 || m == 0.0 {
            return false;
        }
        let (before, after) = (current.0 as f64 / n, candidate.0 as f64 / m);
        let both = (current.0 + candidate.0) as f64 / (n + m);
        let error = (both * (1.0 - both) * (1.0 / n + 1.0 / m)).sqrt();
        after > before * SIGNALS[signal].1 + DOUBT * error
    }

    fn compare(&self, signal: usize) -> String {
        let (name, tolerated) = SIGNALS[signal];
        let what = ["failed", "were slow", "violate a policy"][signal];
        let count = |arm: &Arm| {
            let (bad, all) = arm.of(signal);
            format!("{bad} of {all} {what}")
        };
        let [current, candidate] = self.arms.each_ref().map(count);
        format!(
            "canary: {name}: at a share of {}, {candidate} of the new generation, and {current} of the current \
             one; up to {tolerated} times as many are tolerated",
            percent(self.share)
        )
    }

    /// For people.
    pub(crate) fn status(&self, now: u64) -> TrialStatus {
        let arm = |arm: &Arm| ArmStatus {
            answers: arm.answers,
            failures: arm.failures,
            slow: arm.slow,
            verdicts: arm.verdicts,
            violations: arm.violations,
            first_byte_ms: [0.5, 0.9].map(|share| arm.first_byte.quantile(share)),
        };
        let evidence = SIGNALS.iter().zip(&self.evidence);
        TrialStatus {
            share: f64::from(self.share) / f64::from(WHOLE),
            seconds: now.saturating_sub(self.since) / 1000,
            current: arm(&self.arms[0]),
            candidate: arm(&self.arms[1]),
            slow_from_ms: self.slow_from,
            evidence: evidence
                .map(|((signal, _), e)| (*signal, (e.log() / limit().ln()).max(0.0)))
                .collect(),
        }
    }
}

/// The likelihood ratio from which on the candidate goes back.
fn limit() -> f64 {
    SIGNALS.len() as f64 / FALSE_ALARMS
}

fn percent(share: u16) -> String {
    format!("{} %", f64::from(share) / 100.0)
}

/// A canary, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrialStatus {
    /// The share of the requests that get the next generation.
    pub share: f64,
    /// How long this step has taken.
    pub seconds: u64,
    /// What was seen of the current generation in this step.
    pub current: ArmStatus,
    /// What was seen of the next one.
    pub candidate: ArmStatus,
    /// From how many milliseconds to the first byte on an answer is slow.
    pub slow_from_ms: Option<u64>,
    /// For each signal how far the evidence against the next generation has come; at 1 it goes back.
    pub evidence: Vec<(&'static str, f64)>,
}

/// One generation in a canary, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmStatus {
    /// Answers that ended.
    pub answers: u64,
    /// Those of them that were errors of a server, or broke off.
    pub failures: u64,
    /// Answers whose first byte was late.
    pub slow: u64,
    /// Answers that were judged.
    pub verdicts: u64,
    /// Those of them that violate a policy.
    pub violations: u64,
    /// The median and the ninetieth percentile of the times to the first byte.
    pub first_byte_ms: [Option<u64>; 2],
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
