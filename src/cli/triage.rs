//! `realign triage` and `realign plan`: what the policies say about the preference data, and what a
//! server would do about it. Nothing is trained and nothing is written.

mod report;

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::{CliError, EXIT_OK, GlobalArgs, require};
use crate::config::Config;
use crate::control::recipe;
use crate::oracle::{Prepared, RuleOracle, prepare_trusted};
use crate::policy::PolicySet;
use crate::preferences::Dataset;
use crate::triage::triage;

pub use report::{Conflict, Plan, Reason, RuleCount, TriageReport};

/// Characters of a text that a line on a terminal shows; JSON has the whole text.
const SHOWN: usize = 90;

/// Flags of `triage`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  realign triage                          policies/ over preferences/
  realign triage --examples 5             with five conflicting pairs and the rules that decided
  realign triage --policies staging/ --include-dryrun --json
Categories: invert (chosen violates, rejected complies), punish (both violate), retain (chosen
complies). The gap ratio is the share of pairs that are not retained.")]
pub struct TriageArgs {
    /// Conflicting pairs to show, with the rules that decided
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub examples: usize,
    /// Also judge by policies with `enforcement: dryrun`
    #[arg(long)]
    pub include_dryrun: bool,
}

/// Flags of `plan`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  realign plan                            what a server would do with policies/ now
  realign plan --policies staging/ --json before staging/ is copied to policies/
The steps are an upper bound: pairs longer than the recipe's max_tokens are left out of training.")]
pub struct PlanArgs {
    /// Conflicting pairs to show, with the rules that decided
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub examples: usize,
}

/// Runs `triage` and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub fn run_triage(
    args: &TriageArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let (set, prepared, dataset) = inputs(&global.resolve()?)?;
    let oracle = match args.include_dryrun {
        true => RuleOracle::with_dryrun(&set),
        false => RuleOracle::new(&set),
    };
    let oracle = oracle.with_matchers(prepared.matchers);
    let triage = triage(&dataset.pairs, &oracle);
    let report = TriageReport::new(&oracle, &dataset, &triage, args.examples);
    print(out, global.json, &report, &triage_text(&report))
}

/// Runs `plan` and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub fn run_plan(args: &PlanArgs, global: &GlobalArgs, out: &mut dyn Write) -> Result<u8, CliError> {
    let config = global.resolve()?;
    let recipe = recipe(&config.train)?;
    let (set, prepared, dataset) = inputs(&config)?;
    let oracle = prepared.oracle(&set);
    let triage = triage(&dataset.pairs, &oracle);
    let report = TriageReport::new(&oracle, &dataset, &triage, args.examples);
    let plan = Plan::new(
        report,
        &recipe,
        &dataset,
        &triage,
        config.gate.holdout_ratio,
    );
    print(out, global.json, &plan, &plan_text(&plan))
}

/// The set and the data as a server would take them: a set whose examples fail is refused.
fn inputs(config: &Config) -> Result<(PolicySet, Prepared, Dataset), CliError> {
    require(
        &config.paths.policies,
        "a directory of policies (--policies)",
    )?;
    require(
        &config.paths.preferences,
        "a directory of preference data (--preferences)",
    )?;
    let (set, prepared) = read_set(config, &config.paths.policies)?;
    Ok((set, prepared, Dataset::load_dir(&config.paths.preferences)?))
}

/// A set as a server would take it, its rules ready to be asked.
fn read_set(config: &Config, dir: &Path) -> Result<(PolicySet, Prepared), CliError> {
    let set = PolicySet::load_dir(dir)?;
    let prepared = prepare_trusted(&set, &super::oracle::services(config, &set)?)?;
    Ok((set, prepared))
}

fn print(
    out: &mut dyn Write,
    as_json: bool,
    report: &impl Serialize,
    text: &str,
) -> Result<u8, CliError> {
    match as_json {
        true => writeln!(out, "{}", serde_json::to_string(report)?)?,
        false => out.write_all(text.as_bytes())?,
    }
    Ok(EXIT_OK)
}

fn triage_text(report: &TriageReport) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _infallible = write_triage(&mut text, report);
    text
}

fn write_triage(text: &mut String, report: &TriageReport) -> std::fmt::Result {
    let counts = report.counts;
    writeln!(
        text,
        "{} pairs: {} invert, {} punish, {} retain; gap ratio {:.3}",
        report.pairs, counts.invert, counts.punish, counts.retain, report.gap_ratio
    )?;
    if report.duplicates > 0 {
        writeln!(text, "{} duplicate lines were merged", report.duplicates)?;
    }
    for line in &report.skipped {
        writeln!(text, "skipped {line}")?;
    }
    let names = report.rules.iter().map(|r| r.policy.len() + r.rule.len());
    let width = names.max().unwrap_or(0) + 1;
    for rule in &report.rules {
        let name = format!("{}:{}", rule.policy, rule.rule);
        writeln!(
            text,
            "{name:width$}  {:8}  violated by {} chosen, {} rejected",
            rule.severity.as_str(),
            rule.chosen,
            rule.rejected
        )?;
    }
    report
        .examples
        .iter()
        .try_for_each(|e| write_conflict(text, e))
}

fn write_conflict(text: &mut String, conflict: &Conflict) -> std::fmt::Result {
    let category = conflict.category.as_str();
    writeln!(text, "\n{category}  {}", conflict.source)?;
    writeln!(text, "  prompt    {}", one_line(&conflict.prompt))?;
    writeln!(text, "  chosen    {}", one_line(&conflict.chosen))?;
    writeln!(text, "  rejected  {}", one_line(&conflict.rejected))?;
    for reason in &conflict.because {
        let evidence = reason.evidence.as_deref().map(one_line).unwrap_or_default();
        writeln!(
            text,
            "  {} violates {}:{}  {evidence}",
            reason.response, reason.policy, reason.rule
        )?;
    }
    Ok(())
}

fn plan_text(plan: &Plan) -> String {
    let effect = match (plan.trains, plan.triage.counts.conflicts()) {
        (true, _) => format!(
            "a realignment takes at most {} steps: {} pairs, {} per step, {} epochs (recipe {})",
            plan.steps, plan.train_pairs, plan.pairs_per_step, plan.epochs, plan.recipe
        ),
        (false, 0) => "no pair is in conflict: the base model serves, nothing is trained".into(),
        (false, _) => "all conflicting pairs are held out: nothing can be trained; add data".into(),
    };
    let gap = if plan.triage.examples.is_empty() {
        ""
    } else {
        "\n"
    };
    format!(
        "{}{gap}{effect}\n{} of the training pairs are in conflict; {} pairs are held out to measure on, {} of them in conflict\n",
        triage_text(&plan.triage),
        plan.train_conflicts,
        plan.holdout_pairs,
        plan.holdout_conflicts
    )
}

/// A text on one line, cut to what a terminal shows.
fn one_line(text: &str) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match joined.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}…", &joined[..cut]),
        None => joined,
    }
}

#[cfg(test)]
mod tests;
