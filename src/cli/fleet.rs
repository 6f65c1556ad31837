//! `realign fleet`: what a gateway does with its targets, and what operators order.

use std::io::Write;

use clap::Subcommand;
use realign_core::clock;
use serde_json::{Value, json};

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
    /// Stop rollouts before their next stage or share, until they are resumed; what serves keeps serving
    #[command(after_help = "\
Examples:
  realign fleet pause --why 'incident 42: no changes now'
A pause outlives the gateway's restart. A canary that is worse still goes back.")]
    Pause(OrderArgs),
    /// Let rollouts go on after a pause
    #[command(after_help = "\
Examples:
  realign fleet resume --why 'incident 42 is over'")]
    Resume(OrderArgs),
    /// End a rollout that has not switched; it is not started again by itself
    #[command(after_help = "\
Examples:
  realign fleet abort --why 'answers in French'
  realign fleet abort --generation 0123456789ab --why 'answers in French'
What serves keeps serving, and what was loaded for the rollout is unloaded.")]
    Abort(OrderArgs),
    /// Start what was aborted, went back or failed again
    #[command(after_help = "\
Examples:
  realign fleet rollout --why 'the French was asked for'")]
    Rollout(OrderArgs),
}

/// An operator's order.
#[derive(Debug, clap::Args)]
pub(crate) struct OrderArgs {
    /// Why; it is kept in the gateway's history
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// Who orders it [default: the user's name on this machine]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Refuse if it would be about another generation
    #[arg(long, value_name = "GENERATION")]
    generation: Option<String>,
    /// Where the gateway is.
    #[command(flatten)]
    remote: RemoteArgs,
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
    let (order, args) = match command {
        FleetCommand::Status { remote } => {
            let answer = remote.with_config(global)?.get("fleet")?;
            show(&answer, global.json, out)?;
            return Ok(exit(&answer));
        }
        FleetCommand::Pause(args) => ("pause", args),
        FleetCommand::Resume(args) => ("resume", args),
        FleetCommand::Abort(args) => ("abort", args),
        FleetCommand::Rollout(args) => ("rollout", args),
    };
    let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
    let by = args.by.clone().or_else(user);
    let mut body = json!({ "why": args.why, "by": by.as_deref().unwrap_or("operator") });
    if let Some(generation) = &args.generation {
        body["generation"] = generation.as_str().into();
    }
    let remote = args.remote.with_config(global)?;
    let answer = remote.post(&format!("fleet/{order}"), &body)?;
    show(&answer, global.json, out)?;
    // It was carried out, whatever else is wrong.
    Ok(EXIT_OK)
}

fn show(answer: &Value, as_json: bool, out: &mut dyn Write) -> Result<(), CliError> {
    match as_json {
        true => Ok(writeln!(out, "{answer}")?),
        false => print(answer, out),
    }
}

fn exit(answer: &Value) -> u8 {
    match is_in_order(answer) {
        true => EXIT_OK,
        false => EXIT_FAILED,
    }
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

/// Acts of the history that are shown.
const SHOWN: usize = 5;

/// By whom, when and why something was done.
fn done(entry: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let at = clock::utc(entry["at"].as_u64().unwrap_or(0));
    format!("by {} at {at}: {}", text(&entry["by"]), text(&entry["why"]))
}

fn percent(share: &Value) -> String {
    let percent = (share.as_f64().unwrap_or(0.0) * 10_000.0).round() / 100.0;
    format!("{percent} % of the requests")
}

fn print_canary(canary: &Value, out: &mut dyn Write) -> Result<(), CliError> {
    for arm in ["candidate", "current"] {
        let seen = &canary[arm];
        if seen.is_null() {
            continue;
        }
        let first_byte = &seen["first_byte_ms"][0];
        let median = first_byte
            .as_u64()
            .map_or("-".into(), |ms| format!("{ms} ms"));
        writeln!(
            out,
            "  {arm}: {} answers, {} failed, first byte after {median} (median), {} of {} judged violate",
            seen["answers"], seen["failures"], seen["violations"], seen["verdicts"]
        )?;
    }
    Ok(())
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
        let share = match stage.as_str() {
            "canary" => format!(", {}", percent(&rollout["share"])),
            _ => String::new(),
        };
        let to = release(&rollout["to"]);
        writeln!(out, "rollout of {to}: {stage}{share}")?;
        print_canary(&answer["canary"], out)?;
        for (target, why) in rollout["excluded"].as_object().into_iter().flatten() {
            writeln!(out, "  without {target}: {}", text(why))?;
        }
    }
    let paused = &answer["paused"];
    if !paused.is_null() {
        writeln!(out, "paused: {}", done(paused))?;
    }
    let refused = &answer["refused"];
    if !refused.is_null() {
        let why = text(&refused["why"]);
        writeln!(out, "given up: {}: {why}", release(&refused["release"]))?;
    }
    for problem in list(&answer["problems"]) {
        writeln!(out, "problem: {}", text(problem))?;
    }
    let history = list(&answer["history"]);
    for entry in &history[history.len().saturating_sub(SHOWN)..] {
        let act = text(&entry["act"]);
        let about = entry["release"]["generation"].as_str().unwrap_or("-");
        writeln!(out, "history: {act} {about}, {}", done(entry))?;
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
        let act = json!({ "by": "ann", "why": "incident 42", "at": 0, "act": "pause" });
        answer["paused"] = act.clone();
        answer["history"] = json!([act]);
        answer["rollout"]["stage"] = "canary".into();
        answer["rollout"]["share"] = 0.05.into();
        answer["canary"] = json!({ "candidate": {
            "answers": 7, "failures": 1, "first_byte_ms": [20, 40], "violations": 0, "verdicts": 2,
        } });
        let text = shown(&answer);
        for part in [
            "canary, 5 % of the requests",
            "candidate: 7 answers, 1 failed, first byte after 20 ms",
            "paused: by ann at 1970-01-01T00:00:00Z: incident 42",
            "history: pause -, by ann",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        answer["targets"][0]["in_pool"] = false.into();
        answer["targets"][0]["problem"] = "connection refused".into();
        assert!(!is_in_order(&answer) && shown(&answer).contains("connection refused"));
    }
}
