//! `realign fleet`: what a gateway does with its targets.

use std::io::Write;

use clap::Subcommand;
use serde_json::Value;

use super::remote::RemoteArgs;
use super::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs};

/// What to ask a gateway.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Print what serves, the rollout under way, and every target; exits 1 if something is wrong
    #[command(after_help = "\
Examples:
  realign fleet status
  realign fleet status --json | jq '.targets[] | select(.in_pool | not)'
  realign fleet status --url http://10.0.0.5:8080 --admin-key KEY")]
    Status {
        /// Where the gateway is.
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    command: &FleetCommand,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let FleetCommand::Status { remote } = command;
    let answer = remote.with_config(global)?.get("fleet")?;
    if global.json {
        writeln!(out, "{answer}")?;
    } else {
        print(&answer, out)?;
    }
    Ok(if is_in_order(&answer) {
        EXIT_OK
    } else {
        EXIT_FAILED
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether every target answers by what serves, and nothing else is wrong.
fn is_in_order(answer: &Value) -> bool {
    let targets = list(&answer["targets"]);
    let all = !targets.is_empty() && targets.iter().all(|t| t["in_pool"] == true);
    all && list(&answer["problems"]).is_empty() && answer["refused"].is_null()
}

fn release(value: &Value) -> String {
    match value["generation"].as_str() {
        Some(generation) => format!("{generation} (epoch {})", value["epoch"]),
        None => "nothing".into(),
    }
}

fn print(answer: &Value, out: &mut dyn Write) -> Result<(), CliError> {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    writeln!(
        out,
        "{} serves {}",
        text(&answer["model"]),
        release(&answer["current"])
    )?;
    writeln!(out, "before it: {}", release(&answer["previous"]))?;
    let rollout = &answer["rollout"];
    if !rollout.is_null() {
        let stage = text(&rollout["stage"]);
        writeln!(out, "rollout of {}: {stage}", release(&rollout["to"]))?;
        for (target, why) in rollout["excluded"].as_object().into_iter().flatten() {
            writeln!(out, "  without {target}: {}", text(why))?;
        }
    }
    let refused = &answer["refused"];
    if !refused.is_null() {
        let why = text(&refused["why"]);
        writeln!(out, "given up: {}: {why}", release(&refused["release"]))?;
    }
    for problem in list(&answer["problems"]) {
        writeln!(out, "problem: {}", text(problem))?;
    }
    writeln!(
        out,
        "{:<32} {:>6} {:>4} {:>8}  state",
        "target", "epoch", "pool", "requests"
    )?;
    for target in list(&answer["targets"]) {
        let pool = if target["in_pool"] == true {
            "yes"
        } else {
            "no"
        };
        let problem = target["problem"].as_str();
        let state = problem.or(target["doing"].as_str()).unwrap_or("in order");
        writeln!(
            out,
            "{:<32} {:>6} {pool:>4} {:>8}  {state}",
            text(&target["target"]),
            target["epoch"].to_string(),
            target["outstanding"].to_string(),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_is_shown_and_is_an_exit_code() {
        let mut answer = json!({
            "model": "m", "current": { "epoch": 7, "generation": "0123456789ab", "is_base": false },
            "previous": null, "refused": null, "problems": [],
            "rollout": {
                "to": { "epoch": 8, "generation": "ba9876543210" }, "stage": "probe",
                "excluded": { "http://c": "it does not fit" },
            },
            "targets": [
                { "target": "http://a", "epoch": 7, "in_pool": true, "doing": "probe",
                  "problem": null, "adapters": [], "outstanding": 3 },
            ],
        });
        let shown = |answer: &Value| {
            let mut out = Vec::new();
            print(answer, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = shown(&answer);
        for part in [
            "m serves 0123456789ab (epoch 7)",
            "epoch 8): probe",
            "it does not fit",
            "yes",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(is_in_order(&answer));
        answer["targets"][0]["in_pool"] = false.into();
        answer["targets"][0]["problem"] = "connection refused".into();
        assert!(!is_in_order(&answer) && shown(&answer).contains("connection refused"));
    }
}
