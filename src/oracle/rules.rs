//! The rule oracle.

use std::sync::Arc;

use crate::policy::{Policy, PolicySet, Rule};

use super::cache::{CacheCounts, VerdictCache, VerdictKey};
use super::{Exchange, Judgement, Oracle, Violation};

/// How many verdicts are asked of a cache at once: enough to make a transaction worth while,
/// few enough to keep the keys in a few hundred kilobytes.
const CACHE_BATCH: usize = 4096;

/// Judges by the rules of a policy set.
#[derive(Clone, Debug)]
pub struct RuleOracle {
    policies: Vec<Arc<Policy>>,
    revision: String,
}

impl RuleOracle {
    /// Judges by the enforced policies; its revision is the set's.
    pub fn new(set: &PolicySet) -> RuleOracle {
        let policies = set
            .policies()
            .iter()
            .filter(|p| p.is_enforced())
            .cloned()
            .collect();
        RuleOracle {
            policies,
            revision: set.revision().to_owned(),
        }
    }

    /// Judges by all policies, `dryrun` ones included; its revision is the set's content hash.
    pub fn with_dryrun(set: &PolicySet) -> RuleOracle {
        RuleOracle {
            policies: set.policies().to_vec(),
            revision: set.content_hash().to_owned(),
        }
    }

    /// The rules it judges by, each with its policy, in the order of a judgement's violations.
    pub fn rules(&self) -> impl Iterator<Item = (&Policy, &Rule)> {
        self.policies
            .iter()
            .flat_map(|p| p.rules.iter().map(move |rule| (p.as_ref(), rule)))
    }

    /// Judges many responses, one judgement each in the same order, taking from the cache what it
    /// knows and adding what it does not. The judgements equal [`Oracle::judge`]'s.
    pub fn judge_cached(
        &self,
        exchanges: &[Exchange<'_>],
        cache: &dyn VerdictCache,
    ) -> (Vec<Judgement>, CacheCounts) {
        let rules: Vec<(&Policy, &Rule)> = self.rules().collect();
        let mut judgements = Vec::with_capacity(exchanges.len());
        let mut counts = CacheCounts::default();
        for chunk in exchanges.chunks((CACHE_BATCH / rules.len().max(1)).max(1)) {
            let keys: Vec<VerdictKey> = chunk
                .iter()
                .flat_map(|exchange| VerdictKey::for_rules(exchange, rules.iter().map(|r| r.1)))
                .collect();
            let known = cache.get_many(&keys);
            let mut fresh = Vec::new();
            for (i, exchange) in chunk.iter().enumerate() {
                let mut judgement = Judgement::default();
                for (j, (policy, rule)) in rules.iter().enumerate() {
                    let at = i * rules.len() + j;
                    let violated = match known.get(at).copied().flatten() {
                        Some(verdict) => {
                            counts.cached += 1;
                            verdict
                        }
                        None => {
                            counts.judged += 1;
                            let verdict = rule.violated_by(exchange);
                            fresh.push((keys[at], verdict));
                            verdict
                        }
                    };
                    if violated {
                        judgement.violations.push(violation(policy, rule));
                    }
                }
                judgements.push(judgement);
            }
            cache.put_many(&fresh);
        }
        (judgements, counts)
    }
}

impl Oracle for RuleOracle {
    fn judge(&self, exchange: &Exchange<'_>) -> Judgement {
        let violated = self.rules().filter(|(_, rule)| rule.violated_by(exchange));
        Judgement {
            violations: violated
                .map(|(policy, rule)| violation(policy, rule))
                .collect(),
        }
    }

    fn revision(&self) -> &str {
        &self.revision
    }
}

fn violation(policy: &Policy, rule: &Rule) -> Violation {
    Violation {
        policy: policy.id.clone(),
        rule: rule.id.clone(),
        severity: rule.severity,
    }
}
