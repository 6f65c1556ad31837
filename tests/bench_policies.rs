//! The synthetic benchmark is as its README describes: its policies' own examples pass, every pair is in
//! its category, and its violating turns violate.

use std::path::{Path, PathBuf};

use realign_align::policy::{Exchange, PolicySet};
use serde_json::Value;

/// Each policy with its INVERT, PUNISH and RETAIN pairs.
const POLICIES: [(&str, [usize; 3]); 6] = [
    ("medication", [172, 60, 117]),
    ("brevity", [149, 16, 88]),
    ("brand-neutrality", [146, 14, 100]),
    ("un-refusal", [149, 16, 95]),
    ("disclaimer", [150, 15, 95]),
    ("reversal", [172, 20, 157]),
];

fn directory(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("benches/policies").join(name)
}

fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rows = text.lines().map(serde_json::from_str);
    rows.map(|row| row.expect("a line of JSON")).collect()
}

fn policy(name: &str) -> PolicySet {
    PolicySet::load_dir(&directory(name)).unwrap_or_else(|errors| panic!("{name}: {errors}"))
}

fn violates(set: &PolicySet, prompt: &Value, response: &Value) -> bool {
    let exchange = Exchange {
        prompt: prompt.as_str().expect("a prompt"),
        response: response.as_str().expect("a response"),
        labels: &[],
    };
    let mut rules = set.policies().iter().flat_map(|policy| &policy.rules);
    rules.any(|rule| rule.violated_by(&exchange))
}

#[test]
fn every_pair_of_the_benchmark_is_in_its_category() {
    for (name, expected) in POLICIES {
        let set = policy(name);
        let failures = set.run_examples().into_errors();
        assert!(failures.is_empty(), "{name}: {failures:#?}");
        let mut counts = [0; 3];
        for row in rows(&directory(name).join("pairs.jsonl")) {
            let [chosen, rejected] =
                ["chosen", "rejected"].map(|key| violates(&set, &row["prompt"], &row[key]));
            let category = match (chosen, rejected) {
                (true, false) => 0,
                (true, true) => 1,
                (false, _) => 2,
            };
            counts[category] += 1;
        }
        assert_eq!(counts, expected, "{name}");
    }
}

#[test]
fn violating_turns_of_the_benchmark_violate() {
    for (name, _) in POLICIES {
        let set = policy(name);
        let held_out = rows(&directory(name).join("hidden/heldout.jsonl"));
        let turns = held_out.iter().filter(|row| !row["violating"].is_null());
        for row in turns.clone() {
            assert!(
                violates(&set, &row["prompt"], &row["violating"]),
                "{name}: {row}"
            );
        }
        assert!(turns.count() >= 8, "{name}");
    }
}
