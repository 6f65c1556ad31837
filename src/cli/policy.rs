//! `realign policy`: check, test and compare policy files, without a server. The model is loaded
//! only where a rule has a probe.

mod trust;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::remote::{RemoteArgs, RemoteError};
use super::{CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs, require};
use realign_align::oracle::{Prepared, prepare};
use realign_align::policy::{ExampleReport, PolicyErrors, PolicySet, diff};

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Parse and validate policy files; exits 1 and lists every error if one is invalid
    #[command(after_help = "\
Examples:
  realign policy check                    all files of policies/
  realign policy check staging/           all files of another directory
  realign policy check new-rule.yaml      one file
Errors are printed as file:line:column: message.")]
    Check {
        /// Directory or file [default: the policy directory]
        path: Option<PathBuf>,
    },
    /// Run the examples of every rule and print its figures; exits 1 if a rule may not act
    #[command(after_help = "\
Examples:
  realign policy test                     what a server does before it activates a set
  realign policy test new-rule.yaml --json
  realign policy test --svg plots/        calibration plots of rules with probes or judges
A server refuses a set whose examples fail or with a rule below its minimum, and keeps the set it
has. Rules with probes are measured by cross-validation.")]
    Test {
        /// Directory or file [default: the policy directory]
        path: Option<PathBuf>,
        /// Directory for one SVG calibration plot per rule that gives probabilities
        #[arg(long, value_name = "DIR")]
        svg: Option<PathBuf>,
        /// What computes
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Show what changes in meaning from one set to another
    #[command(after_help = "\
Examples:
  realign policy diff policies/ staging/  two directories
  realign policy diff old.yaml new.yaml   two files
Layout, comments, file names and the order of rules do not count. Exits 0 with or without changes.")]
    Diff {
        /// Directory or file of the old set
        old: PathBuf,
        /// Directory or file of the new set
        new: PathBuf,
    },
    /// Make a running server serve without policies; exits 1 if the directory still holds some
    #[command(after_help = "\
Examples:
  realign policy clear
  realign policy clear --url http://10.0.0.5:8080 --admin-key KEY
A policy directory that vanishes or becomes empty changes nothing by itself: the last accepted set
stays active, also over a restart. Remove the files first, then run this.")]
    Clear {
        /// Where the server is.
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    command: &PolicyCommand,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    match command {
        PolicyCommand::Check { path } => {
            let path = path_or_configured(path.as_deref(), global)?;
            let read = read(&path)?;
            let checked = read.and_then(|set| set.check_contradictions().map(|()| set));
            check(checked, global.json, out)
        }
        PolicyCommand::Test { path, svg, .. } => {
            let path = path_or_configured(path.as_deref(), global)?;
            let set = match read(&path)? {
                Ok(set) => set,
                Err(errors) => return check(Err(errors), global.json, out),
            };
            let services = super::oracle::services(&global.resolve()?, &set)?;
            match prepare(&set, &services) {
                Ok(prepared) => {
                    let contradictions = prepared.contradictions(&set);
                    if !contradictions.is_empty() {
                        return check(Err(PolicyErrors(contradictions)), global.json, out);
                    }
                    write_plots(svg.as_deref(), &prepared)?;
                    test(&set.run_examples(), &prepared, global.json, out)
                }
                Err(errors) => check(Err(errors), global.json, out),
            }
        }
        PolicyCommand::Diff { old, new } => compare(&read(old)??, &read(new)??, global.json, out),
        PolicyCommand::Clear { remote } => {
            let remote = remote.with_config(global)?;
            let (report, text, code) = match remote.post("policies/clear", &json!({})) {
                Ok(answer) => (answer, "no policies are active".to_owned(), EXIT_OK),
                Err(RemoteError::Refused(message)) => {
                    let text = format!("the server refused: {message}");
                    (json!({"error": message}), text, EXIT_FAILED)
                }
                Err(other) => return Err(other.into()),
            };
            if global.json {
                writeln!(out, "{report}")?
            } else {
                writeln!(out, "{text}")?
            }
            Ok(code)
        }
    }
}

fn path_or_configured(path: Option<&Path>, global: &GlobalArgs) -> Result<PathBuf, CliError> {
    match path {
        Some(path) => Ok(path.to_owned()),
        None => Ok(global.resolve()?.paths.policies),
    }
}

/// Reads a set from a directory or a file. The outer error is an unreadable path, the inner ones
/// are the faults in the policies.
fn read(path: &Path) -> Result<Result<PolicySet, PolicyErrors>, CliError> {
    let found = require(path, "a directory or file of policies")?;
    Ok(if found.is_dir() {
        PolicySet::load_dir(path)
    } else {
        PolicySet::load_files(&[path.to_owned()])
    })
}

fn check(
    result: Result<PolicySet, PolicyErrors>,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    match result {
        Ok(set) => {
            let (policies, rules) = sizes(&set);
            let report = json!({
                "valid": true, "policies": policies, "rules": rules,
                "revision": set.revision(), "errors": [],
            });
            let text = format!(
                "valid; policies: {policies}, rules: {rules}, revision: {}",
                short(set.revision())
            );
            print(out, as_json, &report, &text)?;
            Ok(EXIT_OK)
        }
        Err(errors) => {
            let report = json!({"valid": false, "errors": errors});
            print(out, as_json, &report, &errors.to_string())?;
            Ok(EXIT_FAILED)
        }
    }
}

fn test(
    report: &ExampleReport,
    prepared: &Prepared,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let below: Vec<String> = prepared
        .trust
        .iter()
        .filter_map(|t| Some(format!("{}:{}: {}", t.policy, t.rule, t.shortfall()?)))
        .collect();
    let passed = report.passed() && below.is_empty();
    let json = json!({
        "passed": passed, "rules": report.rules, "untested": report.untested(),
        "trust": prepared.trust, "below_minimum": below, "usage": prepared.matchers.usage(),
    });
    let text = format!(
        "{}\n\n{}",
        test_table(report),
        trust::table(&prepared.trust)
    );
    print(out, as_json, &json, text.trim_end())?;
    Ok(if passed { EXIT_OK } else { EXIT_FAILED })
}

fn write_plots(dir: Option<&Path>, prepared: &Prepared) -> Result<(), CliError> {
    let Some(dir) = dir else { return Ok(()) };
    std::fs::create_dir_all(dir)?;
    let plotted = prepared.trust.iter().filter(|t| !t.calibration.is_empty());
    for rule in plotted {
        let name = format!("{}-{}.svg", rule.policy, rule.rule).replace('/', "_");
        std::fs::write(dir.join(name), trust::svg(rule))?;
    }
    Ok(())
}

/// One line per rule, then the failures with file and line, then the totals.
fn test_table(report: &ExampleReport) -> String {
    let names = report.rules.iter().map(|r| r.policy.len() + r.rule.len());
    let width = names.max().unwrap_or(0) + 1;
    let mut lines = Vec::new();
    let (mut passed, mut failed) = (0, 0);
    for rule in &report.rules {
        let verdict = match (rule.passed, rule.failures.len()) {
            (0, 0) => "untested",
            (_, 0) => "ok",
            _ => "FAILED",
        };
        passed += rule.passed;
        failed += rule.failures.len();
        let (name, of) = (
            format!("{}:{}", rule.policy, rule.rule),
            rule.passed + rule.failures.len(),
        );
        lines.push(format!(
            "{name:width$}  {verdict:8}  {} of {of} examples",
            rule.passed
        ));
    }
    let errors = report.clone().into_errors();
    lines.extend(errors.iter().map(|error| error.to_string()));
    lines.push(format!(
        "examples passed: {passed}, failed: {failed}; rules without examples: {}",
        report.untested().len()
    ));
    lines.join("\n")
}

fn compare(
    old: &PolicySet,
    new: &PolicySet,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let changes = diff(old, new);
    let realigns = old.revision() != new.revision();
    let report = json!({
        "identical": changes.is_empty(), "realigns": realigns,
        "old_revision": old.revision(), "new_revision": new.revision(), "changes": changes,
    });
    let effect = if realigns {
        "a server that gets the new set realigns"
    } else {
        "what trains is the same: a server does not realign"
    };
    let text = if changes.is_empty() {
        "no change in meaning".to_owned()
    } else {
        format!("{changes}{effect}")
    };
    print(out, as_json, &report, &text)?;
    Ok(EXIT_OK)
}

fn print(out: &mut dyn Write, as_json: bool, json: &Value, text: &str) -> std::io::Result<()> {
    if as_json {
        writeln!(out, "{json}")
    } else {
        writeln!(out, "{text}")
    }
}

fn sizes(set: &PolicySet) -> (usize, usize) {
    let rules = set.policies().iter().map(|policy| policy.rules.len()).sum();
    (set.policies().len(), rules)
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"apiVersion: realign/v1
id: no-doses
version: "1"
description: Doses are not for us.
rules:
  - id: dose
    description: Milligrams in an answer.
    violates: { response: { any_regex: ["[0-9]+ ?mg"] } }
    examples:
      - { prompt: "How much?", response: "Take 200 mg.", verdict: violates }
      - { prompt: "How much?", response: "Ask a pharmacist.", verdict: complies }
"#;

    fn run_json(command: &PolicyCommand) -> (u8, Value) {
        let global = GlobalArgs {
            json: true,
            ..GlobalArgs::default()
        };
        let mut out = Vec::new();
        let code = run(command, &global, &mut out).unwrap();
        (code, serde_json::from_slice(&out).unwrap())
    }

    fn run_text(command: &PolicyCommand) -> (u8, String) {
        let mut out = Vec::new();
        let code = run(command, &GlobalArgs::default(), &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    fn file(dir: &Path, name: &str, text: &str) -> Option<PathBuf> {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    }

    #[test]
    fn check_names_every_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "good.yaml", GOOD);
        let (code, report) = run_json(&PolicyCommand::Check { path: path.clone() });
        assert_eq!(
            (code, &report["valid"], &report["rules"]),
            (EXIT_OK, &json!(true), &json!(1))
        );
        file(
            dir.path(),
            "bad.yaml",
            &GOOD.replace("violates:", "violate:"),
        );
        let whole = PolicyCommand::Check {
            path: Some(dir.path().into()),
        };
        let (code, text) = run_text(&whole);
        assert_eq!(code, EXIT_FAILED);
        assert!(
            text.contains("bad.yaml:8:5:") && text.contains("did you mean `violates`"),
            "{text}"
        );
        assert_eq!(run_json(&whole).1["errors"][0]["line"], 8);
        // An invalid set cannot be tested, for the same reasons.
        let test = test_of(Some(dir.path().into()));
        assert_eq!(run_json(&test).0, EXIT_FAILED);
        let missing = PolicyCommand::Check {
            path: Some(dir.path().join("none")),
        };
        let error = run(&missing, &GlobalArgs::default(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }

    fn test_of(path: Option<PathBuf>) -> PolicyCommand {
        PolicyCommand::Test {
            path,
            svg: None,
            device: DeviceArgs::default(),
        }
    }

    #[test]
    fn test_runs_the_examples() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "good.yaml", GOOD);
        let (code, text) = run_text(&test_of(path));
        assert_eq!(code, EXIT_OK);
        assert!(text.contains("no-doses:dose  ok        2 of 2"), "{text}");
        let path = file(dir.path(), "wrong.yaml", &GOOD.replace("200 mg", "some"));
        let command = test_of(path);
        let (code, text) = run_text(&command);
        assert_eq!(code, EXIT_FAILED);
        assert!(
            text.contains("FAILED") && text.contains("wrong.yaml:10:"),
            "{text}"
        );
        assert_eq!(run_json(&command).1["passed"], json!(false));
    }

    #[test]
    fn diff_tells_meaning_from_layout() {
        let dir = tempfile::tempdir().unwrap();
        let old = file(dir.path(), "old.yaml", GOOD).unwrap();
        let cases = [
            (format!("# a comment\n{GOOD}"), true, false),
            (GOOD.replace("Doses are", "They are"), false, false),
            (GOOD.replace("mg\"", "mg?\""), false, true),
        ];
        for (text, identical, realigns) in cases {
            let new = file(dir.path(), "new.yaml", &text).unwrap();
            let old = old.clone();
            let (code, report) = run_json(&PolicyCommand::Diff { old, new });
            assert_eq!(code, EXIT_OK);
            assert_eq!(report["identical"], json!(identical), "{text}");
            assert_eq!(report["realigns"], json!(realigns), "{text}");
        }
    }
}
