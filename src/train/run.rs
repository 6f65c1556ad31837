//! The training loop: stratified steps, gradient accumulation, checkpoints, yielding to serving.

use std::path::Path;
use std::time::Instant;

use candle_core::Result as TensorResult;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::adamw::{AdamW, learning_rate};
use super::checkpoint;
use super::examples::TrainExample;
use super::objective::{LossParts, Objective};
use super::recipe::{Recipe, RecipeError};
use super::trainable::{Gradients, TrainableLora};
use crate::model::packing::{Example, group_by_rows};
use crate::model::{LoraWeights, Model, Ops};
use crate::triage::Category;

/// Rows of one forward and backward pass: bounds the activations' memory whatever a step holds.
pub const ROW_BUDGET: usize = 512;

/// What a run tells the outside, and what it asks.
pub trait Observer {
    /// Asked before every micro-batch; may block to let serving go first. `false` ends the run.
    fn proceed(&self) -> bool;
    /// After every optimiser step.
    fn on_step(&self, report: &StepReport);
}

/// One optimiser step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: usize,
    /// Steps of the whole run.
    pub total: usize,
    /// The step's loss, summed over its pairs.
    pub loss: LossParts,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
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
    /// There is nothing to learn from.
    #[error("no conflicting pairs to train on")]
    NoConflicts,
    /// The loss became NaN or infinite.
    #[error("the loss is {loss} at step {step}: lower train.learning_rate")]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f64,
    },
    /// The observer said stop.
    #[error("cancelled")]
    Cancelled,
    /// A checkpoint could not be written.
    #[error("cannot write a checkpoint: {0}")]
    Checkpoint(#[from] std::io::Error),
    /// The tensor library refused an operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A finished run.
#[derive(Debug)]
pub struct Trained {
    /// The adapter.
    pub weights: LoraWeights,
    /// Optimiser steps of the whole run, restored ones included.
    pub steps: usize,
    /// Mean loss over the last epoch's steps that ran here.
    pub final_loss: LossParts,
}

/// Trains an adapter from scratch, or from the newest checkpoint in `checkpoints`, on a model with
/// f32 weights. The same examples, recipe and device give the same bits, interrupted or not.
pub fn train(
    model: &Model,
    ops: Ops,
    examples: &[TrainExample],
    recipe: &Recipe,
    checkpoints: Option<&Path>,
    observer: &dyn Observer,
) -> Result<Trained, TrainError> {
    recipe.check()?;
    if examples.iter().all(|e| e.category == Category::Retain) {
        return Err(TrainError::NoConflicts);
    }
    let lora = TrainableLora::init(&model.spec, recipe, &recipe.projections()?, &model.device)?;
    let mut optimizer = AdamW::new(lora.vars())?;
    if let Some(dir) = checkpoints {
        checkpoint::restore(dir, &lora, &mut optimizer);
    }
    let plan = plan(examples, recipe);
    let run = Run {
        model,
        ops,
        examples,
        recipe,
        objective: recipe.into(),
        observer,
    };
    let mut recent = Vec::new();
    while optimizer.steps < plan.len() {
        let report = run.step(&lora, &mut optimizer, &plan)?;
        recent.push(report.loss);
        observer.on_step(&report);
        let due = report.step.is_multiple_of(CHECKPOINT_STEPS) && report.step < plan.len();
        if let (true, Some(dir)) = (due, checkpoints) {
            checkpoint::save(dir, &lora, &optimizer)?;
        }
        crate::state::crash_point(&format!("train:after-step-{}", report.step));
    }
    let last_epoch = recent.len().min(plan.len() / recipe.epochs.max(1));
    let final_loss = mean(&recent[recent.len() - last_epoch..]);
    Ok(Trained {
        weights: lora.snapshot()?,
        steps: plan.len(),
        final_loss,
    })
}

/// A kill costs at most this many steps.
const CHECKPOINT_STEPS: usize = 8;

/// The example indices of every step of a run: each epoch shuffles each category with its own
/// seed, then deals every category evenly over the steps.
pub fn plan(examples: &[TrainExample], recipe: &Recipe) -> Vec<Vec<usize>> {
    let of = |category: Category| -> Vec<usize> {
        (0..examples.len())
            .filter(|&i| examples[i].category == category)
            .collect()
    };
    let categories = [
        of(Category::Invert),
        of(Category::Punish),
        of(Category::Retain),
    ];
    let steps = examples.len().div_ceil(recipe.pairs_per_step.max(1));
    let mut plan = Vec::with_capacity(steps * recipe.epochs);
    for epoch in 0..recipe.epochs {
        let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed.wrapping_add(1 + epoch as u64));
        let shuffled: Vec<Vec<usize>> = categories
            .iter()
            .map(|indices| {
                let mut indices = indices.clone();
                indices.shuffle(&mut rng);
                indices
            })
            .collect();
        for step in 0..steps {
            let share = |c: &Vec<usize>| step * c.len() / steps..(step + 1) * c.len() / steps;
            plan.push(
                shuffled
                    .iter()
                    .flat_map(|c| c[share(c)].iter().copied())
                    .collect(),
            );
        }
    }
    plan.retain(|step: &Vec<usize>| !step.is_empty());
    plan
}

struct Run<'a> {
    model: &'a Model,
    ops: Ops,
    examples: &'a [TrainExample],
    recipe: &'a Recipe,
    objective: Objective,
    observer: &'a dyn Observer,
}

impl Run<'_> {
    fn step(
        &self,
        lora: &TrainableLora,
        optimizer: &mut AdamW,
        plan: &[Vec<usize>],
    ) -> Result<StepReport, TrainError> {
        let started = Instant::now();
        let step = optimizer.steps;
        let batch: Vec<&TrainExample> = plan[step].iter().map(|&i| &self.examples[i]).collect();
        let layouts: Vec<Example> = batch.iter().map(|e| e.example.clone()).collect();
        let mut loss = LossParts::default();
        let mut gradients: Option<Gradients> = None;
        for group in group_by_rows(&layouts, ROW_BUDGET) {
            if !self.observer.proceed() {
                return Err(TrainError::Cancelled);
            }
            let (part, parts) = self.micro_batch(lora, &batch[group])?;
            loss = add(loss, parts);
            gradients = Some(match gradients {
                Some(sum) => sum.add(&part)?,
                None => part,
            });
        }
        if !loss.total().is_finite() {
            return Err(TrainError::Diverged {
                step: step + 1,
                loss: loss.total(),
            });
        }
        let gradients = gradients.ok_or(TrainError::NoConflicts)?;
        let rate = learning_rate(
            self.recipe.learning_rate,
            self.recipe.warmup_ratio,
            step,
            plan.len(),
        );
        let gradient_norm = optimizer.step(lora.vars(), &gradients, rate, self.recipe.clip_norm)?;
        Ok(StepReport {
            step: step + 1,
            total: plan.len(),
            loss,
            gradient_norm,
            tokens: layouts.iter().map(Example::rows).sum(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    fn micro_batch(
        &self,
        lora: &TrainableLora,
        batch: &[&TrainExample],
    ) -> TensorResult<(Gradients, LossParts)> {
        let (loss, parts) = self
            .objective
            .loss(self.model, self.ops, &lora.weights(), batch)?;
        let store = loss.backward()?;
        Ok((lora.gradients(&store)?, parts))
    }
}

fn add(a: LossParts, b: LossParts) -> LossParts {
    LossParts {
        invert: a.invert + b.invert,
        punish: a.punish + b.punish,
        retain: a.retain + b.retain,
        sft: a.sft + b.sft,
    }
}

fn mean(losses: &[LossParts]) -> LossParts {
    let n = losses.len().max(1) as f64;
    let sum = losses.iter().copied().fold(LossParts::default(), add);
    LossParts {
        invert: sum.invert / n,
        punish: sum.punish / n,
        retain: sum.retain / n,
        sft: sum.sft / n,
    }
}
