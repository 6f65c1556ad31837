//! `realign doctor`: whether a server would start here and do what it is for, and how to mend what is
//! wrong.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs, demo};
use realign_align::oracle::needs_services;
use realign_align::policy::{Matcher, PolicyErrors, PolicySet};
use realign_align::preferences::{Dataset, NOT_READ, inspect};
use realign_server::config::{Config, ConfigError};
use realign_server::serve::preflight::{self, Finding, Level};

/// Errors and reasons that a line lists; the commands that they name list all.
const LISTED: usize = 3;

/// Flags of `doctor`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  realign doctor                          with realign.toml of this directory
  realign doctor --config /etc/realign.toml
  realign doctor --json                   for scripts
Starts nothing and changes nothing; a server may run meanwhile. Exits 1 if there is a fault: the server
would not start, or not do what it is for. Warnings do not count.")]
pub(crate) struct DoctorArgs {}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`], if the output cannot be written: what is wrong with the configuration is a finding.
pub(crate) fn run(
    _: &DoctorArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let found = match global.resolve() {
        Ok(config) => all(&config),
        Err(error) => vec![unusable(&error)],
    };
    let count = |level| found.iter().filter(|f| f.level == level).count();
    let (faults, warnings) = (count(Level::Fault), count(Level::Warning));
    if global.json {
        let report = json!({"faults": faults, "warnings": warnings, "findings": found});
        writeln!(out, "{report}")?;
    } else {
        let width = found.iter().map(|f| f.subject.len()).max().unwrap_or(0);
        for finding in &found {
            let word = match finding.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Fault => "FAULT",
            };
            let text = finding
                .text
                .replace('\n', &format!("\n{:1$}", "", width + 11));
            writeln!(out, "{word:7}  {:width$}  {text}", finding.subject)?;
        }
        writeln!(out, "\nfaults: {faults}, warnings: {warnings}")?;
        if faults == 0 {
            writeln!(
                out,
                "`realign serve` starts a server with this configuration"
            )?;
        }
    }
    Ok(if faults > 0 { EXIT_FAILED } else { EXIT_OK })
}

fn unusable(error: &ConfigError) -> Finding {
    Finding::fault("configuration", error.to_string())
}

fn all(config: &Config) -> Vec<Finding> {
    let mut found = vec![Finding::ok(
        "configuration",
        "every key is known and in its range",
    )];
    let missing = !config.model.starts_with("hf:") && !Path::new(&config.model).exists();
    found.extend(preflight::look(config).into_iter().map(|mut finding| {
        if missing && finding.subject == "model" && finding.level == Level::Fault {
            finding.text = format!("{} is not there.\n{}", config.model, demo::FETCH);
        }
        finding
    }));
    found.extend(policies(config));
    found.push(preferences(config));
    found
}

/// Whether the policies would become active, as far as that can be told without the model.
fn policies(config: &Config) -> Vec<Finding> {
    const SUBJECT: &str = "policies";
    let dir = &config.paths.policies;
    if !dir.is_dir() {
        let text = format!(
            "{} is not there, so nothing is governed: `realign init` makes it, with a policy to \
             edit, and `realign policy new` drafts one from examples",
            dir.display()
        );
        return vec![Finding::warning(SUBJECT, text)];
    }
    let set = match usable(dir) {
        Ok(set) if set.is_empty() => {
            let text =
                "none, so nothing is governed: `realign policy new` drafts one from examples";
            return vec![Finding::warning(SUBJECT, text)];
        }
        Ok(set) => set,
        Err(errors) => return vec![Finding::fault(SUBJECT, refused(&errors))],
    };
    let rules = set.policies().iter().map(|policy| policy.rules.len());
    let enforced = set.policies().iter().filter(|p| p.is_enforced()).count();
    let text = format!(
        "policies: {}, of them enforced: {enforced}, rules: {}; their examples pass",
        set.policies().len(),
        rules.sum::<usize>()
    );
    let mut found = vec![match enforced {
        0 => Finding::warning(
            SUBJECT,
            format!("{text}; all are `dryrun`, so nothing trains: set `enforcement: enforce`"),
        ),
        _ => Finding::ok(SUBJECT, text),
    }];
    found.extend(asked(&set));
    found
}

/// The set as a server would accept it, without probes and judges.
fn usable(dir: &std::path::Path) -> Result<PolicySet, PolicyErrors> {
    let set = PolicySet::load_dir(dir)?;
    set.check_contradictions()?;
    match set.run_examples().into_errors() {
        failed if failed.is_empty() => Ok(set),
        failed => Err(PolicyErrors(failed)),
    }
}

fn refused(errors: &PolicyErrors) -> String {
    let all = &errors.0;
    let mut lines: Vec<String> = all.iter().take(LISTED).map(ToString::to_string).collect();
    if all.len() > LISTED {
        lines.push(format!("and {} more", all.len() - LISTED));
    }
    lines.push(
        "`realign policy test` lists all; the set that was accepted before stays active".into(),
    );
    lines.join("\n")
}

/// What the rules ask beside the text.
fn asked(set: &PolicySet) -> Vec<Finding> {
    const SUBJECT: &str = "probes and judges";
    let (probes, judges) = needs_services(set);
    let mut found = Vec::new();
    if probes {
        let text = "rules ask probes, which the first start fits: `realign policy test` says how \
                    far they can be trusted";
        found.push(Finding::ok(SUBJECT, text));
    }
    if !judges {
        return found;
    }
    let rules = set.policies().iter().flat_map(|policy| &policy.rules);
    let mut endpoints: Vec<(&str, Option<&str>)> = rules
        .flat_map(|rule| rule.matchers())
        .filter_map(|matcher| match matcher {
            Matcher::Judge(spec) => Some((spec.url.as_str(), spec.key_env.as_deref())),
            Matcher::Probe(_) => None,
        })
        .collect();
    endpoints.sort_unstable();
    endpoints.dedup();
    found.extend(endpoints.into_iter().map(|(url, key)| match key {
        Some(name) if std::env::var_os(name).is_none() => Finding::fault(
            SUBJECT,
            format!("the judge at {url} needs a key: set {name} in the server's environment"),
        ),
        _ => Finding::ok(
            SUBJECT,
            format!("a judge at {url} is asked; it was not called now"),
        ),
    }));
    found
}

/// What is read of the preference data, and what is refused.
fn preferences(config: &Config) -> Finding {
    const SUBJECT: &str = "preference data";
    let dir = &config.paths.preferences;
    if !dir.is_dir() {
        let text = format!(
            "{} is not there: the server does not realign without it, even if it is empty; \
             `realign init` makes it",
            dir.display()
        );
        return Finding::warning(SUBJECT, text);
    }
    let looked = Dataset::files(dir).and_then(|(files, unread)| Ok((inspect(&files)?, unread)));
    let (reports, unread) = match looked {
        Ok(looked) => looked,
        Err(error) => return Finding::fault(SUBJECT, error.to_string()),
    };
    let pairs: usize = reports.iter().map(|report| report.pairs).sum();
    let refused: usize = reports.iter().map(|report| report.refused.len()).sum();
    let text = format!("files: {}, pairs: {pairs}", reports.len());
    if refused > 0 || !unread.is_empty() {
        let mut text = format!("{text}, refused rows: {refused}");
        for file in unread.iter().take(LISTED) {
            text.push_str(&format!("\n{}: not read: {NOT_READ}", file.display()));
        }
        text.push_str("\n`realign preferences check` says which and why");
        return Finding::warning(SUBJECT, text);
    }
    if pairs == 0 && config.gather.enabled {
        let text = format!("{text}: the server makes pairs itself from the rules' examples");
        return Finding::ok(SUBJECT, text);
    }
    if pairs == 0 {
        let text = format!("{text}, and [gather] is off: there is nothing to train on");
        return Finding::warning(SUBJECT, text);
    }
    Finding::ok(SUBJECT, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn doctor(dir: &Path, settings: &str) -> (u8, serde_json::Value) {
        let file = dir.join("realign.toml");
        std::fs::write(&file, settings).unwrap();
        let global = GlobalArgs {
            json: true,
            config: Some(file),
            policies: Some(dir.join("policies")),
            preferences: Some(dir.join("preferences")),
            state: Some(dir.join("state")),
            adapters: Some(dir.join("adapters")),
            ..GlobalArgs::default()
        };
        let mut out = Vec::new();
        let code = run(&DoctorArgs {}, &global, &mut out).unwrap();
        (code, serde_json::from_slice(&out).unwrap())
    }

    fn of<'a>(report: &'a serde_json::Value, subject: &str) -> (&'a str, &'a str) {
        let all = report["findings"].as_array().unwrap();
        let found = all.iter().find(|f| f["subject"] == subject).unwrap();
        (
            found["level"].as_str().unwrap(),
            found["text"].as_str().unwrap(),
        )
    }

    const PORT: &str = "[server]\nport = 0\n";

    #[test]
    fn an_unknown_key_is_the_fault() {
        let dir = tempfile::tempdir().unwrap();
        let (code, report) = doctor(dir.path(), "[engine]\nkv_cache = 1\n");
        assert_eq!(code, EXIT_FAILED);
        let (level, text) = of(&report, "configuration");
        assert!(level == "fault" && text.contains("kv_cache_mb"), "{text}");
    }

    #[test]
    fn policies_and_data_are_looked_at_as_a_server_would() {
        let dir = tempfile::tempdir().unwrap();
        let (_, report) = doctor(dir.path(), PORT);
        assert_eq!(of(&report, "policies").0, "warning");
        assert_eq!(of(&report, "preference data").0, "warning");
        for name in ["policies", "preferences"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let policy = |text: &str| std::fs::write(dir.path().join("policies/p.yaml"), text).unwrap();
        let good = "apiVersion: realign/v1\nid: p\nversion: '1'\nrules:\n  - id: r\n    violates: \
                    { response: { any_phrase: [bad] } }\n    examples:\n      - { prompt: q, \
                    response: bad, verdict: violates }\n";
        policy(good);
        let rows = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\nnot JSON\n";
        std::fs::write(dir.path().join("preferences/d.jsonl"), rows).unwrap();
        let (_, report) = doctor(dir.path(), PORT);
        assert_eq!(of(&report, "policies").0, "ok", "{report}");
        let (level, text) = of(&report, "preference data");
        assert_eq!(level, "warning");
        assert!(text.contains("pairs: 1, refused rows: 1"), "{text}");
        policy(&good.replace("response: bad", "response: fine"));
        let (code, report) = doctor(dir.path(), PORT);
        assert_eq!(code, EXIT_FAILED);
        let (level, text) = of(&report, "policies");
        assert!(level == "fault" && text.contains("p.yaml:"), "{text}");
        let judged = good.replace(
            "response: { any_phrase: [bad] }",
            "judge: { url: 'http://h/v1', model: m, question: 'Rude?', key_env: REALIGN_NO_SUCH }",
        );
        policy(&judged);
        let (_, report) = doctor(dir.path(), PORT);
        let (level, text) = of(&report, "probes and judges");
        assert!(
            level == "fault" && text.contains("REALIGN_NO_SUCH"),
            "{text}"
        );
    }
}
