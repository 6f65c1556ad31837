//! `realign eval trace`: TRACE, its ablations and the baselines, from one base model on one data
//! set, measured alike.

mod data;
mod inputs;
mod judging;
mod measure;
mod questions;
mod runner;
mod store;
mod suite;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;

use crate::{CliError, DeviceArgs, GlobalArgs};
use realign_lab::evaluation::Variant;

/// Flags of `eval trace`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  realign eval trace --data preferences/medication.jsonl --policy demo/no-medication-doses.yaml --out results/demo
  realign eval trace --suite core --seeds 1 --max-pairs 24 --out /tmp/quick
  realign eval trace --data scenario_B.jsonl --judge refusal --policy policies/examples/over-refusal.yaml --out results/b --resume
Suites: full (base, trace, trace-pure, no-triage, no-impact, no-kl, dpo-gold, npo, noise-10, noise-20),
core (base, trace, dpo-gold, npo), ablations, noise, all (full, paper and dpo-pure).
Every finished cell (variant and seed) is kept in --out; --resume continues a stopped run.
The directory then holds report.md, report.json, agreement-perplexity.svg and agreement-capability.svg.
Data whose lines have truth: {chosen_compliant, rejected_compliant} is triaged by that; any other by
the policies.
Exit code 1: a variant's run failed; the table says why.")]
pub(crate) struct TraceArgs {
    /// Variants: full, core, ablations, noise or all
    #[arg(long, value_name = "NAME", default_value = "full")]
    pub(crate) suite: String,
    /// Variants by name instead, such as trace,no-kl; base always runs
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) variants: Vec<String>,
    /// Seeds per variant
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=20))]
    pub(crate) seeds: u64,
    /// File of preference pairs [default: the preference directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Policy files [default: the policy directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Vec<PathBuf>,
    /// Who judges fresh answers: the policies, or refusal words over the data's truth
    #[arg(long, value_name = "WHO", default_value = "policy", value_parser = ["policy", "refusal"])]
    pub(crate) judge: String,
    /// Recipe of `trace`: default, paper or a TOML file [default: the configuration's]
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<String>,
    /// Directory of the cells and the report
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Keep the finished cells of --out and run the others
    #[arg(long)]
    pub(crate) resume: bool,
    /// Most pairs to train on [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub(crate) max_pairs: Option<usize>,
    /// Share of prompts to hold out where the data marks none, and of a category that has none
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    pub(crate) holdout: f64,
    /// Most held-out prompts of a category
    #[arg(long, value_name = "N", default_value_t = 48)]
    pub(crate) max_prompts: usize,
    /// Most tokens of a fresh answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) answer_tokens: usize,
    /// Text to measure perplexity on, such as a part of WikiText
    #[arg(long, value_name = "FILE")]
    pub(crate) perplexity: Option<PathBuf>,
    /// Tokens of that text
    #[arg(long, value_name = "N", default_value_t = 3072)]
    pub(crate) perplexity_tokens: usize,
    /// Multiple-choice items, one JSON object a line: task, query, choices, gold
    #[arg(long, value_name = "FILE")]
    pub(crate) capability: Option<PathBuf>,
    /// How many of them, the same number of each task
    #[arg(long, value_name = "N", default_value_t = 120)]
    pub(crate) capability_items: usize,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

impl TraceArgs {
    /// The variants to run, the base first.
    fn chosen(&self) -> Result<Vec<Variant>, CliError> {
        let named = |name: &String| {
            Variant::from_name(name.trim()).ok_or_else(|| {
                let all = Variant::ALL.map(Variant::name).join(", ");
                CliError::Eval(format!(
                    "--variants: {name:?} is unknown; use some of {all}"
                ))
            })
        };
        let mut variants = if self.variants.is_empty() {
            Variant::suite(&self.suite).ok_or_else(|| {
                CliError::Eval(format!(
                    "--suite: {:?} is unknown; use full, core, ablations, noise or all",
                    self.suite
                ))
            })?
        } else {
            let named = self.variants.iter().map(named);
            named.collect::<Result<Vec<_>, _>>()?
        };
        variants.push(Variant::Base);
        // In the order of declaration, the base first.
        variants.sort_unstable();
        variants.dedup();
        Ok(variants)
    }
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    args: &TraceArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let variants = args.chosen()?;
    if !(args.holdout > 0.0 && args.holdout < 1.0) {
        return Err(CliError::Eval(format!(
            "--holdout is {}; above 0 and below 1",
            args.holdout
        )));
    }
    let inputs = inputs::Inputs::load(args, global)?;
    suite::run(args, global, &inputs, &variants, out)
}
