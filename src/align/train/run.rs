//! The training loop: stratified steps, gradient accumulation, stopping rules, checkpoints,
//! yielding to serving.

use std::path::Path;
use std::time::Instant;

use super::adamw::clip;
use super::checkpoint;
use super::curve::Curve;
use super::divergence::Watch;
use super::ending::{add, diverged, final_loss, finite, full_length, record, scaled};
use super::examples::TrainExample;
use super::fresh::fresh;
use super::memory::MemoryPlan;
use super::objective::{LossParts, Objective};
use super::optimizer::Optimizer;
use super::passes::Passes;
use super::recipe::{Recipe, RecipeError};
use super::schedule::learning_rate;
use super::trainable::{Gradients, TrainableLora};
use realign_core::Category;
use realign_model::host_memory::Headroom;
use realign_model::packing::{Example, group_by_rows};
use realign_model::{Backend, Dropout, LoraWeights, PassOptions, Recompute};

pub use super::plan::{plan, steps};

/// Rows of one forward and backward pass: bounds the activations' memory whatever a step holds.
pub const ROW_BUDGET: usize = 512;

/// What a run tells the outside, and what it asks.
pub trait Observer {
    /// Asked before every micro-batch; may block to let serving go first. `false` ends the run.
    fn proceed(&self) -> bool;
    /// Whether the run is to go on; asked while another machine computes, and does not wait for serving.
    fn is_wanted(&self) -> bool {
        self.proceed()
    }
    /// After every optimiser step.
    fn on_step(&self, report: &StepReport);
    /// What the run may take; asked before scoring and before the first step. `None` is no limit.
    fn memory(&self, backend: &dyn Backend) -> Option<Headroom> {
        super::memory::limit(None, backend)
    }
    /// Whether passes that have the choice compute intermediate results again.
    fn recompute(&self) -> Recompute {
        Recompute::Auto
    }
}

/// One optimiser step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: usize,
    /// Steps of the whole run.
    pub total: usize,
    /// The step's loss, summed over a batch's pairs and averaged over its batches.
    pub loss: LossParts,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Rows that went through the layers.
    pub tokens: usize,
    /// Seconds the step took, waiting included.
    pub seconds: f64,
}

/// What ended a run early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe's values are out of range.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The run would take more memory than there is.
    #[error(transparent)]
    Memory(#[from] super::memory::TooLarge),
    /// There is nothing to learn from.
    #[error("no conflicting pairs to train on")]
    NoConflicts,
    /// The loss or the gradient became NaN or infinite.
    #[error(
        "{what} is {value} at step {step}: lower train.learning_rate, which is {learning_rate}; \
         nothing was published"
    )]
    NotFinite {
        /// Of what.
        what: &'static str,
        /// The value.
        value: f64,
        /// The step.
        step: usize,
        /// The recipe's peak learning rate.
        learning_rate: f64,
    },
    /// The loss rose and stayed up.
    #[error(
        "the run has diverged: at step {step} the smoothed loss is {smoothed:.3}, it began at \
         {beginning:.3}; lower train.learning_rate, which is {learning_rate}, or raise \
         train.max_loss_ratio; nothing was published"
    )]
    Diverged {
        /// The step.
        step: usize,
        /// Mean loss of the first steps.
        beginning: f64,
        /// Smoothed loss at the step.
        smoothed: f64,
        /// The recipe's peak learning rate.
        learning_rate: f64,
    },
    /// The observer said stop.
    #[error("cancelled")]
    Cancelled,
    /// The engine that was to train did not.
    #[error(transparent)]
    Remote(#[from] super::tinker::TinkerError),
    /// A checkpoint could not be written.
    #[error("cannot write a checkpoint: {0}")]
    Checkpoint(#[from] std::io::Error),
    /// The tensor library refused an operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What ended a run that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Every step of every epoch was made.
    Epochs,
    /// `max_steps` were made.
    MaxSteps,
    /// The gradient's norm fell to `stop_gradient_norm`.
    SmallGradient,
}

/// A finished run.
#[derive(Debug)]
pub struct Trained {
    /// The adapter.
    pub weights: LoraWeights,
    /// Optimiser steps of the whole run, restored ones included.
    pub steps: usize,
    /// Mean loss over the last epoch's steps.
    pub final_loss: LossParts,
    /// Every step, restored ones included.
    pub curve: Curve,
    /// What ended it.
    pub ending: Ending,
}

/// What a run begins with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Begin<'a> {
    /// Directory of checkpoints; the run continues from the newest one.
    pub checkpoints: Option<&'a Path>,
    /// The adapter to go on from; a fresh one if `None`.
    pub weights: Option<&'a LoraWeights>,
}

/// Trains an adapter from what it begins with, on a backend. The same examples, recipe and device give the same bits, interrupted or not.
pub fn train(
    backend: &dyn Backend,
    examples: &[TrainExample],
    recipe: &Recipe,
    begin: Begin<'_>,
    observer: &dyn Observer,
) -> Result<Trained, TrainError> {
    let checkpoints = begin.checkpoints;
    recipe.check()?;
    recipe.check_layers(backend.spec().layers)?;
    if examples.iter().all(|e| e.category == Category::Retain) {
        return Err(TrainError::NoConflicts);
    }
    let recompute = room(backend, examples, recipe, observer)?;
    let lora = match begin.weights {
        Some(weights) => TrainableLora::from_weights(weights)?,
        None => fresh(backend, recipe)?,
    };
    let mut optimizer = Optimizer::new(recipe, lora.vars())?;
    let mut curve = match checkpoints {
        Some(dir) => checkpoint::restore(dir, &lora, &mut optimizer),
        None => Curve::default(),
    };
    let mut watch = Watch::new(recipe.max_loss_ratio);
    for record in &curve.0 {
        watch.observe(record.total);
    }
    let options = PassOptions {
        precision: recipe.precision.into(),
        recompute: if recompute {
            Recompute::On
        } else {
            Recompute::Off
        },
        ..PassOptions::default()
    };
    let mut run = Run {
        passes: Passes::with(backend, options)?,
        examples,
        recipe,
        objective: recipe.into(),
        observer,
        plan: plan(examples, recipe),
        made: 0,
    };
    let mut ending = full_length(recipe, run.plan.len());
    while optimizer.steps() < run.plan.len() {
        let Some(report) = run.step(&lora, &mut optimizer)? else {
            ending = Ending::SmallGradient;
            break;
        };
        curve.0.push(record(&report));
        diverged(recipe, &report, &mut watch)?;
        observer.on_step(&report);
        let due = report.step.is_multiple_of(CHECKPOINT_STEPS) && report.step < run.plan.len();
        if let (true, Some(dir)) = (due, checkpoints) {
            checkpoint::save(dir, &lora, &optimizer, &curve)?;
        }
        realign_core::crash_point(&format!("train:after-step-{}", report.step));
    }
    Ok(Trained {
        weights: lora.snapshot()?,
        steps: optimizer.steps(),
        final_loss: final_loss(&curve, run.plan.len(), recipe),
        curve,
        ending,
    })
}

/// Whether intermediate results are computed again, if the run fits at all.
fn room(
    backend: &dyn Backend,
    examples: &[TrainExample],
    recipe: &Recipe,
    observer: &dyn Observer,
) -> Result<bool, TrainError> {
    let available = observer.memory(backend);
    let plan = |recompute| MemoryPlan {
        // The pairs' hidden states are there by now.
        states: 0,
        ..MemoryPlan::new(backend, recipe, rows(examples), recompute)
    };
    let (chosen, recompute) = MemoryPlan::fitting(observer.recompute(), available, plan)?;
    let kept = plan(false);
    // Passes that have no choice take the same either way.
    if recompute && kept != chosen {
        tracing::info!(
            planned_mb = chosen.total() >> 20,
            kept_mb = kept.total() >> 20,
            free_mb = available.map(|available| available.free >> 20),
            "training computes intermediate results of layers again instead of keeping them"
        );
    }
    Ok(recompute)
}

fn rows(examples: &[TrainExample]) -> usize {
    examples.iter().map(|e| e.example.rows()).sum()
}

/// A kill costs at most this many steps.
const CHECKPOINT_STEPS: usize = 8;

struct Run<'a> {
    passes: Passes,
    examples: &'a [TrainExample],
    recipe: &'a Recipe,
    objective: Objective,
    observer: &'a dyn Observer,
    plan: Vec<Vec<Vec<usize>>>,
    /// Steps made.
    made: usize,
}

/// What the batches of a step add up to.
#[derive(Default)]
struct Sum {
    loss: LossParts,
    gradients: Option<Gradients>,
    tokens: usize,
}

impl Run<'_> {
    /// Makes the next step; `None`, without an update, if the gradient says that it is done.
    fn step(
        &mut self,
        lora: &TrainableLora,
        optimizer: &mut Optimizer,
    ) -> Result<Option<StepReport>, TrainError> {
        let started = Instant::now();
        let step = optimizer.steps();
        self.made = step;
        let batches = self.plan[step].clone();
        let mut sum = Sum::default();
        for batch in &batches {
            self.batch(lora, batch, &mut sum)?;
        }
        let share = 1.0 / batches.len().max(1) as f64;
        let loss = scaled(sum.loss, share);
        finite(self.recipe, "the loss", loss.total(), step)?;
        let gradients = sum.gradients.ok_or(TrainError::NoConflicts)?;
        let gradient_norm = gradients.norm()? * share;
        finite(self.recipe, "the gradient's norm", gradient_norm, step)?;
        let bound = self.recipe.stop_gradient_norm;
        if bound > 0.0 && gradient_norm <= bound {
            return Ok(None);
        }
        let learning_rate = learning_rate(self.recipe, step, self.plan.len());
        let scale = share * clip(gradient_norm, self.recipe.clip_norm);
        optimizer.update(lora.vars(), &gradients, learning_rate, scale)?;
        Ok(Some(StepReport {
            step: step + 1,
            total: self.plan.len(),
            loss,
            gradient_norm,
            learning_rate,
            tokens: sum.tokens,
            seconds: started.elapsed().as_secs_f64(),
        }))
    }

    /// Differs for every micro-batch of a run, and not between two runs.
    fn dropout_seed(&self, tokens: usize, first: usize) -> u64 {
        let parts = [self.made as u64, tokens as u64, first as u64];
        let mix = |seed: u64, part: u64| (seed ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        parts.into_iter().fold(self.recipe.seed, mix)
    }

    /// Adds a batch's loss and gradient, in groups that bound the activations' memory.
    fn batch(
        &mut self,
        lora: &TrainableLora,
        batch: &[usize],
        sum: &mut Sum,
    ) -> Result<(), TrainError> {
        let batch: Vec<&TrainExample> = batch.iter().map(|&i| &self.examples[i]).collect();
        let layouts: Vec<Example> = batch.iter().map(|e| e.example.clone()).collect();
        for group in group_by_rows(&layouts, ROW_BUDGET) {
            if !self.observer.proceed() {
                return Err(TrainError::Cancelled);
            }
            self.passes.drop_out(Dropout {
                share: self.recipe.dropout as f32,
                seed: self.dropout_seed(sum.tokens, group.start),
            })?;
            let (part, parts) = self.passes.loss(&self.objective, lora, &batch[group])?;
            sum.loss = add(sum.loss, parts);
            sum.gradients = Some(match sum.gradients.take() {
                Some(gradients) => gradients.add(&part)?,
                None => part,
            });
        }
        sum.tokens += layouts.iter().map(Example::rows).sum::<usize>();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
