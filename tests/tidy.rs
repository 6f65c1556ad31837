//! Conventions that a reviewer should not have to check.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the source tree is readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn under(dir: &str) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    sources(Path::new(dir), &mut paths);
    assert!(!paths.is_empty(), "{dir} has sources");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("UTF-8");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// ARCHITECTURE.md's table, as far as it forbids. `model` is a crate of its own and sees none of them.
#[test]
fn modules_import_only_what_the_architecture_allows() {
    let siblings = [
        "config",
        "policy",
        "oracle",
        "preferences",
        "triage",
        "impact",
        "train",
        "gate",
        "adapter",
        "model",
        "engine",
        "api",
        "telemetry",
        "state",
        "control",
        "server",
        "bench",
        "cli",
        "learn",
        "plot",
        "evaluation",
    ];
    let allowed: [(&str, &[&str]); 12] = [
        ("engine", &["model", "adapter"]),
        ("policy", &[]),
        ("oracle", &["policy", "model"]),
        ("preferences", &[]),
        ("triage", &["oracle", "preferences", "policy"]),
        ("impact", &["model", "train", "triage"]),
        ("train", &["model", "triage", "state", "plot"]),
        (
            "learn",
            &[
                "model",
                "train",
                "impact",
                "triage",
                "preferences",
                "oracle",
                "policy",
            ],
        ),
        (
            "evaluation",
            &[
                "model",
                "train",
                "learn",
                "triage",
                "preferences",
                "oracle",
                "plot",
            ],
        ),
        ("gate", &["engine", "oracle", "model", "policy", "adapter"]),
        (
            "bench",
            &[
                "engine", "adapter", "model", "impact", "train", "triage", "learn",
            ],
        ),
        ("adapter", &["model", "state", "telemetry"]),
    ];
    for (module, may) in allowed {
        for (path, text) in under(&format!("src/{module}")) {
            if path.to_string_lossy().contains("test") {
                continue;
            }
            for sibling in siblings
                .iter()
                .filter(|s| **s != module && !may.contains(s))
            {
                let import = format!("crate::{sibling}");
                let used = text
                    .lines()
                    .any(|l| !l.trim_start().starts_with("//") && l.contains(&import));
                assert!(
                    !used,
                    "{}: `{module}` must not import `{sibling}`",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn no_file_outgrows_a_reader() {
    for (path, text) in under("src").into_iter().chain(under("tests")) {
        let lines = text.lines().count();
        assert!(
            lines <= 600,
            "{} has {lines} lines: split it",
            path.display()
        );
    }
}

#[test]
fn nothing_unfinished_is_marked_in_the_sources() {
    for (path, text) in under("src") {
        for mark in ["todo!(", "unimplemented!(", "TODO", "FIXME"] {
            assert!(!text.contains(mark), "{}: {mark}", path.display());
        }
    }
}
