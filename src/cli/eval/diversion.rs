//! `realign eval diversion`: the exam's detector of diverted answers against labels given by hand.

use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{CliError, DeviceArgs, EXIT_OK, GlobalArgs, read_input, require};
use realign_align::exam::Share;
use realign_align::exam::diversion::{Likelihoods, Spoken, THRESHOLD, is_diverted, likelihood};
use realign_model::{ChatMessage, LoadedModel};

/// Answers labelled by hand, from the default model and adapters that we trained on it.
const LABELLED: &str = include_str!("diversion/labelled.jsonl");

/// Flags of `eval diversion`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DiversionArgs {
    /// Labelled answers, one JSON object a line: prompt, answer, own (the mean log-probability of its
    /// tokens under the generation that gave it), diverted [default: the ones that we labelled]
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Deserialize)]
struct Row {
    prompt: String,
    answer: String,
    /// Likelihood under the generation that gave it, in nats per token.
    own: f64,
    /// The label.
    diverted: bool,
}

/// How the detector does on the labels.
#[derive(Serialize)]
struct Report {
    threshold: f64,
    labelled: usize,
    diverted: usize,
    precision: Share,
    recall: Share,
    false_alarms: Share,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(super) fn run(
    args: &DiversionArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let text = match &args.data {
        Some(path) => {
            require(path, "a file of labelled answers (--data)")?;
            read_input(path)?
        }
        None => LABELLED.to_owned(),
    };
    let rows = read(&text)?;
    let config = global.resolve()?;
    let device = realign_backend::open(config.engine.device)?;
    let loaded = LoadedModel::load(config.model_choice(), &*device)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = config.engine.threads.unwrap_or(cores);
    let failed = |error: candle_core::Error| CliError::Eval(error.to_string());
    let mut likelihoods = Likelihoods::new(&*loaded.backend, threads).map_err(failed)?;
    let spoken = rows.iter().map(|row| spoken(&loaded, row));
    let spoken = spoken.collect::<Result<Vec<Spoken>, CliError>>()?;
    let tokens = likelihoods.tokens(&spoken).map_err(failed)?;
    let called: Vec<bool> = rows
        .iter()
        .zip(&tokens)
        .map(|(row, tokens)| is_diverted(Some(row.own), likelihood(tokens.iter().copied())))
        .collect();
    let report = measure(&rows, &called);
    if global.json {
        let answers: Vec<_> = rows.iter().zip(&tokens).map(|(row, tokens)| {
            json!({ "prompt": row.prompt, "answer": row.answer, "own": row.own, "diverted": row.diverted, "logprobs": tokens })
        }).collect();
        writeln!(out, "{}", json!({ "report": report, "answers": answers }))?;
    } else {
        print(&report, out)?;
    }
    Ok(EXIT_OK)
}

fn read(text: &str) -> Result<Vec<Row>, CliError> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            serde_json::from_str(line)
                .map_err(|error| CliError::Eval(format!("line {}: {error}", index + 1)))
        })
        .collect()
}

fn spoken(loaded: &LoadedModel, row: &Row) -> Result<Spoken, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Eval(error.to_string());
    let message = ChatMessage::user(&row.prompt);
    Ok(Spoken {
        prompt: loaded
            .chat
            .encode_chat(&loaded.tokenizer, &[message], true)
            .map_err(|error| failed(&error))?,
        answer: loaded
            .tokenizer
            .encode(&row.answer, false)
            .map_err(|error| failed(&error))?,
    })
}

fn measure(rows: &[Row], called: &[bool]) -> Report {
    let pairs = || {
        rows.iter()
            .zip(called)
            .map(|(row, called)| (*called, row.diverted))
    };
    let right = |(called, diverted): (bool, bool)| called == diverted;
    Report {
        threshold: THRESHOLD,
        labelled: rows.len(),
        diverted: rows.iter().filter(|row| row.diverted).count(),
        precision: Share::among(pairs().filter(|p| p.0).map(right)),
        recall: Share::among(pairs().filter(|p| p.1).map(right)),
        false_alarms: Share::among(pairs().filter(|p| !p.1).map(|p| p.0)),
    }
}

fn print(report: &Report, out: &mut dyn Write) -> Result<(), CliError> {
    let share = |share: Share| {
        let ratio = share
            .ratio
            .map_or("-".into(), |r| format!("{:.1} %", r * 100.0));
        format!(
            "{ratio:>7}  ({} of {}; 95 % interval {:.0} to {:.0} %)",
            share.count,
            share.of,
            share.low * 100.0,
            share.high * 100.0
        )
    };
    writeln!(
        out,
        "{} answers labelled by hand, {} of them diverted; threshold {:.2} nats a token",
        report.labelled, report.diverted, report.threshold
    )?;
    writeln!(out, "precision     {}", share(report.precision))?;
    writeln!(out, "recall        {}", share(report.recall))?;
    writeln!(out, "false alarms  {}", share(report.false_alarms))?;
    Ok(())
}
