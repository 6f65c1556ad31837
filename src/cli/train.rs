//! `realign train`: the learning half of a realignment, offline. No gate, nothing serves it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::learning::Learning;
use super::progress::{Bars, Progress};
use super::{CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs, require_absent};
use realign_align::pipeline::{Learner, PipelineError};
use realign_align::train::{Ending, LossParts, Trained};
use realign_core::lock::{DirLock, Holder, LOCK_FILE, Place};
use realign_engine::adapter::AdapterStore;
use realign_engine::adapter::generation::GenerationId;
use realign_server::control::Origin;

/// Flags of `train`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  realign train                           policies/ and preferences/ to an adapter in adapters/
  realign train --recipe my.toml --out my-adapter
  realign train --policies staging/ --json
  realign train --engine tinker           the steps on the engine of [train.tinker]: docs/training.md
The adapter is a PEFT directory, with its manifest and the curve of its losses (losses.jsonl,
losses.svg). It has not been gated: `realign adapters activate` makes a server use it all the same.
A run that was killed goes on from its last checkpoint in the state directory.
Exit code 1: the run diverged or learned nothing; the message names the step and the setting.")]
pub(crate) struct TrainArgs {
    /// Recipe: default, paper or a TOML file [default: the configuration's]
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<String>,
    /// Directory of the adapter, which must not exist [default: adapters/<generation>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// What computes the steps: local, or tinker for the engine of [train.tinker] [default: the
    /// configuration's]
    #[arg(long, value_name = "ENGINE")]
    pub(crate) engine: Option<String>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Serialize)]
struct Summary {
    generation: Option<GenerationId>,
    path: Option<PathBuf>,
    pairs: usize,
    conflicts: usize,
    steps: usize,
    ending: Option<Ending>,
    loss: LossParts,
    tokens_per_second: f64,
    recipe: String,
    warning: Option<&'static str>,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    args: &TrainArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    require_absent(args.out.as_ref())?;
    let learning = Learning::load_on(global, args.recipe.as_deref(), args.engine.as_deref())?;
    if let Some(warning) = learning.warning()
        && !global.quiet
    {
        eprintln!("warning: {warning}");
    }
    if !learning.has_conflicts() {
        return print(out, global.json, &summary(&learning, None), EXIT_OK);
    }
    let checkpoints = learning.checkpoints();
    let place = Place {
        dir: &checkpoints,
        file: LOCK_FILE,
        advice: "it trains from the same inputs; wait for it, or choose another directory with --state",
    };
    let _only_run = DirLock::take(place, &Holder::this_process(None), Duration::ZERO)?;
    let bars = Bars::new(Progress::new(global), &learning.config.train);
    let bars = bars.with_checkpoints(checkpoints.clone());
    let learner = Learner::new(&learning.loaded).on(learning.config.train.remote());
    let candidate = learner.run(&learning.run(), &bars);
    bars.clear();
    let trained = match candidate {
        Ok(candidate) => candidate.trained,
        Err(PipelineError::Train(error)) => {
            eprintln!("error: {error}");
            return Ok(EXIT_FAILED);
        }
        Err(error) => return Err(error.into()),
    };
    let (id, path) = keep(args, &learning, &trained)?;
    if let Err(error) = std::fs::remove_dir_all(&checkpoints) {
        tracing::debug!(%error, "no checkpoints to remove");
    }
    let mut summary = summary(&learning, Some(&trained));
    summary.generation = Some(id);
    summary.path = Some(path);
    print(out, global.json, &summary, EXIT_OK)
}

/// Writes the adapter into the store, or into a directory of its own.
fn keep(
    args: &TrainArgs,
    learning: &Learning,
    trained: &Trained,
) -> Result<(GenerationId, PathBuf), CliError> {
    let origin = Origin {
        parent: None,
        loaded: &learning.loaded,
        inputs: &learning.inputs,
        recipe: &learning.recipe,
        triage: learning.triage.counts,
        gathered: None,
        trained_by: learning.config.train.trained_by(),
    };
    let publish = |store: &AdapterStore| {
        let reason = "trained offline by `realign train`";
        let gate = json!({ "verdict": "not_measured", "reason": reason });
        origin.publish(store, &trained.weights, &trained.curve, gate)
    };
    let Some(target) = &args.out else {
        let store = AdapterStore::open(&learning.config.paths.adapters)?;
        let id = publish(&store)?;
        let path = store.path(&id);
        return Ok((id, path));
    };
    let staging = staging(target);
    let store = AdapterStore::open(&staging)?;
    let id = publish(&store)?;
    std::fs::rename(store.path(&id), target)?;
    std::fs::remove_dir_all(&staging)?;
    Ok((id, target.clone()))
}

/// A store beside the directory, so that the last step is a rename.
fn staging(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".staging-{}", std::process::id()));
    name.into()
}

fn summary(learning: &Learning, trained: Option<&Trained>) -> Summary {
    let pairs = &learning.selected.pairs;
    let conflicts = pairs.iter().filter(|p| p.category.is_conflict());
    Summary {
        generation: None,
        path: None,
        pairs: pairs.len(),
        conflicts: conflicts.count(),
        steps: trained.map_or(0, |t| t.steps),
        ending: trained.map(|t| t.ending),
        loss: trained.map(|t| t.final_loss).unwrap_or_default(),
        tokens_per_second: trained.map_or(0.0, |t| t.curve.tokens_per_second()),
        recipe: learning.recipe.name.clone(),
        warning: learning.warning(),
    }
}

fn print(out: &mut dyn Write, as_json: bool, summary: &Summary, code: u8) -> Result<u8, CliError> {
    match (as_json, &summary.path) {
        (true, _) => writeln!(out, "{}", serde_json::to_string(summary)?)?,
        (false, None) => writeln!(out, "no training pair is in conflict: nothing was trained")?,
        (false, Some(path)) => writeln!(
            out,
            "{} pairs, {} of them in conflict; {} steps, mean loss of the last epoch {:.3}, {:.0} \
             tokens/s\n{}",
            summary.pairs,
            summary.conflicts,
            summary.steps,
            summary.loss.total(),
            summary.tokens_per_second,
            path.display()
        )?,
    }
    Ok(code)
}
