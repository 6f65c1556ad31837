//! `realign eval diversion`: the exam's detector of diverted answers against labels given by hand.

use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{CliError, DeviceArgs, EXIT_OK, GlobalArgs, require};
use realign_align::exam::Share;
use realign_align::exam::diversion::{Detector, Likelihoods, Spoken, likelihood};
use realign_model::{ChatMessage, LoadedModel};

/// Answers labelled by hand, from the default model and adapters that we trained on it.
const LABELLED: &str = include_str!("diversion/labelled.jsonl");

/// Flags of `eval diversion`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DiversionArgs {
    /// Labelled answers, one JSON object a line: prompt, answer, diverted; those with `sample` true
    /// are the base's own samples, which calibrate [default: the ones that we labelled]
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
    #[serde(default)]
    diverted: bool,
    /// Drawn from the base at temperature 1.
    #[serde(default)]
    sample: bool,
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
            std::fs::read_to_string(path)?
        }
        None => LABELLED.to_owned(),
    };
    let rows = read(&text)?;
    let config = global.resolve()?;
    let device = realign_backend::open(config.engine.device)?;
    let loaded = LoadedModel::load(&config.model, &*device)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = config.engine.threads.unwrap_or(cores);
    let failed = |error: candle_core::Error| CliError::Eval(error.to_string());
    let mut likelihoods = Likelihoods::new(&*loaded.backend, threads).map_err(failed)?;
    let spoken = rows.iter().map(|row| spoken(&loaded, row));
    let spoken = spoken.collect::<Result<Vec<Spoken>, CliError>>()?;
    let tokens = likelihoods.tokens(&spoken).map_err(failed)?;
    let scores: Vec<f64> = tokens.iter().map(|tokens| likelihood(tokens)).collect();
    let report = measure(&rows, &scores)?;
    if global.json {
        let answers: Vec<_> = rows.iter().zip(&tokens).map(|(row, tokens)| {
            json!({ "prompt": row.prompt, "answer": row.answer, "diverted": row.diverted, "sample": row.sample, "logprobs": tokens })
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

fn measure(rows: &[Row], scores: &[f64]) -> Result<Report, CliError> {
    let (own, labelled): (Vec<_>, Vec<_>) =
        rows.iter().zip(scores).partition(|(row, _)| row.sample);
    let own: Vec<f64> = own.into_iter().map(|(_, score)| *score).collect();
    let detector = Detector::calibrate(&own)
        .ok_or_else(|| CliError::Eval("too few of the base's own samples to calibrate".into()))?;
    let found = |score: &f64| detector.is_diverted(*score);
    let among = |called: Option<bool>, diverted: Option<bool>, hit: &dyn Fn(bool, bool) -> bool| {
        let rows = labelled
            .iter()
            .map(|(row, score)| (found(score), row.diverted));
        let rows = rows.filter(|(c, d)| {
            called.is_none_or(|wanted| *c == wanted) && diverted.is_none_or(|wanted| *d == wanted)
        });
        Share::among(rows.map(|(called, diverted)| hit(called, diverted)))
    };
    Ok(Report {
        threshold: detector.threshold,
        labelled: labelled.len(),
        diverted: labelled.iter().filter(|(row, _)| row.diverted).count(),
        precision: among(Some(true), None, &|_, diverted| diverted),
        recall: among(None, Some(true), &|called, _| called),
        false_alarms: among(None, Some(false), &|called, _| called),
    })
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
