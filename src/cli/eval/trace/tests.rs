use std::path::Path;

use super::data::{asked, hold_out, pairs, truth};
use super::store::CellStore;
use super::suite::{estimate, plan};
use super::*;
use realign_align::preferences::Dataset;
use realign_core::Category;
use realign_lab::evaluation::{Cell, Labels, Seconds, TrainingFigures};

fn dataset(lines: &[String]) -> Dataset {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pairs.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    pairs(Some(&file), Path::new("none")).unwrap()
}

fn line(prompt: &str, n: usize, more: &str) -> String {
    format!(r#"{{"prompt": "{prompt}", "chosen": "a{n}", "rejected": "b{n}"{more}}}"#)
}

#[test]
fn variants_come_by_suite_or_by_name_and_the_base_is_always_there() {
    let args = |variants: &[&str], suite: &str| TraceArgs {
        suite: suite.into(),
        variants: variants.iter().map(|v| (*v).to_owned()).collect(),
        ..args()
    };
    assert_eq!(args(&[], "full").chosen().unwrap().len(), 10);
    let named = args(&["no-kl", "trace", "trace"], "full").chosen().unwrap();
    assert_eq!(named, [Variant::Base, Variant::Trace, Variant::NoKl]);
    let error = args(&["tracy"], "full").chosen().unwrap_err().to_string();
    assert!(error.contains("use some of base, trace"), "{error}");
    assert!(args(&[], "fool").chosen().is_err());
}

fn args() -> TraceArgs {
    TraceArgs {
        suite: "full".into(),
        variants: Vec::new(),
        seeds: 1,
        data: None,
        policy: Vec::new(),
        judge: "policy".into(),
        recipe: None,
        out: "out".into(),
        resume: false,
        max_pairs: None,
        holdout: 0.2,
        max_prompts: 48,
        answer_tokens: 64,
        perplexity: None,
        perplexity_tokens: 3072,
        capability: None,
        capability_items: 120,
        device: DeviceArgs::default(),
    }
}

#[test]
fn the_base_runs_once_and_equal_labels_are_adjacent() {
    let variants = Variant::suite("full").unwrap();
    let plan = plan(&variants, 17, 3);
    assert_eq!(plan.len(), 1 + 9 * 3);
    assert_eq!(plan[0], (Variant::Base, 17));
    let labels: Vec<Labels> = plan[1..10].iter().map(|(v, _)| v.labels()).collect();
    let changes = labels.windows(2).filter(|w| w[0] != w[1]).count();
    assert_eq!(changes, 5, "{labels:?}");
    assert!(plan[1..10].iter().all(|(_, seed)| *seed == 17));
}

#[test]
fn the_estimate_is_the_mean_of_cells_that_trained() {
    let cell = |trained: bool, spent: f64| Cell {
        training: trained.then(TrainingFigures::default),
        seconds: Seconds {
            spent,
            ..Seconds::default()
        },
        ..Cell::default()
    };
    assert_eq!(estimate(&[cell(false, 5.0)], 3), None);
    let cells = [cell(false, 5.0), cell(true, 100.0), cell(true, 50.0)];
    assert_eq!(estimate(&cells, 4), Some(300.0));
}

#[test]
fn finished_cells_are_kept_failed_ones_run_again_and_foreign_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = CellStore::open(dir.path(), false).unwrap();
    let cell = |failure: Option<&str>| Cell {
        variant: "trace".into(),
        seed: 3,
        fingerprint: "f".into(),
        failure: failure.map(str::to_owned),
        ..Cell::default()
    };
    store.put(Variant::Trace, &cell(None)).unwrap();
    store.put(Variant::NoKl, &cell(Some("diverged"))).unwrap();
    let error = CellStore::open(dir.path(), false)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("--resume"), "{error}");
    let store = CellStore::open(dir.path(), true).unwrap();
    assert_eq!(store.get(Variant::Trace, 3, "f").unwrap(), Some(cell(None)));
    assert_eq!(store.get(Variant::NoKl, 3, "f").unwrap(), None);
    assert_eq!(store.get(Variant::Trace, 4, "f").unwrap(), None);
    let foreign = store.get(Variant::Trace, 3, "g").unwrap_err().to_string();
    assert!(foreign.contains("another model, data, recipe"), "{foreign}");
    std::fs::write(dir.path().join("cells/trace-3.json"), "{\"vari").unwrap();
    assert_eq!(
        store.get(Variant::Trace, 3, "f").unwrap(),
        None,
        "cut short"
    );
}

#[test]
fn a_category_without_held_out_prompts_gives_some_of_its_own() {
    let mut lines = Vec::new();
    for n in 0..20 {
        let held = if n < 5 {
            r#", "meta": {"holdout": true}"#
        } else {
            ""
        };
        lines.push(line(&format!("invert {n}"), n, held));
        lines.push(line(&format!("punish {n}"), n, ""));
    }
    // A retained pair on a prompt that the draw may move.
    lines.push(line("punish 3", 99, ""));
    let data = dataset(&lines);
    let category = |i: usize| {
        let pair = &data.pairs[i];
        match (
            pair.prompt_text().starts_with("invert"),
            pair.chosen == "a99",
        ) {
            (true, _) => Category::Invert,
            (_, true) => Category::Retain,
            _ => Category::Punish,
        }
    };
    let categories: Vec<Category> = (0..data.pairs.len()).map(category).collect();
    let parts = hold_out(&data.pairs, &categories, 0.2, 17);
    let of = |wanted, side: &[usize]| side.iter().filter(|&&i| categories[i] == wanted).count();
    assert_eq!(of(Category::Invert, &parts.holdout), 5, "as marked");
    assert_eq!(of(Category::Punish, &parts.holdout), 4, "a fifth of twenty");
    assert_eq!(parts.train.len() + parts.holdout.len(), data.pairs.len());
    let prompts = |side: &[usize]| {
        let prompts = side.iter().map(|&i| data.pairs[i].prompt_text());
        prompts.collect::<std::collections::BTreeSet<_>>()
    };
    assert!(prompts(&parts.train).is_disjoint(&prompts(&parts.holdout)));

    let all: Vec<usize> = (0..data.pairs.len()).collect();
    let every = asked(&data.pairs, &categories, &all, 100);
    assert_eq!(every.len(), 40, "distinct prompts");
    let both = every.iter().filter(|a| a.categories.len() == 2).count();
    assert_eq!(both, 1);
    let few = asked(&data.pairs, &categories, &all, 3);
    assert!((6..=7).contains(&few.len()), "{}", few.len());
}

#[test]
fn truth_is_of_all_pairs_or_of_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pairs.jsonl");
    let labelled = r#", "truth": {"chosen_compliant": false, "rejected_compliant": true}"#;
    std::fs::write(
        &file,
        line("p", 1, labelled) + "\n" + &line("q", 2, labelled),
    )
    .unwrap();
    let data = pairs(Some(&file), dir.path()).unwrap();
    let known = truth(&data).unwrap().unwrap();
    assert_eq!(known.len(), 2);
    assert!(
        known
            .iter()
            .all(|t| Category::of(t.chosen, t.rejected) == Category::Invert)
    );
    std::fs::write(&file, line("p", 1, "")).unwrap();
    assert_eq!(
        truth(&pairs(Some(&file), dir.path()).unwrap()).unwrap(),
        None
    );
    std::fs::write(&file, line("p", 1, labelled) + "\n" + &line("q", 2, "")).unwrap();
    let error = truth(&pairs(Some(&file), dir.path()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("has no truth"), "{error}");
}
