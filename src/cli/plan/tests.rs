use serde_json::{Value, json};

use super::*;
use crate::EXIT_OK;
use crate::triage::tests::{DATA, POLICY, directories};
use realign_align::train::TrainExample;
use realign_core::Category;
use realign_model::packing::Example;

/// Without measuring, for which there is no model here.
fn args(examples: usize, against: Option<PathBuf>) -> PlanArgs {
    PlanArgs {
        examples,
        against,
        no_measure: true,
        ..PlanArgs::default()
    }
}

fn plan_json(global: &GlobalArgs) -> Value {
    let mut out = Vec::new();
    run(&args(1, None), global, &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn nothing_is_estimated_where_another_engine_computes_the_steps() {
    let dir = tempfile::tempdir().unwrap();
    let mut global = directories(dir.path(), &POLICY.replace("ENFORCEMENT", ""), DATA);
    let config = dir.path().join("realign.toml");
    let engine = "[train]\nengine = \"tinker\"\n[train.tinker]\nurl = \"http://127.0.0.1:9\"\n";
    std::fs::write(&config, engine).unwrap();
    global.config = Some(config);
    let plan = plan_json(&global);
    assert_eq!(plan["estimate"], Value::Null);
    let why = plan["not_measured"].as_str().unwrap();
    assert!(why.contains("tinker"), "{why}");
    global.json = false;
    let mut out = Vec::new();
    run(&PlanArgs::default(), &global, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("cannot be known here"), "{text}");
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
    let args = args(9, global.policies.clone());
    let mut out = Vec::new();
    assert_eq!(run(&args, &changed, &mut out).unwrap(), EXIT_OK);
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
    run(&args, &text, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("1 pairs flip"), "{text}");
    assert!(
        text.contains("punish → invert") && text.contains("by doses:ml"),
        "{text}"
    );
    // Against itself nothing flips.
    let same = self::args(0, global.policies.clone());
    let mut out = Vec::new();
    run(&same, &global, &mut out).unwrap();
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
        let controls = plan["controls"].as_u64().unwrap() as usize;
        assert_eq!(controls, recipe.controls);
        let examples: Vec<TrainExample> = (0..count + controls).map(example).collect();
        let steps = realign_align::train::run::plan(&examples, &recipe).len();
        assert_eq!(plan["steps"], json!(steps), "{count} pairs");
    }
}

#[test]
fn dryrun_policies_train_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let policy = POLICY.replace("ENFORCEMENT", "enforcement: dryrun");
    let plan = plan_json(&directories(dir.path(), &policy, DATA));
    let nothing = (&json!(false), &json!(0));
    assert_eq!((&plan["trains"], &plan["steps"]), nothing);
    assert_eq!(
        (&plan["gathers_for"], &plan["controls"]),
        (&json!([]), &json!(0))
    );
}

#[test]
fn a_plan_names_its_pairs_and_the_rules_that_it_gathers_for() {
    let dir = tempfile::tempdir().unwrap();
    let policy = POLICY.replace("ENFORCEMENT", "");
    let global = directories(dir.path(), &policy, DATA);
    let args = PlanArgs {
        pairs: true,
        ..args(0, None)
    };
    let mut out = Vec::new();
    run(&args, &global, &mut out).unwrap();
    let plan: Value = serde_json::from_slice(&out).unwrap();
    let pairs = plan["pairs"].as_array().unwrap();
    let listed: Vec<_> = pairs
        .iter()
        .map(|pair| {
            (
                pair["category"].as_str().unwrap(),
                pair["prompt"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(listed, [("punish", "b"), ("invert", "d"), ("retain", "c")]);
    assert_eq!(
        plan["train_counts"],
        json!({"invert": 1, "punish": 1, "retain": 1})
    );
    assert_eq!(plan["gathers_for"], json!(["doses:mg", "doses:ml"]));
    let text = GlobalArgs {
        json: false,
        ..global
    };
    let mut out = Vec::new();
    run(&args, &text, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    for expected in [
        "3 pairs (1 invert, 1 punish, 1 retain)",
        "few pairs for doses:mg, doses:ml",
        "pairs.jsonl:4  d",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_plan_says_why_it_measured_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let policy = POLICY.replace("ENFORCEMENT", "");
    let global = GlobalArgs {
        model: Some("hf:some/model".into()),
        ..directories(dir.path(), &policy, DATA)
    };
    let mut out = Vec::new();
    run(&PlanArgs::default(), &global, &mut out).unwrap();
    let plan: Value = serde_json::from_slice(&out).unwrap();
    let why = plan["not_measured"].as_str().unwrap();
    assert!(why.contains("downloads nothing"), "{why}");
}
