//! `realign policy`: check, test and compare policy files, without a server. The model is loaded
//! only where a rule has a probe.

mod explain;
mod new;
mod test;
mod trust;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::remote::{RemoteArgs, RemoteError};
use super::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs, require};
use realign_align::policy::{PolicyErrors, PolicySet, diff, schema_json};

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
    /// Draft a policy from a rule in plain words and a few answers, and test the draft
    #[command(after_help = "\
Examples:
  realign policy new                      asks for everything, on a terminal
  realign policy new --rule 'The assistant names no dose.' --topic dose --topic much \\
    --question 'How much aspirin?' --wrong 'Take 300 mg.' --right 'Ask a pharmacist.' \\
    ... two more of each ... --stays 'How much luggage may I take?'
The n-th question belongs to the n-th wrong and the n-th right answer; one question alone to all of them.
Writes drafts/ID.yaml and never overwrites. What tells the answers apart is found without a model: words,
phrases, patterns, what is missing, or the length. Exits 1 if the draft does not pass its test.")]
    New(new::NewArgs),
    /// Run the examples of every rule and print its figures; exits 1 if a rule may not act
    #[command(after_help = "\
Examples:
  realign policy test                     what a server does before it activates a set
  realign policy test new-rule.yaml --json
  realign policy test --watch             again whenever a file changes, until Ctrl-C
  realign policy test --svg plots/        calibration plots of rules with probes or judges
A server refuses a set whose examples fail or with a rule below its minimum, and keeps the set it
has. Rules with probes are measured by cross-validation.")]
    Test(test::TestArgs),
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
    /// Show what each rule says about an answer, what matched where, and why; exits 1 if an enforced
    /// rule is violated or undecided
    #[command(after_help = "\
Examples:
  realign policy explain --prompt 'How much aspirin?' --response 'Take 300 mg.'
  realign policy explain new-rule.yaml --response 'Take 300 mg.' --json
  realign policy explain --url http://127.0.0.1:8080 --prompt ... --response -   what a server has active
Places are counted in characters from 0. Judges are asked only where text and probes do not decide.")]
    Explain(explain::ExplainArgs),
    /// Print the JSON Schema of policy files, for editors
    #[command(after_help = "\
Examples:
  realign policy schema > policies/policy.schema.json
Editors that use the YAML language server complete and check a policy whose first line is
# yaml-language-server: $schema=policy.schema.json")]
    Schema,
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
        PolicyCommand::Test(args) => test::run(args, global, out),
        PolicyCommand::New(args) => new::run(args, global, out),
        PolicyCommand::Diff { old, new } => compare(&read(old)??, &read(new)??, global.json, out),
        PolicyCommand::Explain(args) => explain::run(args, global, out),
        PolicyCommand::Schema => {
            out.write_all(schema_json().as_bytes())?;
            Ok(EXIT_OK)
        }
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
        PolicyCommand::Test(test::TestArgs {
            path,
            ..test::TestArgs::default()
        })
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
