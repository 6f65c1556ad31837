use std::path::Path;

use serde_json::{Value, json};

use super::*;
use realign_align::train::TrainExample;
use realign_core::Category;
use realign_model::packing::Example;

const POLICY: &str = r#"apiVersion: realign/v1
id: doses
version: "1"
description: Doses are not for us.
ENFORCEMENT
rules:
  - id: mg
    severity: high
    description: Milligrams in an answer.
    violates: { response: { any_regex: ["[0-9]+ ?mg"] } }
  - id: ml
    description: Millilitres in an answer.
    violates: { response: { any_regex: ["[0-9]+ ?ml"] } }
"#;

const DATA: &str = r#"{"prompt": "a", "chosen": "Take 5 mg.", "rejected": "Ask a doctor.", "meta": {"holdout": true}}
{"prompt": "b", "chosen": "Take 7 mg.", "rejected": "Take 9 ml."}
{"prompt": "c", "chosen": "Sleep well.", "rejected": "Take 5 mg."}
{"prompt": "d", "chosen": "Take 1 mg.", "rejected": "Rest."}
{"prompt": "d", "chosen": "Take 1 mg.", "rejected": "Rest."}
not json
"#;

fn directories(root: &Path, policy: &str, data: &str) -> GlobalArgs {
    let (policies, preferences) = (root.join("policies"), root.join("preferences"));
    std::fs::create_dir_all(&policies).unwrap();
    std::fs::create_dir_all(&preferences).unwrap();
    std::fs::write(policies.join("doses.yaml"), policy).unwrap();
    std::fs::write(preferences.join("pairs.jsonl"), data).unwrap();
    GlobalArgs {
        json: true,
        policies: Some(policies),
        preferences: Some(preferences),
        ..GlobalArgs::default()
    }
}

fn plan_json(global: &GlobalArgs) -> Value {
    let mut out = Vec::new();
    run_plan(
        &PlanArgs {
            examples: 1,
            against: None,
            device: DeviceArgs::default(),
        },
        global,
        &mut out,
    )
    .unwrap();
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn triage_counts_and_explains() {
    let dir = tempfile::tempdir().unwrap();
    let policy = POLICY.replace("ENFORCEMENT", "enforcement: enforce");
    let global = directories(dir.path(), &policy, DATA);
    let args = TriageArgs {
        examples: 2,
        include_dryrun: false,
        data: None,
        device: DeviceArgs::default(),
    };
    let mut out = Vec::new();
    assert_eq!(run_triage(&args, &global, &mut out).unwrap(), EXIT_OK);
    let report: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(
        report["counts"],
        json!({"invert": 2, "punish": 1, "retain": 1})
    );
    assert_eq!(report["gap_ratio"], json!(0.75));
    assert_eq!(report["duplicates"], 1);
    assert_eq!(report["skipped"][0]["source"]["line"], 6);
    let rules = &report["rules"];
    assert_eq!(
        (&rules[0]["chosen"], &rules[0]["rejected"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(
        (&rules[1]["chosen"], &rules[1]["rejected"]),
        (&json!(0), &json!(1))
    );
    let examples = report["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 2);
    assert!(examples[0]["source"].as_str().unwrap().ends_with(":1"));
    let because = &examples[1]["because"];
    assert_eq!(because[0]["rule"], "mg");
    assert_eq!(
        (&because[1]["response"], &because[1]["rule"]),
        (&json!("rejected"), &json!("ml"))
    );
    let mut out = Vec::new();
    let text = GlobalArgs {
        json: false,
        ..global
    };
    run_triage(&args, &text, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.starts_with("4 pairs: 2 invert, 1 punish, 1 retain; gap ratio 0.750"),
        "{text}"
    );
    assert!(text.contains("chosen violates doses:mg"), "{text}");
}

#[test]
fn dryrun_policies_count_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let policy = POLICY.replace("ENFORCEMENT", "enforcement: dryrun");
    let global = directories(dir.path(), &policy, DATA);
    for (include_dryrun, gap) in [(false, 0.0), (true, 0.75)] {
        let args = TriageArgs {
            examples: 0,
            include_dryrun,
            data: None,
            device: DeviceArgs::default(),
        };
        let mut out = Vec::new();
        run_triage(&args, &global, &mut out).unwrap();
        let report: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(report["gap_ratio"], json!(gap));
    }
    let plan = plan_json(&global);
    assert_eq!(
        (&plan["trains"], &plan["steps"]),
        (&json!(false), &json!(0))
    );
}

/// What `plan --against` says of a change: one rule removed, one added, one only dry.
#[test]
fn a_plan_names_the_pairs_that_flip_and_the_rule_that_did_it() {
    let dir = tempfile::tempdir().unwrap();
    let old = POLICY.replace("ENFORCEMENT", "");
    let global = directories(dir.path(), &old, DATA);
    // The new set forgets millilitres, and a dryrun policy says things that must not count.
    let staging = dir.path().join("staging");
    std::fs::create_dir_all(&staging).unwrap();
    let (kept, _) = old.split_once("  - id: ml").unwrap();
    std::fs::write(staging.join("doses.yaml"), kept).unwrap();
    let dry = "apiVersion: realign/v1\nid: dry\nversion: 1\nenforcement: dryrun\nrules:\n\
               \x20 - { id: all, violates: { response: { length: { min: 1 } } } }\n";
    std::fs::write(staging.join("dry.yaml"), dry).unwrap();
    let mut changed = global.clone();
    changed.policies = Some(staging);
    let args = PlanArgs {
        examples: 9,
        against: global.policies.clone(),
        device: DeviceArgs::default(),
    };
    let mut out = Vec::new();
    assert_eq!(run_plan(&args, &changed, &mut out).unwrap(), EXIT_OK);
    let plan: Value = serde_json::from_slice(&out).unwrap();
    let flips = &plan["flips"];
    assert_eq!(
        flips["before"],
        json!({"invert": 2, "punish": 1, "retain": 1})
    );
    assert_eq!(
        plan["counts"],
        json!({"invert": 3, "punish": 0, "retain": 1})
    );
    // Pair b was punished for both answers; only the rejected one's verdict changed.
    assert_eq!(flips["flipped"], 1);
    assert_eq!(flips["moves"], json!({"punish → invert": 1}));
    assert_eq!(flips["rules"], json!({"doses:ml": 1}));
    let flip = &flips["examples"][0];
    assert_eq!(
        (&flip["prompt"], &flip["rules"]),
        (&json!("b"), &json!(["doses:ml"]))
    );
    let text = GlobalArgs {
        json: false,
        ..changed
    };
    let mut out = Vec::new();
    run_plan(&args, &text, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("1 pairs flip"), "{text}");
    assert!(
        text.contains("punish → invert") && text.contains("by doses:ml"),
        "{text}"
    );
    // Against itself nothing flips.
    let same = PlanArgs {
        examples: 0,
        against: global.policies.clone(),
        device: DeviceArgs::default(),
    };
    let mut out = Vec::new();
    run_plan(&same, &global, &mut out).unwrap();
    let plan: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(plan["flips"]["flipped"], 0, "{plan}");
}

#[test]
fn a_plan_respects_the_held_out_part() {
    let dir = tempfile::tempdir().unwrap();
    let policy = POLICY.replace("ENFORCEMENT", "enforcement: enforce");
    let plan = plan_json(&directories(dir.path(), &policy, DATA));
    assert_eq!(plan["trains"], json!(true));
    assert_eq!(
        (&plan["train_pairs"], &plan["train_conflicts"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(
        (&plan["holdout_pairs"], &plan["holdout_conflicts"]),
        (&json!(1), &json!(1))
    );
    let only_held_out = DATA.lines().next().unwrap();
    let global = directories(dir.path(), &policy, only_held_out);
    let plan = plan_json(&global);
    assert_eq!(plan["trains"], json!(false), "{plan}");
}

#[test]
fn the_steps_are_those_that_training_takes() {
    let example = |index: usize| TrainExample {
        id: index.to_string(),
        category: Category::ALL[index % 3],
        example: Example::new(vec![1], vec![vec![2]]),
        weight: 1.0,
        reference: [0.0; 2],
        reference_hidden: None,
    };
    let policy = POLICY.replace("ENFORCEMENT", "");
    for count in [1, 6, 7, 25] {
        let dir = tempfile::tempdir().unwrap();
        let data: String = (0..count)
            .map(|i| {
                let pair = json!({
                    "prompt": format!("p{i}"), "chosen": "Take 5 mg.", "rejected": "Rest.",
                    "meta": {"holdout": false},
                });
                format!("{pair}\n")
            })
            .collect();
        let plan = plan_json(&directories(dir.path(), &policy, &data));
        let recipe = realign_align::train::Recipe::default();
        let examples: Vec<TrainExample> = (0..count).map(example).collect();
        let steps = realign_align::train::run::plan(&examples, &recipe).len();
        assert_eq!(plan["steps"], json!(steps), "{count} pairs");
    }
}

#[test]
fn an_unusable_set_or_directory_is_bad_input() {
    let dir = tempfile::tempdir().unwrap();
    let global = directories(dir.path(), "id: x", DATA);
    let error = run_plan(&PlanArgs::default(), &global, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("doses.yaml:"), "{error}");
    let global = GlobalArgs {
        preferences: Some(dir.path().join("none")),
        ..directories(dir.path(), POLICY, DATA)
    };
    let error = run_triage(&TriageArgs::default(), &global, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("--preferences"), "{error}");
}

#[test]
fn long_texts_are_cut_between_characters() {
    assert_eq!(one_line("a\n  b"), "a b");
    let cut = one_line(&"é".repeat(200));
    assert_eq!(cut.chars().count(), SHOWN + 1);
}
