//! `realign preferences`: how preference data is read.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs, require};
use realign_align::pipeline::Renderer;
use realign_align::preferences::{Dataset, FileReport, NOT_READ, Pair, inspect};
use realign_model::{LoadedModel, Tokenizer};
use realign_server::config::Config;

/// Lines that are listed for a reason, and contradictions for a file; JSON has all.
const LISTED: usize = 5;

/// What to do with preference data.
#[derive(Debug, Subcommand)]
pub(crate) enum PreferencesCommand {
    /// Say what is read of each file, and how; exits 1 if a row or a file is refused
    #[command(after_help = "\
Examples:
  realign preferences check                     every file of preferences/
  realign preferences check --data new.csv      one file, before it goes there
  realign preferences check --no-model --json   all refused rows, without loading the model
A row is a line of .jsonl or .ndjson, an item of a .json list, or a row of a .csv, .tsv or .parquet file; each
may be compressed (.gz, .zst). Formats: native, TRL, OpenAI, Anthropic HH, ShareGPT, UltraFeedback, scored
responses, PKU-SafeRLHF; dialogues also as text (`Human: … Assistant:`, ChatML). See docs/data.md.")]
    Check {
        /// Only this file, or this directory
        #[arg(long, value_name = "FILE")]
        data: Option<PathBuf>,
        /// Do not load the model, and so do not show a sample as it will see it
        #[arg(long)]
        no_model: bool,
    },
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    command: &PreferencesCommand,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let PreferencesCommand::Check { data, no_model } = command;
    let config = global.resolve()?;
    let (path, wanted) = match data {
        Some(file) => (file, "a file of preference data (--data)"),
        None => (
            &config.paths.preferences,
            "the directory of preference data (--preferences)",
        ),
    };
    let (files, unread) = if require(path, wanted)?.is_dir() {
        Dataset::files(path)?
    } else if Dataset::reads(path) {
        (vec![path.clone()], Vec::new())
    } else {
        (Vec::new(), vec![path.clone()])
    };
    let reports = inspect(&files)?;
    let sample = reports.iter().find_map(|report| report.sample.as_ref());
    let rendered = match sample {
        Some(pair) if !no_model => Some(rendered(pair, &config)),
        _ => None,
    };
    if global.json {
        let (sample, why) = match &rendered {
            Some(Ok(text)) => (Some(text), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        let report = json!({
            "files": reports, "not_read": unread, "sample": sample, "no_sample_because": why,
        });
        writeln!(out, "{report}")?;
    } else {
        if files.is_empty() && unread.is_empty() {
            writeln!(out, "{}: no preference data", path.display())?;
        }
        for report in &reports {
            write_report(report, out)?;
        }
        for file in &unread {
            writeln!(out, "{}: not read: {NOT_READ}", file.display())?;
        }
        match rendered {
            Some(Ok(text)) => writeln!(out, "\nThe first pair as the model will see it:\n{text}")?,
            Some(Err(why)) => writeln!(out, "\nNo sample can be shown: {why}")?,
            None => {}
        }
    }
    let refused = reports.iter().any(|report| !report.refused.is_empty());
    Ok(if refused || !unread.is_empty() {
        EXIT_FAILED
    } else {
        EXIT_OK
    })
}

fn write_report(report: &FileReport, out: &mut dyn Write) -> Result<(), CliError> {
    writeln!(
        out,
        "{}: {}, {} rows, {} pairs{}, {} duplicates merged, {} refused",
        report.file.display(),
        report.form,
        report.rows,
        report.pairs,
        formats(report),
        report.duplicates,
        report.refused.len()
    )?;
    let used: Vec<&str> = report.used.iter().map(String::as_str).collect();
    if !used.is_empty() {
        writeln!(out, "  columns read: {}", used.join(", "))?;
    }
    let unused = report.unused.iter();
    let unused: Vec<String> = unused
        .map(|(name, rows)| match *rows == report.rows {
            true => name.clone(),
            false => format!("{name} ({rows} rows)"),
        })
        .collect();
    if !unused.is_empty() {
        writeln!(out, "  columns not read: {}", unused.join(", "))?;
    }
    for (reason, lines) in report.reasons() {
        writeln!(out, "  refused: {}: {reason}", shown_lines(&lines))?;
    }
    for contradiction in report.contradictions.iter().take(LISTED) {
        let (second, first) = (&contradiction.second, &contradiction.first);
        writeln!(
            out,
            "  labels disagree: {second} prefers the response that {first} rejects; both are kept"
        )?;
    }
    let more = report.contradictions.len().saturating_sub(LISTED);
    if more > 0 {
        writeln!(out, "  and {more} more such pairs (--json lists all)")?;
    }
    Ok(())
}

/// How many pairs were read as what.
fn formats(report: &FileReport) -> String {
    let formats: Vec<String> = report
        .formats
        .iter()
        .map(|(name, count)| format!("{count} as {name}"))
        .collect();
    match formats.as_slice() {
        [] => String::new(),
        formats => format!(" ({})", formats.join(", ")),
    }
}

/// The first of some lines, and how many more there are.
fn shown_lines(lines: &[usize]) -> String {
    let shown = lines.iter().take(LISTED).map(usize::to_string);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match lines.len() {
        1 => format!("line {shown}"),
        count if count <= LISTED => format!("lines {shown}"),
        count => format!(
            "lines {shown} and {} more (--json lists all)",
            count - LISTED
        ),
    }
}

/// The pair as the model's chat template writes it, control tokens included: with the chosen response,
/// then the rejected one by itself.
fn rendered(pair: &Pair, config: &Config) -> Result<String, String> {
    let load = || -> Result<LoadedModel, CliError> {
        let device = realign_backend::open(realign_backend::DeviceChoice::Cpu)?;
        Ok(LoadedModel::load(config.model_choice(), &*device)?)
    };
    let loaded = load().map_err(|error| error.to_string())?;
    let renderer = Renderer::new(&loaded);
    let written = |tokens: &[u32]| written(&loaded.tokenizer, tokens);
    let tokens = |response: &str| renderer.answered(pair, response);
    let prompt = renderer.prompt(pair).map_err(|error| error.to_string())?;
    let chosen = tokens(&pair.chosen).map_err(|error| error.to_string())?;
    let rejected = tokens(&pair.rejected).map_err(|error| error.to_string())?;
    let rejected = rejected.get(prompt.len()..).unwrap_or_default();
    Ok(format!(
        "{}\n  instead of the rejected response:\n{}",
        written(&chosen)?,
        written(rejected)?
    ))
}

/// The text of tokens with the literals of control tokens, which have no text.
fn written(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String, String> {
    let decode = |ids: &[u32]| tokenizer.decode(ids).map_err(|error| error.to_string());
    let mut text = String::new();
    let mut plain = Vec::new();
    for id in tokens {
        if decode(&[*id])?.is_empty() {
            text.push_str(&decode(&plain)?);
            plain.clear();
            text.push_str(&tokenizer.token_text(*id));
        } else {
            plain.push(*id);
        }
    }
    text.push_str(&decode(&plain)?);
    Ok(text)
}
