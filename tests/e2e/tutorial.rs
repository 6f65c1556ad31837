//! The tutorial's sessions are real: its commands are run, and what they print is what the page says.
//! `UPDATE_TUTORIAL=1` writes what they print into the page.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A command of a session, as the page has it, and what the page says that it prints.
struct Step {
    /// With the lines that continue it.
    shown: String,
    command: String,
    prints: String,
}

/// The steps of a block: each begins with `$ `, and a backslash at its end continues it.
fn steps(block: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_open = false;
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                shown: line.to_owned(),
                command: command.to_owned(),
                prints: String::new(),
            });
        } else if is_open {
            let step = steps.last_mut().unwrap();
            step.shown += &format!("\n{line}");
            step.command += &format!("\n{line}");
        } else {
            let step = steps.last_mut().expect("a session begins with a command");
            step.prints += &format!("{line}\n");
            continue;
        }
        is_open = line.ends_with('\\');
    }
    steps
}

/// Runs a command in `dir`, into which `cd` leads: what it prints.
fn run(command: &str, dir: &mut PathBuf) -> String {
    if let Some(to) = command.strip_prefix("cd ") {
        dir.push(to);
        return String::new();
    }
    let own = Path::new(env!("CARGO_BIN_EXE_realign")).parent().unwrap();
    let path = format!("{}:{}", own.display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(dir)
        .env("PATH", path)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Replaces the lines that a diff takes away by those that it adds.
fn edit(file: &Path, diff: &str) {
    let of = |sign: char| -> String {
        let lines = diff.lines().filter_map(|line| line.strip_prefix(sign));
        lines.map(|line| format!("{line}\n")).collect()
    };
    let text = std::fs::read_to_string(file).unwrap();
    let (old, new) = (of('-'), of('+'));
    assert_eq!(text.matches(&old).count(), 1, "{old}\nin\n{text}");
    std::fs::write(file, text.replace(&old, &new)).unwrap();
}

#[test]
fn the_sessions_of_the_tutorial_are_real() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tutorial.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut dir = home.path().to_owned();
    let mut file = PathBuf::new();
    let mut told = String::new();
    let mut ran = 0;
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("\n```") {
        let (block, next) = after.split_once("\n```\n").unwrap_or((after, ""));
        let (kind, body) = block.split_once('\n').unwrap();
        if let Some(name) = before
            .lines()
            .last()
            .and_then(|line| line.strip_prefix("<!-- ")?.strip_suffix(" -->"))
        {
            file = dir.join(name);
        }
        told += &format!("{before}\n```{kind}\n");
        match kind {
            "console" => {
                for step in steps(body) {
                    let prints = run(&step.command, &mut dir);
                    told += &format!("{}\n{}", step.shown, prints);
                    ran += 1;
                }
            }
            "diff" => {
                edit(&file, body);
                told += &format!("{body}\n");
            }
            _ => told += &format!("{body}\n"),
        }
        told += "```\n";
        rest = next;
    }
    told += rest;
    assert!(ran >= 5, "the page is read wrongly: {ran} commands");
    if std::env::var_os("UPDATE_TUTORIAL").is_some() {
        std::fs::write(&page, told).unwrap();
        return;
    }
    assert!(
        told == text,
        "docs/tutorial.md says otherwise (UPDATE_TUTORIAL=1 corrects it):\n{told}"
    );
}
