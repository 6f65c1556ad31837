//! Incremental triage: 100,000 pairs whose verdicts are in the state database, under five rules of
//! which none or one has changed.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use criterion::{Criterion, criterion_group, criterion_main};
use realign_align::oracle::RuleOracle;
use realign_align::policy::PolicySet;
use realign_align::preferences::{Dataset, Pair};
use realign_align::triage::triage_cached;
use realign_server::state::StateDb;

const PAIRS: usize = 100_000;

fn pairs() -> Vec<Pair> {
    let filler = "and some more words to make it as long as an answer usually is. ".repeat(6);
    let line = |i: usize| {
        format!(
            "{{\"prompt\":\"question {i}\",\"chosen\":\"Take {i} mg {filler}\",\"rejected\":\"Ask {i} {filler}\"}}\n"
        )
    };
    let text: String = (0..PAIRS).map(line).collect();
    Dataset::from_bytes("bench.jsonl", text.into_bytes())
        .expect("plain lines")
        .pairs
}

fn oracle(last: &str) -> RuleOracle {
    let rule = |i: usize, pattern: &str| {
        format!("  - id: r{i}\n    violates: {{ response: {{ any_regex: ['{pattern}'] }} }}\n")
    };
    let fixed: String = (0..4)
        .map(|i| rule(i, &format!("(?i)\\b{i}\\d* ?mg\\b")))
        .collect();
    let text = format!(
        "apiVersion: realign/v1\nid: p\nversion: 1\nrules:\n{fixed}{}",
        rule(4, last)
    );
    RuleOracle::new(&PolicySet::from_yaml("bench.yaml", &text).expect("a valid policy"))
}

fn incremental(c: &mut Criterion) {
    let pairs = pairs();
    let dir = tempfile::tempdir().expect("a directory");
    let db = StateDb::open(&dir.path().join("bench.db")).expect("a database");
    let first = oracle("words");
    triage_cached(&pairs, &first, &db);
    let mut group = c.benchmark_group("triage_100k_pairs_5_rules");
    group.sample_size(10);
    group.bench_function("nothing changed", |b| {
        b.iter(|| triage_cached(&pairs, &first, &db))
    });
    let mut edit = 0;
    group.bench_function("one rule changed", |b| {
        b.iter(|| {
            edit += 1;
            let (_, counts) = triage_cached(&pairs, &oracle(&format!("Ask {edit}\\b")), &db);
            assert_eq!(counts.judged, 2 * PAIRS);
        });
    });
    group.finish();
}

criterion_group!(benches, incremental);
criterion_main!(benches);
