//! The policies that ship, the formats of published data, and a probe on the real model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use realign_align::oracle::{
    Exchange, HiddenStates, MemoryScoreCache, MemoryVerdictCache, Oracle, Services, prepare,
    prepare_trusted,
};
use realign_align::policy::PolicySet;
use realign_align::preferences::Dataset;

fn services() -> Services {
    Services {
        features: None,
        scores: Arc::new(MemoryScoreCache::default()),
        probes: None,
        closing: None,
    }
}

#[test]
fn every_example_policy_may_act() {
    let mut seen = 0;
    for entry in std::fs::read_dir("policies/examples").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let set = PolicySet::load_files(std::slice::from_ref(&path))
                .unwrap_or_else(|e| panic!("{e}"));
            if let Err(errors) = prepare_trusted(&set, &services()) {
                panic!("{errors}");
            }
            let untested = set.run_examples();
            assert_eq!(untested.untested(), [], "{}", path.display());
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
    let set = PolicySet::load_dir(Path::new("policies/examples")).unwrap();
    let rules = |id: &str| {
        set.get(id)
            .unwrap()
            .rules
            .iter()
            .map(|r| r.id.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        rules("pku"),
        (1..=19).map(|n| format!("pku/S{n}")).collect::<Vec<_>>()
    );
    assert_eq!(
        rules("mlcommons"),
        (1..=14)
            .map(|n| format!("mlcommons/S{n}"))
            .collect::<Vec<_>>()
    );
}

/// PKU-SafeRLHF's published schema, one row per quadrant; harm categories become labels.
#[test]
fn all_quadrants_of_the_published_schema_are_read() {
    let row = |safe: [bool; 2], better: usize| {
        let harm = |safe: bool| serde_json::json!({"Violence": !safe, "Drugs": false});
        serde_json::json!({
            "prompt": format!("p{safe:?}"), "prompt_source": "x", "response_0": "zero", "response_1": "one",
            "response_0_source": "m", "response_1_source": "m", "is_response_0_safe": safe[0], "is_response_1_safe": safe[1],
            "response_0_harm_category": harm(safe[0]), "response_1_harm_category": harm(safe[1]),
            "response_0_severity_level": if safe[0] { 0 } else { 3 }, "response_1_severity_level": if safe[1] { 0 } else { 1 },
            "better_response_id": better, "safer_response_id": 0, "response_0_sha256": "0", "response_1_sha256": "1",
        })
        .to_string()
    };
    let rows = [
        row([true, true], 0),
        row([true, false], 1),
        row([false, true], 0),
        row([false, false], 1),
    ];
    let data = Dataset::from_bytes("pku.jsonl", rows.join("\n").into_bytes()).unwrap();
    assert_eq!((data.pairs.len(), data.skipped.len()), (4, 0));
    let pair = |prompt: &str| {
        data.pairs
            .iter()
            .find(|p| p.prompt_text() == prompt)
            .unwrap()
    };
    let mixed = pair("p[true, false]");
    assert_eq!(
        (mixed.chosen.as_str(), mixed.rejected_labels.as_slice()),
        ("one", &["safe".to_owned()][..])
    );
    assert_eq!(mixed.chosen_labels, ["Violence", "severity-1", "unsafe"]);
    let set =
        PolicySet::load_files(&[PathBuf::from("policies/examples/pku-tiered-harm.yaml")]).unwrap();
    let oracle = prepare(&set, &services()).unwrap().oracle(&set);
    let judgement = oracle.judge(&Exchange {
        prompt: "x",
        response: "one",
        labels: &mixed.chosen_labels,
    });
    assert_eq!(judgement.violations[0].rule, "pku/S6");
}

#[test]
fn scores_duplicates_and_contradictions_are_read() {
    let text = r#"{"instruction":"a","completions":[{"response":"low","overall_score":1},{"response":"high","overall_score":9},{"response":"mid","overall_score":5}]}
{"prompt":"a","responses":["x","y"],"scores":[2,2]}
{"prompt":"q","chosen":"yes","rejected":"no"}
{"prompt":"q","chosen":"yes","rejected":"no"}
{"prompt":"q","chosen":"no","rejected":"yes"}
{"prompt":"q","chosen":"b","rejected":"c","score_chosen":1.0,"score_rejected":4.0}
"#;
    let data = Dataset::from_bytes("x.jsonl", text.as_bytes().to_vec()).unwrap();
    assert_eq!(
        (data.pairs.len(), data.duplicates, data.contradictions.len()),
        (3, 1, 1)
    );
    let best = data.pairs.iter().find(|p| p.prompt_text() == "a").unwrap();
    assert_eq!(
        (best.chosen.as_str(), best.rejected.as_str()),
        ("high", "low")
    );
    let lines = (
        data.contradictions[0].first.line,
        data.contradictions[0].second.line,
    );
    assert_eq!(lines, (3, 5));
    assert!(
        data.skipped[0].reason.contains("equal"),
        "{:?}",
        data.skipped
    );
    assert!(data.skipped[1].reason.contains("not above score_rejected"));
}

/// A rule that only a probe can judge, on the real model: answers in French violate.
#[test]
fn a_probe_learns_from_a_rules_examples() {
    let english = [
        "The train leaves at nine.",
        "You may open the window.",
        "I like warm bread.",
        "It rains today.",
        "The shop is closed now.",
        "She reads a long book.",
        "We walk to the river.",
        "The cat sleeps well.",
        "My car is very old.",
    ];
    let french = [
        "Le train part à neuf heures.",
        "Vous pouvez ouvrir la fenêtre.",
        "J'aime le pain chaud.",
        "Il pleut aujourd'hui.",
        "Le magasin est fermé.",
        "Elle lit un long livre.",
        "Nous marchons vers la rivière.",
        "Le chat dort bien.",
        "Ma voiture est très vieille.",
    ];
    let mut text = String::from(
        "apiVersion: realign/v1\nid: p\nversion: 1\nrules:\n  - id: french\n    violates: { probe: {} }\n    minimum: { accuracy: 0.9 }\n    examples:\n",
    );
    for (i, (e, f)) in english.iter().zip(french).enumerate().take(8) {
        text += &format!(
            "      - {{ prompt: 'Question {i}?', response: \"{e}\", verdict: complies }}\n      - {{ prompt: 'Question {i}?', response: \"{f}\", verdict: violates }}\n"
        );
    }
    let set = PolicySet::from_yaml("p.yaml", &text).unwrap();
    let error = prepare(&set, &services()).unwrap_err().to_string();
    assert!(error.contains("no model is loaded"), "{error}");
    let loaded = realign_model::LoadedModel::load(
        "models/SmolLM2-135M-Instruct.Q4_1.gguf",
        &realign_cpu::Cpu,
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let services = Services {
        features: Some(Arc::new(HiddenStates::new(loaded, 2).unwrap())),
        probes: Some(dir.path().join("probes")),
        ..services()
    };
    let prepared = prepare_trusted(&set, &services).unwrap_or_else(|e| panic!("{e}"));
    assert!(prepared.trust[0].cross_validated);
    let oracle = prepared.oracle(&set);
    let exchange = |response| Exchange {
        prompt: "Question 8?",
        response,
        labels: &[],
    };
    let unseen = [exchange(english[8]), exchange(french[8])];
    let cache = MemoryVerdictCache::default();
    let (judgements, counts) = oracle.judge_cached(&unseen, &cache);
    assert_eq!(
        judgements.iter().map(|j| j.violates()).collect::<Vec<_>>(),
        [false, true]
    );
    assert_eq!(counts.judged, 2);
    // One by one as in a batch, and from the cache.
    assert_eq!(judgements, unseen.map(|e| oracle.judge(&e)));
    assert_eq!(
        oracle.judge_cached(&unseen, &cache),
        (
            judgements.clone(),
            realign_align::oracle::CacheCounts {
                judged: 0,
                cached: 2
            }
        )
    );
    // The stored probe gives the same verdicts.
    let again = prepare(&set, &services).unwrap().oracle(&set);
    assert_eq!(again.judge_cached(&unseen, &cache).1.cached, 2);
    the_command_draws_its_calibration(dir.path(), &text);
    // Without its probe a rule is undecided, which is no compliance.
    let bare = realign_align::oracle::RuleOracle::new(&set).judge(&unseen[0]);
    assert!(!bare.complies() && !bare.violates() && bare.undecided.len() == 1);
}

/// `realign policy test --svg` finds the stored probe, prints its figures and writes a picture.
fn the_command_draws_its_calibration(state: &Path, policy: &str) {
    let file = state.join("p.yaml");
    std::fs::write(&file, policy).unwrap();
    let plots = state.join("plots");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_realign"))
        .args(["policy", "test", "--svg"])
        .args([&plots, &file])
        .arg("--state")
        .arg(state)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(
        text.contains("p:french") && text.contains("(cross-validated)"),
        "{text}"
    );
    let names: Vec<_> = std::fs::read_dir(&plots)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["p-french.svg"]);
    let picture = std::fs::read_to_string(plots.join("p-french.svg")).unwrap();
    assert!(
        picture.contains("p:french: predicted against observed, 16 examples"),
        "{picture}"
    );
    assert!(picture.matches("<circle").count() >= 2, "{picture}");
}
