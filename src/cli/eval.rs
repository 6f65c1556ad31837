//! `realign eval`: reads the inputs of the evaluations in [`realign_lab`] and prints their reports.

mod bench;
mod diversion;
mod gate;
mod report;
pub mod trace;
pub(crate) mod workbench;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Subcommand;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{CliError, DeviceArgs, EXIT_OK, GlobalArgs, read_input, require};
use realign_align::policy::{JudgeSpec, Labelled, Matcher, PolicySet};
use realign_lab::evaluation::oracle::{
    EvalReport, FeatureTable, Folds, LabelledPairs, OracleEval, compare,
};

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Measure rules, a probe and their cascade on labelled pairs
    #[command(after_help = "\
Examples:
  realign eval oracle --data pairs.jsonl --policy policies/examples/over-refusal.yaml
Each line: prompt, chosen, rejected, truth: {chosen_compliant, rejected_compliant}.
Every response is judged by a probe that was fitted without its prompt.")]
    Oracle(OracleArgs),
    /// Train TRACE, its ablations and the baselines, and measure them alike
    Trace(Box<trace::TraceArgs>),
    /// Measure how well the exam tells diverted answers, on answers labelled by hand
    Diversion(diversion::DiversionArgs),
    /// Measure whether the gate refuses spoiled candidates and lets good ones pass
    #[command(after_help = "\
Ten candidates are spoiled, each in its own way; the good ones differ in their seeds. Exit code 0 if
every verdict is right. With the default model a candidate takes about two minutes on two cores.
Example:
  realign eval gate --policies demo --good 3")]
    Gate(gate::GateArgs),
    /// Train on the six policies of the synthetic benchmark, and measure on prompts that no training sees
    #[command(after_help = "\
Each policy and seed is trained as a server does, controls, situations and further rounds included. Then
base and candidate answer hidden prompts: compliance in several situations, answers that must not change,
facts. Exit code 1 if a run made no candidate.
Examples:
  realign eval bench --only brevity --seeds 1
  realign eval bench --out bench.jsonl      all of it; the same command continues an interrupted run
The policies, their data and what is measured: benches/policies/README.md")]
    Bench(bench::BenchArgs),
}

/// Flags of `eval oracle`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OracleArgs {
    /// Labelled pairs, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Policy whose text rules are measured and come first in the cascade [default: none]
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// Further labelled responses to fit the probe on: prompt, response, verdict. Those whose
    /// prompt is being judged are left out
    #[arg(long, value_name = "FILE")]
    pub(crate) extra: Option<PathBuf>,
    /// Policy whose first judge is measured too, by itself and where the probe is unsure. It is
    /// asked about every response
    #[arg(long, value_name = "FILE")]
    pub(crate) judge: Option<PathBuf>,
    /// Folds of prompts, from 2 to 20
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=20))]
    pub(crate) folds: u64,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// A line of `--data`: a preference pair and whether each response complies.
#[derive(Deserialize)]
struct LabelledPair {
    prompt: String,
    chosen: String,
    rejected: String,
    truth: Truth,
}

#[derive(Deserialize)]
struct Truth {
    chosen_compliant: bool,
    rejected_compliant: bool,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    command: &EvalCommand,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let args = match command {
        EvalCommand::Oracle(args) => args,
        EvalCommand::Trace(args) => return trace::run(args, global, out),
        EvalCommand::Diversion(args) => return diversion::run(args, global, out),
        EvalCommand::Gate(args) => return gate::run(args, global, out),
        EvalCommand::Bench(args) => return bench::run(args, global, out),
    };
    let config = global.resolve()?;
    let data = read(&args.data)?;
    let extra = match &args.extra {
        Some(path) => read_labelled(path)?,
        None => Vec::new(),
    };
    let rules = match &args.policy {
        Some(path) => PolicySet::load_files(std::slice::from_ref(path))?,
        None => PolicySet::default(),
    };
    let judge = args.judge.as_deref().map(first_judge).transpose()?;
    let source = super::oracle::features(&config)?;
    let started = Instant::now();
    let table = FeatureTable::new(source, &data, &extra)?;
    let seconds = started.elapsed().as_secs_f64();
    let folds = split(&data, args.folds as usize);
    let inputs = OracleEval {
        data: &data,
        folds: &folds,
        extra: &extra,
        rules: &rules,
        judge: judge.as_ref(),
    };
    let verdicts = compare(&inputs, &table).map_err(|error| CliError::Eval(error.to_string()))?;
    let mut report = EvalReport::new(&data, verdicts);
    report.responses_per_minute = 60.0 * table.len() as f64 / seconds.max(1e-9);
    if global.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?
    } else {
        write!(out, "{}", report::text(&report))?
    }
    Ok(EXIT_OK)
}

/// Folds by prompt: a prompt's fold depends only on its text.
fn split(data: &LabelledPairs, count: usize) -> Folds {
    let fold = |row: &Labelled| {
        let digest = Sha256::digest(&row.prompt);
        usize::from(u16::from_le_bytes([digest[0], digest[1]])) % count.max(1)
    };
    Folds {
        of_response: data.responses.iter().map(fold).collect(),
        count,
    }
}

/// The first judge of a policy file.
fn first_judge(path: &Path) -> Result<Arc<JudgeSpec>, CliError> {
    require(path, "a policy with a judge (--judge)")?;
    let set = PolicySet::load_files(&[path.to_owned()])?;
    let rules = set.policies().iter().flat_map(|policy| &policy.rules);
    let found = rules
        .flat_map(|rule| rule.matchers())
        .find_map(|matcher| match matcher {
            Matcher::Judge(spec) => Some(spec.clone()),
            Matcher::Probe(_) => None,
        });
    found.ok_or_else(|| CliError::Eval(format!("{}: no rule asks a judge", path.display())))
}

fn read(path: &Path) -> Result<LabelledPairs, CliError> {
    require(path, "a file of labelled pairs (--data)")?;
    let text = read_input(path)?;
    let mut data = LabelledPairs::default();
    let mut indices: HashMap<(String, String), usize> = HashMap::new();
    for (index, line) in text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let row: LabelledPair = serde_json::from_str(line).map_err(|error| {
            CliError::Eval(format!("{}:{}: {error}", path.display(), index + 1))
        })?;
        let mut add = |response: &str, violates: bool| {
            let key = (row.prompt.clone(), response.to_owned());
            *indices.entry(key).or_insert_with(|| {
                data.responses.push(Labelled {
                    prompt: row.prompt.clone(),
                    response: response.to_owned(),
                    violates,
                });
                data.responses.len() - 1
            })
        };
        let chosen = add(&row.chosen, !row.truth.chosen_compliant);
        let rejected = add(&row.rejected, !row.truth.rejected_compliant);
        data.pairs.push([chosen, rejected]);
    }
    if data.pairs.is_empty() {
        Err(CliError::Eval(format!(
            "{}: no labelled pairs",
            path.display()
        )))
    } else {
        Ok(data)
    }
}

fn read_labelled(path: &Path) -> Result<Vec<Labelled>, CliError> {
    require(path, "a file of labelled responses (--extra)")?;
    let rows = realign_align::policy::read_labelled(read_input(path)?.as_bytes());
    rows.map_err(|error| CliError::Eval(format!("{}: {error}", path.display())))
}
