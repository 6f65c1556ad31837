//! The demo's policies and preference data are as their README describes: the policies' own examples
//! pass, no pair is in conflict before the new policy, and every pair is in its category after it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use realign_align::policy::{Exchange, PolicySet};
use serde_json::Value;

struct Pair {
    prompt: String,
    chosen: String,
    rejected: String,
    topic: String,
    holdout: bool,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn policies(files: &[&str]) -> PolicySet {
    let files: Vec<PathBuf> = files.iter().map(|file| root().join(file)).collect();
    PolicySet::load_files(&files).unwrap_or_else(|errors| panic!("{errors}"))
}

fn before() -> PolicySet {
    policies(&["policies/helpful-answers.yaml"])
}

fn after() -> PolicySet {
    policies(&[
        "policies/helpful-answers.yaml",
        "demo/no-medication-doses.yaml",
    ])
}

fn pairs() -> Vec<Pair> {
    let text = std::fs::read_to_string(root().join("preferences/medication.jsonl")).unwrap();
    let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .map(|row: Value| Pair {
            prompt: field(&row, "prompt"),
            chosen: field(&row, "chosen"),
            rejected: field(&row, "rejected"),
            topic: field(&row["meta"], "topic"),
            holdout: row["meta"]["holdout"].as_bool().unwrap_or(false),
        })
        .collect()
}

fn complies(set: &PolicySet, prompt: &str, response: &str) -> bool {
    let exchange = Exchange {
        prompt,
        response,
        labels: &[],
    };
    let mut rules = set.policies().iter().flat_map(|policy| &policy.rules);
    !rules.any(|rule| rule.violated_by(&exchange))
}

fn category(set: &PolicySet, pair: &Pair) -> &'static str {
    let chosen = complies(set, &pair.prompt, &pair.chosen);
    let rejected = complies(set, &pair.prompt, &pair.rejected);
    match (chosen, rejected) {
        (true, _) => "retain",
        (false, true) => "invert",
        (false, false) => "punish",
    }
}

/// The parts of the file in order: category, whether held out, and number of lines. No PUNISH pairs
/// are held out.
const PARTS: [(&str, bool, usize); 5] = [
    ("invert", false, 128),
    ("invert", true, 44),
    ("punish", false, 60),
    ("retain", false, 101),
    ("retain", true, 16),
];

#[test]
fn every_example_of_the_policies_passes() {
    let set = after();
    let failures = set.run_examples().into_errors();
    assert!(failures.is_empty(), "{failures:#?}");
    for rule in set.policies().iter().flat_map(|policy| &policy.rules) {
        assert!(
            rule.examples.len() >= 6,
            "rule `{}` has too few examples",
            rule.id
        );
    }
}

#[test]
fn nothing_is_in_conflict_before_the_new_policy() {
    let set = before();
    for pair in pairs() {
        assert_eq!(
            category(&set, &pair),
            "retain",
            "{}: {}",
            pair.prompt,
            pair.chosen
        );
    }
}

#[test]
fn every_pair_falls_into_the_set_it_was_written_for() {
    let set = after();
    let pairs = pairs();
    assert_eq!(
        pairs.len(),
        PARTS.iter().map(|(_, _, count)| count).sum::<usize>()
    );
    let intended = PARTS
        .iter()
        .flat_map(|&(name, held, n)| std::iter::repeat_n((name, held), n));
    for (pair, (name, holdout)) in pairs.iter().zip(intended) {
        assert_eq!(
            category(&set, pair),
            name,
            "{}: {}",
            pair.prompt,
            pair.chosen
        );
        assert_eq!(pair.holdout, holdout, "{}", pair.prompt);
    }
}

#[test]
fn held_out_questions_name_no_medicine_of_the_training_part() {
    let pairs = pairs();
    let set = after();
    let seen: String = pairs
        .iter()
        .filter(|pair| !pair.holdout)
        .map(|pair| {
            format!(
                "{} {} ",
                pair.prompt.to_lowercase(),
                pair.chosen.to_lowercase()
            )
        })
        .collect();
    for pair in pairs
        .iter()
        .filter(|p| p.holdout && category(&set, p) == "invert")
    {
        assert!(
            !seen.contains(&pair.topic),
            "{} occurs in training",
            pair.topic
        );
    }
}

#[test]
fn prompts_are_unique_and_responses_short_and_varied() {
    let pairs = pairs();
    let prompts: BTreeSet<String> = pairs.iter().map(|p| p.prompt.to_lowercase()).collect();
    assert_eq!(prompts.len(), pairs.len());
    let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
    for pair in &pairs {
        *uses.entry(&pair.rejected).or_default() += 1;
        for response in [&pair.chosen, &pair.rejected] {
            let words = response.split_whitespace().count();
            assert!((2..=22).contains(&words), "{words} words: {response}");
        }
    }
    let most = uses.into_iter().max_by_key(|&(_, count)| count);
    assert!(most.is_some_and(|(_, count)| count <= 8), "{most:?}");
}

#[test]
fn ordinary_questions_with_numbers_are_not_dose_questions() {
    let set = after();
    for (prompt, response) in [
        (
            "How many people live in Japan?",
            "About 124 million people live in Japan.",
        ),
        (
            "How much money do I need to start investing?",
            "You can start with 50 dollars.",
        ),
        (
            "How long does it take to fly to Rome?",
            "It takes about two hours from London.",
        ),
        (
            "How much sugar do I use for jam?",
            "Use 500 grams of sugar for a kilogram of fruit.",
        ),
        (
            "What is the boiling point of ethanol?",
            "Ethanol boils at 78 degrees Celsius.",
        ),
        (
            "How often should I back up my files?",
            "Back up your files every week.",
        ),
        (
            "What are the side effects of aspirin?",
            "Aspirin can upset the stomach.",
        ),
    ] {
        assert!(complies(&set, prompt, response), "{prompt} {response}");
    }
}
