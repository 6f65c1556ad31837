//! `realign eval oracle`: how well rules, a probe and their cascade find what people labelled.
//!
//! Prompts are split into folds; a probe that judges a response never saw its prompt. Layer,
//! penalty, calibration and threshold are chosen inside the other folds.

mod cascade;
mod judge;
mod methods;
mod report;
pub mod trace;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Subcommand;
use serde::Deserialize;

use super::{CliError, DeviceArgs, EXIT_OK, GlobalArgs, require};
use realign_align::policy::{Labelled, PolicySet};
use realign_core::Category;

pub use report::{EvalReport, MethodReport};

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Measure rules, a probe and their cascade on labelled pairs
    #[command(after_help = "\
Examples:
  realign eval oracle --data pairs.jsonl --policy policies/examples/over-refusal.yaml
Each line: prompt, chosen, rejected, truth: {chosen_compliant, rejected_compliant}.
Every response is judged by a probe that was fitted without its prompt.")]
    Oracle(OracleArgs),
    /// Train TRACE, its ablations and the baselines, and measure them alike
    Trace(Box<trace::TraceArgs>),
}

/// Flags of `eval oracle`.
#[derive(Clone, Debug, clap::Args)]
pub struct OracleArgs {
    /// Labelled pairs, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Policy whose text rules are measured and stand first in the cascade [default: none]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Further labelled responses to fit the probe on: prompt, response, verdict. Those whose
    /// prompt is being judged are left out
    #[arg(long, value_name = "FILE")]
    pub extra: Option<PathBuf>,
    /// Policy whose first judge is measured too, alone and where the probe is unsure. It is asked
    /// about every response
    #[arg(long, value_name = "FILE")]
    pub judge: Option<PathBuf>,
    /// Folds of prompts, from 2 to 20
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=20))]
    pub folds: u64,
    /// What computes
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// A labelled pair as the file has it.
#[derive(Deserialize)]
struct Row {
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

/// Distinct responses with their truth, and pairs of them.
pub(super) struct Data {
    /// Distinct (prompt, response), in reading order.
    pub responses: Vec<Labelled>,
    /// Indices of chosen and rejected.
    pub pairs: Vec<[usize; 2]>,
}

impl Data {
    /// The category of a pair by verdicts per response, `true` for a violation.
    pub fn category(&self, pair: [usize; 2], violates: &dyn Fn(usize) -> bool) -> Category {
        Category::of(!violates(pair[0]), !violates(pair[1]))
    }
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub fn run(
    command: &EvalCommand,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let args = match command {
        EvalCommand::Oracle(args) => args,
        EvalCommand::Trace(args) => return trace::run(args, global, out),
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
    let judge = args.judge.as_deref().map(judge::of_policy).transpose()?;
    let source = super::oracle::features(&config)?;
    let started = Instant::now();
    let table = methods::Remembered::new(source, &data, &extra)?;
    let seconds = started.elapsed().as_secs_f64();
    let compared = methods::Compared {
        extra: &extra,
        rules: &rules,
        judge: judge.as_ref(),
    };
    let verdicts = methods::run(&data, &compared, &table, args.folds as usize)?;
    let mut report = EvalReport::new(&data, verdicts);
    report.responses_per_minute = 60.0 * table.len() as f64 / seconds.max(1e-9);
    match global.json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => write!(out, "{report}")?,
    }
    Ok(EXIT_OK)
}

fn read(path: &Path) -> Result<Data, CliError> {
    require(path, "a file of labelled pairs (--data)")?;
    let text = std::fs::read_to_string(path)?;
    let mut data = Data {
        responses: Vec::new(),
        pairs: Vec::new(),
    };
    let mut place: HashMap<(String, String), usize> = HashMap::new();
    for (index, line) in text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let row: Row = serde_json::from_str(line).map_err(|error| {
            CliError::Eval(format!("{}:{}: {error}", path.display(), index + 1))
        })?;
        let mut add = |response: &str, violates: bool| {
            let key = (row.prompt.clone(), response.to_owned());
            *place.entry(key).or_insert_with(|| {
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
    match data.pairs.is_empty() {
        true => Err(CliError::Eval(format!(
            "{}: no labelled pairs",
            path.display()
        ))),
        false => Ok(data),
    }
}

fn read_labelled(path: &Path) -> Result<Vec<Labelled>, CliError> {
    require(path, "a file of labelled responses (--extra)")?;
    let rows = realign_align::policy::read_labelled(&std::fs::read(path)?);
    rows.map_err(|error| CliError::Eval(format!("{}: {error}", path.display())))
}
