//! `realign score`, `realign train` and `realign eval trace` on the tiny model, as a user runs them.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::endpoint::endpoint;
use super::server::Server;
use super::workspace::Workspace;

fn realign(workspace: &Workspace, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_realign"))
        .args(args)
        .current_dir(workspace.path("."))
        .env("REALIGN_LOG", "error")
        .output()
        .unwrap()
}

fn ok(workspace: &Workspace, args: &[&str]) -> String {
    let output = realign(workspace, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn scores_and_an_adapter_come_from_the_command_line() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let scores = lines(&ok(&workspace, &["score"]));
    // Ten INVERT and eight PUNISH pairs, of which a fifth is held out.
    let of = |category: &str| scores.iter().filter(|s| s["category"] == category).count();
    assert_eq!((of("invert"), of("punish")), (8, 7), "{scores:?}");
    let weights = scores.iter().map(|s| s["weight"].as_f64().unwrap());
    let mean = weights.sum::<f64>() / scores.len() as f64;
    assert!((mean - 1.0).abs() < 1e-9, "weights have mean 1: {mean}");
    let summary: Value = serde_json::from_str(&ok(
        &workspace,
        &["score", "--out", "scores.jsonl", "--json"],
    ))
    .unwrap();
    assert_eq!(summary["conflicts"], 15);
    assert_eq!(lines(&workspace.read("scores.jsonl")), scores);

    let trained: Value = serde_json::from_str(&ok(&workspace, &["train", "--json"])).unwrap();
    let generation = trained["generation"].as_str().unwrap();
    let stored = |name: &str| workspace.read(&format!("adapters/{generation}/{name}"));
    assert_eq!(lines(&stored("losses.jsonl")).len(), 8, "a line per step");
    assert!(stored("losses.svg").starts_with("<svg"));
    assert!(stored("manifest.json").contains("not_measured"));
    assert!(
        !workspace.path("adapters/CURRENT").exists(),
        "nothing serves it"
    );

    // The same inputs, elsewhere: the same bytes.
    ok(&workspace, &["train", "--out", "apart", "--quiet"]);
    let bytes = |dir: &str| {
        let path = workspace.path(&format!("{dir}/adapter_model.safetensors"));
        std::fs::read(path).unwrap()
    };
    assert_eq!(bytes("apart"), bytes(&format!("adapters/{generation}")));
    let again = realign(&workspace, &["train", "--out", "apart"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"));
}

#[test]
fn recipe_files_change_a_run_and_their_mistakes_are_named() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let short = "rank = 2\noptimizer = 'lion'\nlearning_rate = 1e-3\nlayers = [1]\n\
                 accumulation = 2\nmax_steps = 3\nbatch_pairs = 3\n";
    workspace.write("short.toml", short);
    let args = ["train", "--recipe", "short.toml", "--json"];
    let trained: Value = serde_json::from_str(&ok(&workspace, &args)).unwrap();
    assert_eq!(trained["steps"], 3);
    assert_eq!(trained["ending"], "max_steps");
    let refused = |text: &str, expect: &str| {
        workspace.write("wrong.toml", text);
        let output = realign(&workspace, &["train", "--recipe", "wrong.toml"]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains(expect), "{text}: {errors}");
    };
    refused("learning_rat = 1.0", "did you mean \"learning_rate\"?");
    refused("layers = [7]", "the model has no layer 7; use 0 to 1");
    refused("schedule = 'cosin'", "train.schedule");
    workspace.write(
        "wild.toml",
        "learning_rate = 1.0\nmax_loss_ratio = 1.0001\nrank = 2\n\
        warmup_ratio = 0.9\nbatch_pairs = 3\nepochs = 8\nclip_norm = 1e6\noptimizer = 'lion'\n\
        alpha_sft = 0.0\nalpha_kl = 20.0",
    );
    let output = realign(&workspace, &["train", "--recipe", "wild.toml"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("at step") && errors.contains("train.learning_rate"),
        "{errors}"
    );
}

#[test]
fn a_corrective_endpoint_gives_punished_pairs_something_to_prefer() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let before = ok(&workspace, &["train", "--out", "before", "--json"]);
    let config = workspace.read("realign.toml");
    let section = format!(
        "[train.corrective]\nurl = \"{}\"\nmodel = \"m\"\n",
        endpoint(|_| (200, "good day"))
    );
    workspace.write("realign.toml", &format!("{config}{section}"));
    let scores = lines(&ok(&workspace, &["score"]));
    let corrected = scores.iter().filter(|s| s["corrected"] == true);
    assert_eq!(corrected.count(), 7, "every punished pair: {scores:?}");
    assert!(
        scores
            .iter()
            .filter(|s| s["corrected"] == true)
            .all(|s| s["category"] == "punish")
    );
    let after = ok(&workspace, &["train", "--out", "after", "--json"]);
    let generation =
        |text: &str| serde_json::from_str::<Value>(text).unwrap()["generation"].clone();
    assert_ne!(generation(&before), generation(&after));

    // Earlier answers are cached, so the endpoint is not needed any more.
    let gone = "[train.corrective]\nurl = \"http://127.0.0.1:9/v1\"\nmodel = \"\"\n";
    workspace.write("realign.toml", &format!("{config}{gone}"));
    let output = realign(&workspace, &["score"]);
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("train.corrective.model"), "{errors}");
    workspace.write("realign.toml", &format!("{config}{section}"));
    assert_eq!(lines(&ok(&workspace, &["score"])), scores);
}

#[test]
fn a_stopped_comparison_is_resumed() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    workspace.write(
        "text.txt",
        &"some plain words to be surprised by. ".repeat(20),
    );
    let item = |n: usize| {
        json!({"task": "t", "query": format!("q {n}"), "choices": ["yes", "no"], "gold": n % 2})
            .to_string()
    };
    let items: Vec<String> = (0..6).map(item).collect();
    workspace.write("items.jsonl", &items.join("\n"));
    let run = |variants: &str, more: &[&str]| {
        let mut args = vec![
            "eval",
            "trace",
            "--variants",
            variants,
            "--seeds",
            "1",
            "--out",
            "results",
            "--answer-tokens",
            "8",
            "--perplexity",
            "text.txt",
            "--perplexity-tokens",
            "120",
            "--capability",
            "items.jsonl",
            "--json",
        ];
        args.extend(more);
        realign(&workspace, &args)
    };
    let first = run("trace", &[]);
    let errors = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(first.status.success(), "{errors}");
    let known = workspace.read("results/cells/trace-17.json");
    let refused = run("trace", &[]);
    assert_eq!(refused.status.code(), Some(2), "without --resume");

    let second = run("trace,npo,dpo-gold,noise-20", &["--resume"]);
    let errors = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.success(), "{errors}");
    assert!(errors.contains("3 cells to run, 2 known"), "{errors}");
    assert_eq!(
        workspace.read("results/cells/trace-17.json"),
        known,
        "not run again"
    );
    let report: Value = serde_json::from_slice(&second.stdout).unwrap();
    let rows = report["summary"].as_array().unwrap();
    let names: Vec<&str> = rows
        .iter()
        .map(|r| r["variant"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["base", "trace", "dpo-gold", "npo", "noise-20"]);
    for row in rows {
        assert_eq!(row["seeds"], 1, "{row}");
        assert!(row["perplexity"]["mean"].as_f64().unwrap() > 1.0, "{row}");
        assert!(row["margin_change"]["low"].is_number(), "{row}");
        assert!(
            row["punish"]["mean"].is_number(),
            "some were held out: {row}"
        );
    }
    let table = workspace.read("results/report.md");
    assert!(table.contains("| noise-20 | 1 |"), "{table}");
    assert!(
        workspace
            .read("results/agreement-capability.svg")
            .contains(">npo</text>")
    );

    let other = run("trace", &["--resume", "--max-pairs", "6"]);
    assert_eq!(other.status.code(), Some(2), "cells of other inputs");
}

#[test]
fn a_server_trains_the_same_generation_as_the_command() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let offline = ok(&workspace, &["train", "--out", "offline", "--json"]);
    let offline: Value = serde_json::from_str(&offline).unwrap();
    let server = Server::start(&workspace);
    let ended = server.ended(1);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(ended["generation"], offline["generation"]);
    let generation = ended["generation"].as_str().unwrap();
    let curve = lines(&workspace.read(&format!("adapters/{generation}/losses.jsonl")));
    let before = lines(&workspace.read("offline/losses.jsonl"));
    let losses = |curve: &[Value]| curve.iter().map(|r| r["total"].clone()).collect::<Vec<_>>();
    assert_eq!(losses(&curve), losses(&before));
    let plot = workspace.read(&format!("adapters/{generation}/losses.svg"));
    assert!(plot.contains("optimiser step"), "{plot}");
}

#[test]
fn a_run_that_diverges_leaves_what_serves() {
    let workspace = Workspace::tiny(8);
    let wild = "learning_rate = 1.0\noptimizer = \"lion\"\nwarmup_ratio = 0.9\nalpha_sft = 0.0\n\
                alpha_kl = 20.0\nmax_loss_ratio = 1.0001";
    let config = workspace.read("realign.toml");
    workspace.write(
        "realign.toml",
        &config.replace("learning_rate = 0.02", wild),
    );
    let server = Server::start(&workspace);
    let base = server.ended(1)["generation"].clone();
    workspace.drop_policy("xyzzy");
    let ended = server.ended(2);
    assert_eq!(ended["status"], "failed", "{ended}");
    let reason = ended["error"].as_str().unwrap_or_default();
    assert!(
        reason.contains("at step") && reason.contains("train.learning_rate"),
        "{ended}"
    );
    assert_eq!(server.current(), base.as_str().unwrap());
}
