//! `realign plan`: what a server would do with the policies and the data. Nothing is trained for use
//! and nothing is written.

mod estimate;
mod report;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::progress::Progress;
use super::triage::{Flips, TriageReport, print, read_data, read_set, triage_with_bar};
use super::{CliError, DeviceArgs, GlobalArgs, require};
use realign_align::pipeline::warning;
use realign_server::config::TrainEngine;

use report::{Plan, Sources};

/// Why nothing is estimated where the steps are computed elsewhere.
const ELSEWHERE: &str =
    "train.engine is \"tinker\", and how fast that engine is cannot be known here";

/// Flags of `plan`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  realign plan                            what a server would do with policies/ now
  realign plan --pairs                    with every pair that it would train on
  realign plan --policies staging/ --examples 3   before staging/ is copied to policies/:
                                          which pairs flip against policies/, and by which rule
  realign plan --policies new/ --against old/
No judge is asked about the data: what would reach one is counted. The minutes come from a few answers
and steps of the model on this machine, which take about five seconds; --no-measure leaves them out.
The steps are an upper bound: pairs longer than the recipe's max_tokens are left out of training.")]
pub(crate) struct PlanArgs {
    /// Conflicting pairs to show, with the rules that decided
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) examples: usize,
    /// List the pairs that would be trained on
    #[arg(long)]
    pub(crate) pairs: bool,
    /// Do not load the model to measure how long it would take
    #[arg(long)]
    pub(crate) no_measure: bool,
    /// Directory of the active set to compare with [default: the configured policies, where
    /// --policies names others]
    #[arg(long, value_name = "DIR")]
    pub(crate) against: Option<PathBuf>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    args: &PlanArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let config = global.resolve()?;
    let size = super::recipes::size_of(&config.model);
    let recipe = config.train.recipe(size);
    let dataset = read_data(&config)?;
    let (set, prepared) = read_set(&config, &config.paths.policies)?;
    let unasked = Arc::new(prepared.matchers.without_judges());
    let oracle = prepared.oracle(&set).with_matchers(unasked);
    let triage = triage_with_bar(&dataset.pairs, &oracle, Progress::new(global));
    let flips = match active_directory(args, global)? {
        Some(dir) => {
            let (active, prepared) = read_set(&config, &dir)?;
            let unasked = Arc::new(prepared.matchers.without_judges());
            let before = prepared.oracle(&active).with_matchers(unasked);
            let before = realign_align::triage::triage(&dataset.pairs, &before);
            Some(Flips::new(&dataset.pairs, &before, &triage, args.examples))
        }
        None => None,
    };
    let sources = Sources {
        config: &config,
        recipe,
        set: &set,
        dataset: &dataset,
        triage: &triage,
    };
    let report = TriageReport::new(&oracle, &dataset, &triage, args.examples);
    let mut plan = Plan::new(report, sources);
    plan.warning = warning(triage.counts, config.train.corrective.is_some());
    plan.judge_calls = oracle.usage().undecided;
    plan.flips = flips;
    if config.train.engine != TrainEngine::Local && plan.does_something() {
        // What this machine measures says nothing about another.
        plan.not_measured = Some(ELSEWHERE.into());
    } else if !args.no_measure && plan.does_something() {
        match estimate::estimate(global, sources, (oracle, &plan)) {
            Ok(estimate) => plan.estimate = Some(estimate),
            Err(error) => plan.not_measured = Some(error.to_string()),
        }
    }
    if !args.pairs {
        plan.pairs.clear();
    }
    print(out, global.json, &plan, &plan.text())
}

/// The directory of the active set to compare with: `--against`, else the configured one if
/// `--policies` names another.
fn active_directory(args: &PlanArgs, global: &GlobalArgs) -> Result<Option<PathBuf>, CliError> {
    if let Some(dir) = &args.against {
        require(dir, "a directory of policies (--against)")?;
        return Ok(Some(dir.clone()));
    }
    let Some(given) = &global.policies else {
        return Ok(None);
    };
    let configured = GlobalArgs {
        policies: None,
        ..global.clone()
    };
    let active = configured.resolve()?.paths.policies;
    Ok((active != *given && active.is_dir()).then_some(active))
}
