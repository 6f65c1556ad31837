//! Prepares a policy set for use as an oracle: fits probes, connects judges, and measures every
//! rule on its examples.

use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::error::RuleError;
use super::features::FeatureSource;
use super::judge::Judge;
use super::matchers::{Matchers, RuleVerdict};
use super::probe::FittedProbe;
use super::rules::RuleOracle;
use super::scores::ScoreCache;
use super::trust::{RuleTrust, measure};
use crate::policy::{Matcher, Policy, PolicyError, PolicyErrors, PolicySet};

/// What preparing a set needs.
#[derive(Clone, Debug)]
pub struct Services {
    /// Source of hidden states, for probes; `None` if no model is loaded.
    pub features: Option<Arc<dyn FeatureSource>>,
    /// Cache of judges' answers.
    pub scores: Arc<dyn ScoreCache>,
    /// Directory of fitted probes; `None` stores none.
    pub probes: Option<PathBuf>,
    /// Once it is set, judges are not waited for any more; `None` if that never happens.
    pub closing: Option<Arc<AtomicBool>>,
}

/// A set whose rules can all be evaluated.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The set's probes and judges.
    pub matchers: Arc<Matchers>,
    /// Measurements of every rule, in set order.
    pub trust: Vec<RuleTrust>,
}

impl Prepared {
    /// The oracle over the set's enforced policies.
    pub fn oracle(&self, set: &PolicySet) -> RuleOracle {
        RuleOracle::new(set).with_matchers(self.matchers.clone())
    }

    /// Examples that comply with their own rule and violate another one, as errors. No judge is
    /// asked.
    pub fn contradictions(&self, set: &PolicySet) -> Vec<PolicyError> {
        let matchers = self.matchers.without_judges();
        set.contradictions(&|rule, exchange| {
            let verdicts = matchers.decide(&[(*exchange, rule)]);
            matches!(verdicts.first(), Some(RuleVerdict::Known(true)))
        })
    }

    /// Rules below their minimum, as errors at the position of their policy.
    pub(crate) fn shortfalls(&self, set: &PolicySet) -> Vec<PolicyError> {
        self.trust
            .iter()
            .filter_map(|trust| {
                let policy = set.get(&trust.policy)?;
                let why = trust.shortfall()?;
                Some(error(policy, &trust.rule, why))
            })
            .collect()
    }
}

/// Whether any rule of the set needs a probe, and whether any needs a judge.
pub fn needs_services(set: &PolicySet) -> (bool, bool) {
    let (mut probes, mut judges) = (false, false);
    for rule in set.policies().iter().flat_map(|policy| &policy.rules) {
        for matcher in rule.matchers() {
            match matcher {
                Matcher::Probe(_) => probes = true,
                Matcher::Judge(_) => judges = true,
            }
        }
    }
    (probes, judges)
}

/// Fits probes, connects judges and measures every rule; rules below their minimum are reported by
/// [`Prepared::shortfalls`].
///
/// # Errors
/// Every probe that cannot be fitted and every judge that cannot be reached.
pub fn prepare(set: &PolicySet, services: &Services) -> Result<Prepared, PolicyErrors> {
    let mut errors = Vec::new();
    let mut matchers = Matchers {
        features: services.features.clone(),
        ..Matchers::default()
    };
    for policy in set.policies() {
        for rule in &policy.rules {
            for matcher in rule.matchers() {
                if let Err(why) = add(&mut matchers, matcher, services) {
                    errors.push(error(policy, &rule.id, why));
                }
            }
        }
    }
    if !errors.is_empty() {
        return Err(PolicyErrors(errors));
    }
    let mut trust = Vec::new();
    for policy in set.policies() {
        for rule in &policy.rules {
            match measure(&policy.id, rule, &matchers) {
                Ok(figures) => trust.push(figures),
                Err(why) => errors.push(error(policy, &rule.id, why)),
            }
        }
    }
    if !errors.is_empty() {
        return Err(PolicyErrors(errors));
    }
    Ok(Prepared {
        matchers: Arc::new(matchers),
        trust,
    })
}

/// Like [`prepare`], with the checks a server makes before it activates a set: every example of a
/// rule that needs only the text passes, none complies with its rule and violates another, and no
/// rule is below its minimum.
///
/// # Errors
/// Those of [`prepare`], failing and contradicting examples, and rules below their minimum.
pub fn prepare_trusted(set: &PolicySet, services: &Services) -> Result<Prepared, PolicyErrors> {
    let failures = set.run_examples().into_errors();
    if !failures.is_empty() {
        return Err(PolicyErrors(failures));
    }
    let prepared = prepare(set, services)?;
    let contradictions = prepared.contradictions(set);
    if !contradictions.is_empty() {
        return Err(PolicyErrors(contradictions));
    }
    match prepared.shortfalls(set) {
        short if short.is_empty() => Ok(prepared),
        short => Err(PolicyErrors(short)),
    }
}

fn add(
    matchers: &mut Matchers,
    matcher: Matcher<'_>,
    services: &Services,
) -> Result<(), RuleError> {
    match matcher {
        Matcher::Probe(spec) => {
            if matchers.probes.contains_key(spec.id()) {
                return Ok(());
            }
            let source = services.features.as_deref().ok_or(RuleError::NoModel)?;
            let dir = services.probes.as_deref();
            let key = FittedProbe::key(spec, source.base());
            let fitted = match dir.and_then(|dir| FittedProbe::load(dir, &key)) {
                Some(known) => known,
                None => {
                    let fitted = FittedProbe::fit(spec, source)?;
                    if let Some(dir) = dir {
                        fitted.store(dir);
                    }
                    fitted
                }
            };
            matchers
                .probes
                .insert(spec.id().to_owned(), Arc::new(fitted));
        }
        Matcher::Judge(spec) => {
            if let Entry::Vacant(entry) = matchers.judges.entry(spec.id()) {
                let judge = Judge::prepare_closing(
                    spec.clone(),
                    services.scores.clone(),
                    services.closing.clone(),
                );
                entry.insert(Arc::new(judge?));
            }
        }
    }
    Ok(())
}

fn error(policy: &Policy, rule: &str, why: impl std::fmt::Display) -> PolicyError {
    PolicyError {
        file: policy.source.file.clone(),
        line: Some(policy.source.line),
        column: Some(policy.source.column),
        message: format!("rule `{rule}`: {why}"),
    }
}
