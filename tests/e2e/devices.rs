//! `--device`: every command that has the flag honours it or fails; the others refuse it.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use clap::CommandFactory;
use realign_cli::Cli;

use super::workspace::Workspace;

/// Commands that run a model, with the fewest arguments that each needs.
const COMPUTING: [(&str, &[&str]); 17] = [
    ("serve", &["--port", "0"]),
    ("control", &["--port", "0"]),
    ("policy test", &[]),
    ("policy explain", &["--response", "hello"]),
    ("policy new", NEW),
    ("triage", &[]),
    ("plan", &[]),
    ("score", &[]),
    ("train", &[]),
    ("eval oracle", &["--data", "labelled.jsonl"]),
    ("eval trace", &["--out", "results"]),
    ("eval diversion", &[]),
    ("eval gate", &[]),
    (
        "eval bench",
        &[
            "--dir",
            concat!(env!("CARGO_MANIFEST_DIR"), "/benches/policies"),
        ],
    ),
    ("gather", &[]),
    ("model info", &[]),
    ("bench", &[]),
];

/// Three wrong and three right answers.
const NEW: &[&str] = &[
    "--rule",
    "The assistant names no dose.",
    "--question",
    "How much aspirin?",
    "--wrong",
    "Take 300 mg.",
    "--wrong",
    "About 500 mg a day.",
    "--wrong",
    "Start with 81 mg.",
    "--right",
    "Ask a pharmacist.",
    "--right",
    "A pharmacist knows.",
    "--right",
    "Please ask a pharmacist.",
];

/// Other modes of these commands that compute.
const MORE: [(&str, &[&str]); 4] = [
    ("bench", &["--learning", "mini"]),
    ("bench", &["--shape", "tiny"]),
    ("bench", &["--serve"]),
    ("train", &["--out", "apart"]),
];

fn realign(workspace: &Workspace, args: &[&str], variable: Option<&str>) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    command
        .args(args)
        .current_dir(workspace.path("."))
        .env("REALIGN_LOG", "error");
    if let Some(device) = variable {
        command.env("REALIGN_ENGINE__DEVICE", device);
    }
    let Output { status, stderr, .. } = command.output().unwrap();
    let errors = String::from_utf8_lossy(&stderr).into_owned();
    (status.code().unwrap_or(-1), errors)
}

fn workspace() -> Workspace {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    // `realign control` wants somewhere to publish to.
    let target = "[[fleet.targets]]\nkind = \"vllm\"\nurl = \"http://127.0.0.1:9\"\n";
    let config = workspace.read("realign.toml") + target;
    workspace.write("realign.toml", &config);
    workspace.write(
        "labelled.jsonl",
        r#"{"prompt": "p", "chosen": "a", "rejected": "b", "truth": {"chosen_compliant": false, "rejected_compliant": true}}"#,
    );
    workspace
}

/// Commands without subcommands, as a user types them, and whether they have the flag.
fn leaves(command: &clap::Command, path: &str, into: &mut Vec<(String, bool)>) {
    let mut subcommands = command.get_subcommands().peekable();
    if subcommands.peek().is_none() {
        let mut arguments = command.get_arguments();
        let has = arguments.any(|argument| argument.get_long() == Some("device"));
        into.push((path.trim().to_owned(), has));
    }
    for subcommand in subcommands {
        let path = format!("{path} {}", subcommand.get_name());
        leaves(subcommand, &path, into);
    }
}

fn all() -> Vec<(String, bool)> {
    let mut all = Vec::new();
    leaves(&Cli::command(), "", &mut all);
    all
}

#[test]
fn a_device_that_does_not_answer_is_refused_by_every_command_that_runs_a_model() {
    let having = all().into_iter().filter(|(_, has)| *has);
    let having: BTreeSet<String> = having.map(|(path, _)| path).collect();
    let listed = COMPUTING.iter().map(|(path, _)| (*path).to_owned());
    assert_eq!(having, listed.collect(), "the list above is complete");
    let workspace = workspace();
    for (path, more) in COMPUTING.iter().chain(&MORE) {
        let command: Vec<&str> = path.split(' ').chain(more.iter().copied()).collect();
        let device = ["--device", "cuda:7"];
        for args in [[&command[..], &device[..]], [&device[..], &command[..]]] {
            let args = args.concat();
            let (code, errors) = realign(&workspace, &args, None);
            assert_eq!(code, 2, "{args:?}: {errors}");
            assert!(errors.contains("device cuda:7"), "{args:?}: {errors}");
        }
    }
    assert!(!workspace.path("adapters").exists(), "nothing was trained");
    let (_, errors) = realign(&workspace, &["train", "--device", "gpu"], None);
    assert!(errors.contains("auto, cpu, or cuda:N"), "{errors}");
}

/// The device can also be set by configuration: the commands themselves open it.
#[test]
fn the_configured_device_is_the_one_that_computes() {
    let workspace = workspace();
    let by_text_only = [
        "policy test",
        "policy explain",
        "policy new",
        "triage",
        "plan",
    ];
    for (path, more) in COMPUTING.iter().chain(&MORE) {
        let args: Vec<&str> = path.split(' ').chain(more.iter().copied()).collect();
        let (code, errors) = realign(&workspace, &args, Some("cuda:7"));
        if by_text_only.contains(path) {
            assert_eq!(code, 0, "{args:?} runs no model here: {errors}");
        } else {
            assert_eq!(code, 2, "{args:?}: {errors}");
            assert!(errors.contains("device cuda:7"), "{args:?}: {errors}");
        }
    }
}

#[test]
fn commands_that_run_no_model_have_no_device() {
    let workspace = workspace();
    let lacking: Vec<String> = all()
        .into_iter()
        .filter(|(_, has)| !has)
        .map(|(path, _)| path)
        .collect();
    assert!(lacking.contains(&"keys new".to_owned()), "{lacking:?}");
    for path in &lacking {
        let mut args: Vec<&str> = path.split(' ').collect();
        args.extend(["--device", "cpu"]);
        let (code, errors) = realign(&workspace, &args, None);
        assert_eq!(code, 2, "{args:?}: {errors}");
        assert!(errors.contains("'--device'"), "{args:?}: {errors}");
    }
    for args in [
        &["--device", "cpu", "policy", "check"][..],
        &["--device", "cpu", "adapters", "list"],
        &["--device", "cpu", "bench", "--url", "http://127.0.0.1:9/v1"],
    ] {
        let (code, errors) = realign(&workspace, args, None);
        assert_eq!(code, 2, "{args:?}: {errors}");
        assert!(errors.contains("--device has no meaning"), "{errors}");
    }
}
