//! `realign score`: how much each conflicting pair would help the policy.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

use super::learning::Learning;
use super::progress::{Bars, Progress};
use super::{CliError, DeviceArgs, EXIT_OK, GlobalArgs};
use realign_align::pipeline::{Learner, Scored};
use realign_align::train::WeightScale;
use realign_core::Category;

/// Flags of `score`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  realign score > scores.jsonl            policies/ over preferences/; a summary on stderr
  realign score --out scores.jsonl --json the summary as JSON on stdout
  realign score --recipe paper            weights that sum to 1, as the paper has them
Each line: id, source, category, score (before clamping) and weight. A pair with a score below zero
would move the model away from the policy; its weight is 0.")]
pub(crate) struct ScoreArgs {
    /// Recipe: default, paper or a TOML file [default: the configuration's]
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<String>,
    /// File of the scores [default: stdout, and the summary on stderr]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    source: String,
    category: Category,
    corrected: bool,
    score: f64,
    weight: f64,
}

#[derive(Serialize)]
struct Summary {
    conflicts: usize,
    invert: usize,
    punish: usize,
    corrected: usize,
    skipped: usize,
    clamped_ratio: f64,
    weight_scale: WeightScale,
    recipe: String,
    seconds: f64,
    warning: Option<&'static str>,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    args: &ScoreArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let mut learning = Learning::load(global, args.recipe.as_deref())?;
    if learning.recipe.weight_scale == WeightScale::Uniform {
        // A recipe without impact weights is scored as if it had them.
        learning.recipe.weight_scale = WeightScale::MeanOne;
    }
    let started = std::time::Instant::now();
    let scored = if learning.has_conflicts() {
        let bars = Bars::new(Progress::new(global), &learning.config.train);
        let scored = Learner::new(&learning.loaded).score(&learning.run(), &bars);
        bars.clear();
        scored?
    } else {
        Scored::default()
    };
    let lines = lines(&learning, &scored)?;
    let summary = summary(&learning, &scored, started.elapsed().as_secs_f64());
    let shown = match global.json {
        true => serde_json::to_string(&summary)?,
        false => text(&summary),
    };
    match &args.out {
        Some(path) => {
            std::fs::write(path, lines)?;
            writeln!(out, "{shown}")?;
        }
        None => {
            out.write_all(lines.as_bytes())?;
            if !global.quiet {
                eprintln!("{shown}");
            }
        }
    }
    Ok(EXIT_OK)
}

fn lines(learning: &Learning, scored: &Scored) -> Result<String, CliError> {
    let items = learning.triage.items.iter();
    let pairs = &learning.inputs.dataset.pairs;
    let by_id: HashMap<&str, usize> = items
        .map(|item| (pairs[item.index].id.0.as_str(), item.index))
        .collect();
    let mut text = String::new();
    for score in &scored.scores {
        let example = &scored.examples[score.index];
        let Some(&pair) = by_id.get(example.id.as_str()) else {
            continue;
        };
        let category = learning.triage.items[pair].category;
        let line = Line {
            id: &example.id,
            source: pairs[pair].source.to_string(),
            category,
            corrected: category != example.category,
            score: score.raw,
            weight: score.weight,
        };
        text.push_str(&serde_json::to_string(&line)?);
        text.push('\n');
    }
    Ok(text)
}

fn summary(learning: &Learning, scored: &Scored, seconds: f64) -> Summary {
    let conflicts = scored.examples.iter().filter(|e| e.category.is_conflict());
    let conflicts = conflicts.count();
    let suppressed = scored
        .examples
        .iter()
        .filter(|e| e.category == Category::Punish);
    let corrected = learning.selected.corrections.written;
    let punish = suppressed.count() + corrected;
    Summary {
        conflicts,
        invert: conflicts.saturating_sub(punish),
        punish,
        corrected,
        skipped: learning.selected.skipped.len(),
        clamped_ratio: scored.clamped_ratio.unwrap_or(0.0),
        weight_scale: learning.recipe.weight_scale,
        recipe: learning.recipe.name.clone(),
        seconds,
        warning: learning.warning(),
    }
}

fn text(summary: &Summary) -> String {
    let warning = summary
        .warning
        .map(|w| format!("\nwarning: {w}"))
        .unwrap_or_default();
    format!(
        "{} conflicting pairs scored: {} invert, {} punish ({} of them with a corrective response); \
         {} skipped as too long; {:.1} % of the scores are below zero; {:.1} s{warning}",
        summary.conflicts,
        summary.invert,
        summary.punish,
        summary.corrected,
        summary.skipped,
        100.0 * summary.clamped_ratio,
        summary.seconds
    )
}
