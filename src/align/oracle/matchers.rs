//! Prepared probes and judges, and the order in which they run: first the text, then the base model
//! for rules that the text does not decide, then a judge for those still undecided.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::features::{FeatureError, FeatureSource};
use super::judge::{Judge, JudgeUsage};
use super::probe::FittedProbe;
use super::scores::in_parallel;
use crate::policy::{
    Exchange, JudgeSpec, Matcher, Policy, ProbeSpec, Rule, RuleExplanation, RuleOutcome, Score,
    Scores, explain_rule,
};

/// Questions decided together, which limits the hidden states in memory.
const BATCH: usize = 256;
/// Why a question is undecided once judging was told to stop.
const STOPPED: &str = "judging was stopped";

/// The prepared probes and judges of a policy set's rules.
#[derive(Debug, Default)]
pub struct Matchers {
    pub(super) features: Option<Arc<dyn FeatureSource>>,
    pub(super) probes: HashMap<String, Arc<FittedProbe>>,
    pub(super) judges: HashMap<String, Arc<Judge>>,
    pub(super) decided_by: DecidedBy,
}

/// Verdicts by the kind of matcher that decided them.
#[derive(Debug, Default)]
pub(super) struct DecidedBy {
    text: AtomicU64,
    probe: AtomicU64,
    judge: AtomicU64,
    undecided: AtomicU64,
}

/// How many verdicts (one per response and rule) each kind of matcher decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MatcherUsage {
    /// Decided by the text and labels.
    pub text: u64,
    /// Decided by a probe, with hidden states.
    pub probe: u64,
    /// Decided by a judge.
    pub judge: u64,
    /// Not decided, because something failed.
    pub undecided: u64,
    /// Share of verdicts that needed a judge, 0 to 1.
    pub judge_share: f64,
    /// Requests to judges and their cost.
    pub judges: JudgeUsage,
}

/// A verdict on one response by one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RuleVerdict {
    /// `true` if the response violates the rule.
    Known(bool),
    /// The rule could not be decided; the reason.
    Undecided(String),
}

impl Matchers {
    /// What a rule's verdicts depend on besides the rule: its fitted probes and thresholds. Empty
    /// for a rule that needs only the text.
    pub(crate) fn identity(&self, rule: &Rule) -> String {
        let parts = rule.matchers().into_iter().map(|matcher| match matcher {
            Matcher::Probe(spec) => match self.probes.get(spec.id()) {
                Some(fitted) => fitted.key.clone(),
                None => "unfitted".to_owned(),
            },
            Matcher::Judge(spec) => match self.judges.get(&spec.id()) {
                Some(judge) => format!("judge {}", judge.threshold().to_bits()),
                None => "no judge".to_owned(),
            },
        });
        parts.collect::<Vec<_>>().join(" ")
    }

    /// Content hash of the base model that probes read, if there are any.
    pub(super) fn base(&self) -> Option<&str> {
        self.features.as_ref().map(|features| features.base())
    }

    /// The same probes without judges, for estimates that send no requests: verdicts that need a
    /// judge are undecided.
    pub fn without_judges(&self) -> Matchers {
        Matchers {
            features: self.features.clone(),
            probes: self.probes.clone(),
            ..Matchers::default()
        }
    }

    /// Counts since the matchers were prepared.
    pub fn usage(&self) -> MatcherUsage {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let r = &self.decided_by;
        let [text, probe, judge, undecided] = [&r.text, &r.probe, &r.judge, &r.undecided].map(get);
        let total = (text + probe + judge + undecided).max(1);
        let mut judges = JudgeUsage::default();
        for usage in self.judges.values().map(|judge| judge.usage()) {
            judges.calls += usage.calls;
            judges.cached += usage.cached;
            judges.retries += usage.retries;
            judges.prompt_tokens += usage.prompt_tokens;
            judges.completion_tokens += usage.completion_tokens;
            judges.cost += usage.cost;
        }
        MatcherUsage {
            text,
            probe,
            judge,
            undecided,
            judge_share: judge as f64 / total as f64,
            judges,
        }
    }

    /// Decides each question, a response and a rule; verdicts in the questions' order.
    pub(crate) fn decide(&self, questions: &[(Exchange<'_>, &Rule)]) -> Vec<RuleVerdict> {
        self.decide_while(questions, &|| true)
    }

    /// As [`Matchers::decide`]; once `proceed` says no, the rest is undecided: a judge may take hours.
    pub(super) fn decide_while(
        &self,
        questions: &[(Exchange<'_>, &Rule)],
        proceed: &(dyn Fn() -> bool + Sync),
    ) -> Vec<RuleVerdict> {
        questions
            .chunks(BATCH)
            .flat_map(|chunk| match proceed() {
                true => self.decide_chunk(chunk, proceed),
                false => vec![RuleVerdict::Undecided(STOPPED.into()); chunk.len()],
            })
            .collect()
    }

    fn decide_chunk(
        &self,
        questions: &[(Exchange<'_>, &Rule)],
        proceed: &(dyn Fn() -> bool + Sync),
    ) -> Vec<RuleVerdict> {
        let mut outcomes: Vec<RuleOutcome> = questions
            .iter()
            .map(|(exchange, rule)| rule.evaluate(exchange))
            .collect();
        let open = undecided(&outcomes);
        self.decided_by
            .text
            .fetch_add((outcomes.len() - open.len()) as u64, Ordering::Relaxed);
        if open.is_empty() {
            return outcomes.into_iter().map(|o| known(o, None)).collect();
        }
        let open_questions: Vec<_> = open.iter().map(|&i| questions[i]).collect();
        let (features, failure) = match self.features_of(&open_questions) {
            Ok(features) => (features, None),
            Err(error) => (
                vec![Features::default(); open.len()],
                Some(error.to_string()),
            ),
        };
        for (&index, features) in open.iter().zip(&features) {
            let (exchange, rule) = &questions[index];
            outcomes[index] =
                rule.evaluate_with(exchange, &self.answers(features, AllowedMatchers::Probes));
        }
        let for_judges: Vec<usize> = (0..open.len())
            .filter(|&slot| outcomes[open[slot]] == RuleOutcome::Undecided)
            .collect();
        self.decided_by
            .probe
            .fetch_add((open.len() - for_judges.len()) as u64, Ordering::Relaxed);
        let concurrency = self.judges.values().map(|judge| judge.spec().concurrency);
        let judged = in_parallel(&for_judges, concurrency.max().unwrap_or(1), |&slot| {
            if !proceed() {
                return (RuleOutcome::Undecided, Some(STOPPED.into()));
            }
            let (exchange, rule) = &questions[open[slot]];
            let answers = self.answers(&features[slot], AllowedMatchers::All);
            (rule.evaluate_with(exchange, &answers), answers.failure())
        });
        let mut verdicts: Vec<RuleVerdict> = outcomes.into_iter().map(|o| known(o, None)).collect();
        for (&slot, (outcome, why)) in for_judges.iter().zip(judged) {
            let counter = match outcome {
                RuleOutcome::Undecided => &self.decided_by.undecided,
                _ => &self.decided_by.judge,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            verdicts[open[slot]] = known(outcome, why.or_else(|| failure.clone()));
        }
        verdicts
    }

    /// What a rule says about an exchange, and what its tests found.
    pub(super) fn explain(
        &self,
        policy: &Policy,
        rule: &Rule,
        exchange: &Exchange<'_>,
    ) -> RuleExplanation {
        let (features, failure) = match self.features_of(&[(*exchange, rule)]) {
            Ok(mut features) => (features.pop().unwrap_or_default(), None),
            Err(error) => (Features::default(), Some(error.to_string())),
        };
        let probes = self.answers(&features, AllowedMatchers::Probes);
        if rule.evaluate_with(exchange, &probes) != RuleOutcome::Undecided {
            return explain_rule((policy, rule), exchange, &probes, None);
        }
        let all = self.answers(&features, AllowedMatchers::All);
        rule.evaluate_with(exchange, &all);
        let failure = all.failure().or(failure);
        explain_rule((policy, rule), exchange, &all, failure)
    }

    fn answers<'a>(&'a self, features: &'a Features, allowed: AllowedMatchers) -> Answers<'a> {
        Answers {
            matchers: self,
            features,
            allowed,
            failure: Mutex::new(None),
        }
    }

    /// Hidden states for questions that the text does not decide, computed in one batch; empty for
    /// rules without a probe.
    pub(super) fn features_of(
        &self,
        questions: &[(Exchange<'_>, &Rule)],
    ) -> Result<Vec<Features>, FeatureError> {
        let mut out = vec![Features::default(); questions.len()];
        let has_fitted_probe = |rule: &Rule| {
            rule.matchers().into_iter().any(|matcher| match matcher {
                Matcher::Probe(spec) => self.probes.contains_key(spec.id()),
                Matcher::Judge(_) => false,
            })
        };
        let wanted: Vec<usize> = (0..questions.len())
            .filter(|&index| has_fitted_probe(questions[index].1))
            .collect();
        let Some(source) = self.features.as_ref().filter(|_| !wanted.is_empty()) else {
            return Ok(out);
        };
        // Several rules may need one exchange, which runs through the model only once.
        let mut distinct: Vec<Exchange<'_>> = Vec::new();
        let mut slot_of: HashMap<(&str, &str), usize> = HashMap::new();
        let slots: Vec<usize> = wanted
            .iter()
            .map(|&index| {
                let exchange = questions[index].1.thinking.sees(&questions[index].0);
                *slot_of
                    .entry((exchange.prompt, exchange.response))
                    .or_insert_with(|| {
                        distinct.push(exchange);
                        distinct.len() - 1
                    })
            })
            .collect();
        let computed = source.features(&distinct)?;
        for (&index, slot) in wanted.iter().zip(slots) {
            out[index] = Features(computed[slot].clone());
        }
        Ok(out)
    }
}

fn undecided(outcomes: &[RuleOutcome]) -> Vec<usize> {
    outcomes
        .iter()
        .enumerate()
        .filter(|(_, outcome)| **outcome == RuleOutcome::Undecided)
        .map(|(index, _)| index)
        .collect()
}

fn known(outcome: RuleOutcome, why: Option<String>) -> RuleVerdict {
    match outcome {
        RuleOutcome::Violated => RuleVerdict::Known(true),
        RuleOutcome::NotApplicable | RuleOutcome::NotMatched | RuleOutcome::Excepted(_) => {
            RuleVerdict::Known(false)
        }
        RuleOutcome::Undecided => RuleVerdict::Undecided(
            why.unwrap_or_else(|| "its probe or judge is not prepared".to_owned()),
        ),
    }
}

/// Pooled hidden states of one exchange, a vector per layer; empty if no probe needs them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Features(pub(super) Vec<Vec<f32>>);

/// Which matchers may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AllowedMatchers {
    /// Only probes, which are cheap once the features are computed.
    Probes,
    /// Probes and judges.
    All,
}

/// Answers for one exchange.
pub(super) struct Answers<'a> {
    matchers: &'a Matchers,
    features: &'a Features,
    allowed: AllowedMatchers,
    failure: Mutex<Option<String>>,
}

impl Answers<'_> {
    fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Matchers {
    /// A fitted probe's answer; `None` if the probe is not fitted or there are no features.
    pub(super) fn probe_score(
        &self,
        spec: &ProbeSpec,
        exchange: &Exchange<'_>,
        features: &Features,
    ) -> Option<Score> {
        let probe = self.probes.get(spec.id())?;
        (!features.0.is_empty()).then(|| probe.score(exchange, &features.0))
    }
}

impl Scores for Answers<'_> {
    fn probe(&self, probe: &ProbeSpec, exchange: &Exchange<'_>) -> Option<Score> {
        self.matchers.probe_score(probe, exchange, self.features)
    }

    fn judge(&self, judge: &JudgeSpec, exchange: &Exchange<'_>) -> Option<Score> {
        if self.allowed != AllowedMatchers::All {
            return None;
        }
        let judge = self.matchers.judges.get(&judge.id())?;
        match judge.score(exchange) {
            Ok(score) => Some(score),
            Err(error) => {
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(error.to_string());
                None
            }
        }
    }
}
