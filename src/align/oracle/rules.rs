//! The oracle that evaluates the rules of a policy set.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::policy::{Policy, PolicySet, Rule, RuleExplanation};

use super::cache::{CacheCounts, VerdictCache, VerdictKey, exchange_digest, rule_digest};
use super::matchers::{MatcherUsage, Matchers, RuleVerdict};
use super::{Exchange, Judgement, Oracle, Undecided, Violation};

/// Verdicts looked up in a cache at once: enough that scanning a rule's verdicts pays off, few
/// enough that the keys take only megabytes.
const CACHE_BATCH: usize = 1 << 18;

/// Judges by the rules of a policy set.
#[derive(Clone, Debug)]
pub struct RuleOracle {
    policies: Vec<Arc<Policy>>,
    revision: String,
    matchers: Arc<Matchers>,
    proceed: Proceed,
}

/// Says whether to go on judging.
#[derive(Clone)]
struct Proceed(Arc<dyn Fn() -> bool + Send + Sync>);

impl Default for Proceed {
    fn default() -> Self {
        Self(Arc::new(|| true))
    }
}

impl fmt::Debug for Proceed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proceed")
    }
}

impl RuleOracle {
    /// An oracle over the enforced policies; its revision is the set's. Rules with probes or judges
    /// are undecided until it has matchers ([`RuleOracle::with_matchers`]).
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
            matchers: Arc::default(),
            proceed: Proceed::default(),
        }
    }

    /// An oracle over all policies, including `dryrun` ones; its revision is the set's content
    /// hash.
    pub fn with_dryrun(set: &PolicySet) -> RuleOracle {
        RuleOracle {
            policies: set.policies().to_vec(),
            revision: set.content_hash().to_owned(),
            matchers: Arc::default(),
            proceed: Proceed::default(),
        }
    }

    /// The same oracle with prepared probes and judges (see [`super::prepare()`]).
    pub fn with_matchers(self, matchers: Arc<Matchers>) -> RuleOracle {
        RuleOracle { matchers, ..self }
    }

    /// The same oracle, which stops where `proceed` says no: what it has not judged by then is
    /// undecided.
    pub fn proceeding_while(self, proceed: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        RuleOracle {
            proceed: Proceed(Arc::new(proceed)),
            ..self
        }
    }

    /// Counts of verdicts by the kind of matcher that decided them, and the judges' cost, since the
    /// matchers were prepared.
    pub fn usage(&self) -> MatcherUsage {
        self.matchers.usage()
    }

    /// The oracle's rules with their policies, in the order of a judgement's violations.
    pub fn rules(&self) -> impl Iterator<Item = (&Policy, &Rule)> {
        self.policies
            .iter()
            .flat_map(|p| p.rules.iter().map(move |rule| (p.as_ref(), rule)))
    }

    /// Content hash of the base model that the probes of these rules read; `None` if no rule has one.
    pub fn base(&self) -> Option<&str> {
        self.matchers.base()
    }

    /// What the verdicts of each rule depend on besides the text, by `policy:rule`: its content, the matchers' version, and
    /// how its probes (with the base model) and judges are fitted. 32 hex digits each.
    pub fn identities(&self) -> BTreeMap<String, String> {
        let identity = |(policy, rule): (&Policy, &Rule)| {
            let digest = rule_digest(rule, &self.matchers.identity(rule));
            (format!("{}:{}", policy.id, rule.id), hex::encode(digest))
        };
        self.rules().map(identity).collect()
    }

    /// What each rule says about an exchange, and what its tests found. Asks judges only where nothing
    /// else decides, as judging does.
    pub fn explain(&self, exchange: &Exchange<'_>) -> Vec<RuleExplanation> {
        self.rules()
            .map(|(policy, rule)| self.matchers.explain(policy, rule, exchange))
            .collect()
    }

    /// Judges many responses; one judgement each, in the same order. Verdicts found in the cache
    /// are used, others are computed and added to it. The judgements equal those of
    /// [`Oracle::judge`].
    pub fn judge_cached(
        &self,
        exchanges: &[Exchange<'_>],
        cache: &dyn VerdictCache,
    ) -> (Vec<Judgement>, CacheCounts) {
        let rules: Vec<(&Policy, &Rule)> = self.rules().collect();
        let digests: Vec<[u8; 16]> = rules
            .iter()
            .map(|(_, rule)| rule_digest(rule, &self.matchers.identity(rule)))
            .collect();
        let mut judgements = Vec::with_capacity(exchanges.len());
        let mut counts = CacheCounts::default();
        for chunk in exchanges.chunks((CACHE_BATCH / rules.len().max(1)).max(1)) {
            let texts: Vec<[u8; 16]> = chunk.iter().map(exchange_digest).collect();
            // Grouped by rule, which is the sort order of the keys.
            let keys: Vec<VerdictKey> = digests
                .iter()
                .flat_map(|rule| texts.iter().map(|text| VerdictKey::of(text, rule)))
                .collect();
            let mut known = cache.get_many(&keys);
            known.resize(keys.len(), None);
            let open: Vec<usize> = (0..keys.len()).filter(|&at| known[at].is_none()).collect();
            counts.judged += open.len();
            counts.cached += keys.len() - open.len();
            let questions: Vec<(Exchange<'_>, &Rule)> = open
                .iter()
                .map(|at| (chunk[at % chunk.len()], rules[at / chunk.len()].1))
                .collect();
            let verdicts = self.matchers.decide_while(&questions, &*self.proceed.0);
            let mut fresh = Vec::with_capacity(open.len());
            let mut failures = Vec::new();
            for (&at, verdict) in open.iter().zip(verdicts) {
                match verdict {
                    RuleVerdict::Known(violates) => {
                        known[at] = Some(violates);
                        fresh.push((keys[at], violates));
                    }
                    RuleVerdict::Undecided(why) => failures.push((at, why)),
                }
            }
            cache.put_many(&fresh);
            let first = judgements.len();
            judgements
                .extend((0..chunk.len()).map(|i| self.collect(&rules, &known, i, chunk.len())));
            for (at, why) in failures {
                let (policy, rule) = rules[at / chunk.len()];
                judgements[first + at % chunk.len()]
                    .undecided
                    .push(Undecided {
                        policy: policy.id.clone(),
                        rule: rule.id.clone(),
                        why,
                    });
            }
        }
        (judgements, counts)
    }

    /// The violations of one exchange. `known` is (rules, exchanges).
    fn collect(
        &self,
        rules: &[(&Policy, &Rule)],
        known: &[Option<bool>],
        exchange: usize,
        exchanges: usize,
    ) -> Judgement {
        let violated = rules
            .iter()
            .enumerate()
            .filter(|(rule, _)| known[rule * exchanges + exchange] == Some(true));
        Judgement {
            violations: violated
                .map(|(_, (policy, rule))| violation(policy, rule))
                .collect(),
            undecided: Vec::new(),
        }
    }
}

impl Oracle for RuleOracle {
    fn judge(&self, exchange: &Exchange<'_>) -> Judgement {
        let mut judgement = Judgement::default();
        let questions: Vec<(Exchange<'_>, &Rule)> =
            self.rules().map(|(_, rule)| (*exchange, rule)).collect();
        let verdicts = self.matchers.decide(&questions);
        for ((policy, rule), verdict) in self.rules().zip(verdicts) {
            match verdict {
                RuleVerdict::Known(true) => judgement.violations.push(violation(policy, rule)),
                RuleVerdict::Known(false) => {}
                RuleVerdict::Undecided(why) => judgement.undecided.push(Undecided {
                    policy: policy.id.clone(),
                    rule: rule.id.clone(),
                    why,
                }),
            }
        }
        judgement
    }

    fn judge_many(&self, exchanges: &[Exchange<'_>]) -> Vec<Judgement> {
        self.judge_cached(exchanges, &NoCache).0
    }

    fn revision(&self) -> &str {
        &self.revision
    }
}

/// A cache that stores nothing.
struct NoCache;

impl VerdictCache for NoCache {
    fn get_many(&self, _: &[VerdictKey]) -> Vec<Option<bool>> {
        Vec::new()
    }

    fn put_many(&self, _: &[(VerdictKey, bool)]) {}
}

fn violation(policy: &Policy, rule: &Rule) -> Violation {
    Violation {
        policy: policy.id.clone(),
        rule: rule.id.clone(),
        severity: rule.severity,
    }
}
