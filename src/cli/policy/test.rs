//! `realign policy test`: the rules' own examples, and how far each rule can be trusted.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use serde_json::{Value, json};

use super::{check, path_or_configured, read, trust};
use crate::{CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs};
use realign_align::oracle::{Prepared, prepare};
use realign_align::policy::{ExampleReport, PolicyErrors, PolicySet, PolicyWatcher, WatchOptions};

/// Flags of `policy test`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TestArgs {
    /// Directory or file [default: the policy directory]
    pub(crate) path: Option<PathBuf>,
    /// Directory for one SVG calibration plot per rule that gives probabilities
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
    /// Test again whenever a file changes, until Ctrl-C
    #[arg(long)]
    pub(crate) watch: bool,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Runs the command and returns the exit code.
pub(super) fn run(
    args: &TestArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    if !args.watch {
        return once(args, global, out);
    }
    let path = path_or_configured(args.path.as_deref(), global)?;
    // A file is watched by its directory, as editors replace it by another.
    let dir = match path.is_dir() {
        true => path,
        false => path
            .parent()
            .filter(|dir| *dir != Path::new(""))
            .unwrap_or(Path::new("."))
            .to_owned(),
    };
    let (changed, changes) = sync_channel(1);
    let on_change = move || {
        // A change that waits already need not be told again.
        let _waits = changed.try_send(());
    };
    // Armed before the first test, so that no change falls between the two.
    let _watcher = PolicyWatcher::start(dir, WatchOptions::default(), on_change)
        .map_err(|error| CliError::Output(std::io::Error::other(error)))?;
    watch(args, global, out, || changes.recv().is_ok())
}

/// Tests once, and again after each change for as long as there are any.
fn watch(
    args: &TestArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
    mut changes: impl FnMut() -> bool,
) -> Result<u8, CliError> {
    loop {
        let code = match once(args, global, out) {
            Ok(code) => code,
            // A file that is being replaced may be missing for a moment.
            Err(error) => {
                let text = error.to_string();
                super::print(out, global.json, &json!({"error": text}), &text)?;
                EXIT_FAILED
            }
        };
        if !global.json {
            writeln!(out, "\nwaiting for a change; Ctrl-C ends")?;
        }
        out.flush()?;
        if !changes() {
            return Ok(code);
        }
        if !global.json {
            writeln!(out)?;
        }
    }
}

fn once(args: &TestArgs, global: &GlobalArgs, out: &mut dyn Write) -> Result<u8, CliError> {
    let path = path_or_configured(args.path.as_deref(), global)?;
    let tested = match read(&path)? {
        Ok(set) => Tested::new(&set, global)?,
        Err(errors) => Err(errors),
    };
    match tested {
        Ok(tested) => {
            write_plots(args.svg.as_deref(), &tested.prepared)?;
            super::print(out, global.json, &tested.json(), tested.text().trim_end())?;
            Ok(if tested.passed() {
                EXIT_OK
            } else {
                EXIT_FAILED
            })
        }
        Err(errors) => check(Err(errors), global.json, out),
    }
}

/// What a server finds before it activates a set.
pub(super) struct Tested {
    examples: ExampleReport,
    prepared: Prepared,
    below: Vec<String>,
}

impl Tested {
    /// Tests a set. The inner error is what a server would refuse it for.
    pub(super) fn new(
        set: &PolicySet,
        global: &GlobalArgs,
    ) -> Result<Result<Self, PolicyErrors>, CliError> {
        let services = crate::oracle::services(&global.resolve()?, set)?;
        let prepared = match prepare(set, &services) {
            Ok(prepared) => prepared,
            Err(errors) => return Ok(Err(errors)),
        };
        let contradictions = prepared.contradictions(set);
        if !contradictions.is_empty() {
            return Ok(Err(PolicyErrors(contradictions)));
        }
        let below = prepared.trust.iter();
        let below =
            below.filter_map(|t| Some(format!("{}:{}: {}", t.policy, t.rule, t.shortfall()?)));
        Ok(Ok(Self {
            examples: set.run_examples(),
            below: below.collect(),
            prepared,
        }))
    }

    pub(super) fn passed(&self) -> bool {
        self.examples.passed() && self.below.is_empty()
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "passed": self.passed(), "rules": self.examples.rules,
            "untested": self.examples.untested(), "trust": self.prepared.trust,
            "below_minimum": self.below, "usage": self.prepared.matchers.usage(),
        })
    }

    pub(super) fn text(&self) -> String {
        let (examples, trust) = (table(&self.examples), trust::table(&self.prepared.trust));
        format!("{examples}\n\n{trust}")
    }

    /// The probes and judges, to judge with.
    pub(super) fn prepared(&self) -> &Prepared {
        &self.prepared
    }
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
fn table(report: &ExampleReport) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "apiVersion: realign/v1\nid: p\nversion: '1'\nrules:\n  - id: r\n    violates: \
        { response: { any_phrase: [bad] } }\n    examples:\n      - { prompt: q, response: bad, \
        verdict: violates }\n";

    /// Each change is followed by a test, and a file that is gone for a moment ends nothing.
    #[test]
    fn watching_tests_again_after_each_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.yaml");
        std::fs::write(&path, POLICY).unwrap();
        let args = TestArgs {
            path: Some(path.clone()),
            ..TestArgs::default()
        };
        let mut changes = 0;
        let change = || {
            changes += 1;
            match changes {
                1 => std::fs::write(&path, POLICY.replace("response: bad", "response: fine"))
                    .unwrap(),
                2 => std::fs::remove_file(&path).unwrap(),
                3 => std::fs::write(&path, POLICY).unwrap(),
                _ => return false,
            }
            true
        };
        let mut out = Vec::new();
        let code = watch(&args, &GlobalArgs::default(), &mut out, change).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(code, EXIT_OK, "{text}");
        let words = ["ok ", "FAILED", "give a directory or file", "ok "];
        let mut rest = text.as_str();
        for word in words {
            let at = rest.find(word).unwrap_or_else(|| panic!("{word}: {text}"));
            rest = &rest[at + word.len()..];
        }
        assert_eq!(text.matches("waiting for a change").count(), 4);
    }
}
