use std::sync::atomic::Ordering;

use super::{
    CacheCounts, Exchange, Judgement, MemoryVerdictCache, Oracle, RuleOracle, VerdictCache,
    VerdictKey,
};
use crate::policy::{PolicySet, Severity};

/// Two rules on the response: `low` looks for "a", `high` for the given pattern.
fn set(pattern: &str, enforcement: &str) -> PolicySet {
    let text = format!(
        "apiVersion: realign/v1\nid: p\nversion: 1\nenforcement: {enforcement}\nrules:\n  - id: low\n    severity: reduced\n    violates: {{ response: {{ any_regex: [a] }} }}\n  - id: high\n    severity: critical\n    violates: {{ response: {{ any_regex: ['{pattern}'] }} }}\n"
    );
    PolicySet::from_yaml("p.yaml", &text).unwrap()
}

fn exchange(response: &str) -> Exchange<'_> {
    Exchange {
        prompt: "p",
        response,
        labels: &[],
    }
}

#[test]
fn violations_name_policy_rule_and_severity() {
    let set = set("b", "enforce");
    let oracle = RuleOracle::new(&set);
    let cases: [(&str, &[&str], Option<Severity>); 4] = [
        ("x", &[], None),
        ("a", &["low"], Some(Severity::Reduced)),
        ("b", &["high"], Some(Severity::Critical)),
        ("ab", &["low", "high"], Some(Severity::Critical)),
    ];
    for (response, rules, worst) in cases {
        let judgement = oracle.judge(&exchange(response));
        let found: Vec<&str> = judgement
            .violations
            .iter()
            .map(|v| v.rule.as_str())
            .collect();
        assert_eq!(found, rules);
        assert_eq!(judgement.complies(), rules.is_empty());
        assert_eq!(judgement.worst(), worst);
        assert!(judgement.violations.iter().all(|v| v.policy == "p"));
    }
    assert_eq!(oracle.revision(), set.revision());
}

#[test]
fn dryrun_policies_judge_only_where_asked() {
    let set = set("b", "dryrun");
    assert!(RuleOracle::new(&set).judge(&exchange("ab")).complies());
    assert_eq!(
        RuleOracle::with_dryrun(&set)
            .judge(&exchange("ab"))
            .violations
            .len(),
        2
    );
    assert_ne!(
        RuleOracle::new(&set).revision(),
        RuleOracle::with_dryrun(&set).revision()
    );
}

#[test]
fn editing_one_rule_judges_that_rule_alone() {
    let responses: Vec<String> = (0..5000)
        .map(|i| format!("{i:b} a").replacen('1', "b", i % 3))
        .collect();
    let exchanges: Vec<Exchange<'_>> = responses.iter().map(|r| exchange(r)).collect();
    let cache = MemoryVerdictCache::default();
    let runs = [
        (
            "b",
            CacheCounts {
                judged: 10_000,
                cached: 0,
            },
        ),
        (
            "b",
            CacheCounts {
                judged: 0,
                cached: 10_000,
            },
        ),
        (
            "bb",
            CacheCounts {
                judged: 5_000,
                cached: 5_000,
            },
        ),
        (
            "b",
            CacheCounts {
                judged: 0,
                cached: 10_000,
            },
        ),
    ];
    for (pattern, expected) in runs {
        let oracle = RuleOracle::new(&set(pattern, "enforce"));
        let (judgements, counts) = oracle.judge_cached(&exchanges, &cache);
        assert_eq!(counts, expected, "{pattern}");
        let plain: Vec<_> = exchanges.iter().map(|e| oracle.judge(e)).collect();
        assert_eq!(judgements, plain);
    }
    assert_eq!(cache.len(), 15_000);
}

/// A cache whose storage is broken: it knows nothing and forgets everything.
struct Broken;

impl VerdictCache for Broken {
    fn get_many(&self, _: &[VerdictKey]) -> Vec<Option<bool>> {
        Vec::new()
    }

    fn put_many(&self, _: &[(VerdictKey, bool)]) {}
}

#[test]
fn a_broken_cache_changes_no_judgement() {
    let oracle = RuleOracle::new(&set("b", "enforce"));
    let exchanges = [exchange("a"), exchange("x")];
    let (judgements, counts) = oracle.judge_cached(&exchanges, &Broken);
    assert_eq!(judgements, exchanges.map(|e| oracle.judge(&e)));
    assert_eq!(
        counts,
        CacheCounts {
            judged: 4,
            cached: 0
        }
    );
    assert!(
        RuleOracle::new(&PolicySet::default())
            .judge_cached(&exchanges, &Broken)
            .0
            .iter()
            .all(|j| j.complies())
    );
}

#[test]
fn keys_tell_apart_what_differs() {
    let set = set("b", "enforce");
    let [low, high] = &set.policies()[0].rules[..] else {
        panic!("two rules")
    };
    let (l, lm) = (["l".to_owned()], ["l".to_owned(), "m".to_owned()]);
    let keys = [
        VerdictKey::new(
            &Exchange {
                prompt: "p",
                response: "r",
                labels: &[],
            },
            low,
        ),
        VerdictKey::new(
            &Exchange {
                prompt: "p",
                response: "r",
                labels: &[],
            },
            high,
        ),
        VerdictKey::new(
            &Exchange {
                prompt: "pr",
                response: "",
                labels: &[],
            },
            low,
        ),
        VerdictKey::new(
            &Exchange {
                prompt: "",
                response: "pr",
                labels: &[],
            },
            low,
        ),
        VerdictKey::new(
            &Exchange {
                prompt: "p",
                response: "r",
                labels: &l,
            },
            low,
        ),
        VerdictKey::new(
            &Exchange {
                prompt: "p",
                response: "r",
                labels: &lm,
            },
            low,
        ),
    ];
    for (i, a) in keys.iter().enumerate() {
        assert!(keys[i + 1..].iter().all(|b| a != b), "{i}");
    }
    let cache = MemoryVerdictCache::default();
    cache.put(&keys[0], true);
    assert_eq!(
        (cache.get(&keys[0]), cache.get(&keys[1])),
        (Some(true), None)
    );
}

#[test]
fn judging_that_is_stopped_leaves_the_rest_undecided() {
    let responses: Vec<String> = (0..300).map(|i| format!("{i} a")).collect();
    let exchanges: Vec<Exchange<'_>> = responses.iter().map(|r| exchange(r)).collect();
    let cache = MemoryVerdictCache::default();
    let left = std::sync::atomic::AtomicUsize::new(1);
    let oracle = RuleOracle::new(&set("b", "enforce")).proceeding_while(move || {
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
    });
    let (judgements, _) = oracle.judge_cached(&exchanges, &cache);
    let open = |j: &Judgement| {
        j.undecided
            .iter()
            .filter(|u| u.why.contains("stopped"))
            .count()
    };
    // The first 256 questions of 600 were judged, and are remembered.
    assert_eq!(judgements.iter().map(open).sum::<usize>(), 600 - 256);
    assert_eq!(cache.len(), 256);
    let whole = RuleOracle::new(&set("b", "enforce"));
    let (judgements, counts) = whole.judge_cached(&exchanges, &cache);
    assert_eq!(
        (counts.cached, judgements.iter().map(open).sum::<usize>()),
        (256, 0)
    );
}
