//! What the trainers have in common: records of steps, what ends a run, sums of losses.

use super::curve::{Curve, StepRecord};
use super::divergence::{Risen, Watch};
use super::objective::LossParts;
use super::recipe::Recipe;
use super::run::{Ending, StepReport, TrainError};

/// How a run of so many steps ends if nothing ends it earlier.
pub(super) fn full_length(recipe: &Recipe, steps: usize) -> Ending {
    match recipe.max_steps > 0 && steps == recipe.max_steps {
        true => Ending::MaxSteps,
        false => Ending::Epochs,
    }
}

/// Mean loss over the last epoch of a run of so many steps.
pub(super) fn final_loss(curve: &Curve, steps: usize, recipe: &Recipe) -> LossParts {
    let epoch = (steps / recipe.epochs.max(1)).max(1);
    mean(&curve.0[curve.0.len().saturating_sub(epoch)..])
}

pub(super) fn finite(
    recipe: &Recipe,
    what: &'static str,
    value: f64,
    step: usize,
) -> Result<(), TrainError> {
    match value.is_finite() {
        true => Ok(()),
        false => Err(TrainError::NotFinite {
            what,
            value,
            step: step + 1,
            learning_rate: recipe.learning_rate,
        }),
    }
}

pub(super) fn diverged(
    recipe: &Recipe,
    report: &StepReport,
    watch: &mut Watch,
) -> Result<(), TrainError> {
    match watch.observe(report.loss.total()) {
        None => Ok(()),
        Some(Risen {
            beginning,
            smoothed,
        }) => Err(TrainError::Diverged {
            step: report.step,
            beginning,
            smoothed,
            learning_rate: recipe.learning_rate,
        }),
    }
}

pub(super) fn record(report: &StepReport) -> StepRecord {
    StepRecord {
        step: report.step,
        total: report.loss.total(),
        invert: report.loss.invert,
        punish: report.loss.punish,
        kl: report.loss.retain,
        sft: report.loss.sft,
        gradient_norm: report.gradient_norm,
        learning_rate: report.learning_rate,
        tokens: report.tokens,
        seconds: report.seconds,
    }
}

pub(super) fn add(a: LossParts, b: LossParts) -> LossParts {
    LossParts {
        invert: a.invert + b.invert,
        punish: a.punish + b.punish,
        retain: a.retain + b.retain,
        sft: a.sft + b.sft,
    }
}

pub(super) fn scaled(a: LossParts, by: f64) -> LossParts {
    LossParts {
        invert: a.invert * by,
        punish: a.punish * by,
        retain: a.retain * by,
        sft: a.sft * by,
    }
}

fn mean(records: &[StepRecord]) -> LossParts {
    let sum = records.iter().map(StepRecord::loss);
    let sum = sum.fold(LossParts::default(), add);
    scaled(sum, 1.0 / records.len().max(1) as f64)
}
