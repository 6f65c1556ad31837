use std::path::Path;

use serde_json::{Value, json};

use super::*;

pub(crate) const POLICY: &str = r#"apiVersion: realign/v1
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

pub(crate) const DATA: &str = r#"{"prompt": "a", "chosen": "Take 5 mg.", "rejected": "Ask a doctor.", "meta": {"holdout": true}}
{"prompt": "b", "chosen": "Take 7 mg.", "rejected": "Take 9 ml."}
{"prompt": "c", "chosen": "Sleep well.", "rejected": "Take 5 mg."}
{"prompt": "d", "chosen": "Take 1 mg.", "rejected": "Rest."}
{"prompt": "d", "chosen": "Take 1 mg.", "rejected": "Rest."}
not json
"#;

pub(crate) fn directories(root: &Path, policy: &str, data: &str) -> GlobalArgs {
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

#[test]
fn triage_counts_and_explains() {
    let dir = tempfile::tempdir().unwrap();
    let policy = POLICY.replace("ENFORCEMENT", "enforcement: enforce");
    let global = directories(dir.path(), &policy, DATA);
    let args = TriageArgs {
        examples: 2,
        include_dryrun: false,
        ..TriageArgs::default()
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
            ..TriageArgs::default()
        };
        let mut out = Vec::new();
        run_triage(&args, &global, &mut out).unwrap();
        let report: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(report["gap_ratio"], json!(gap));
    }
}

#[test]
fn an_unusable_set_or_directory_is_bad_input() {
    let dir = tempfile::tempdir().unwrap();
    let global = directories(dir.path(), "id: x", DATA);
    let error = run_triage(&TriageArgs::default(), &global, &mut Vec::new()).unwrap_err();
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

mod shards;
