//! The steps of a run on an engine.

use std::time::Instant;

use realign_core::Category;
use realign_model::packing::{Example, Packed};
use serde_json::json;

use super::passes::Pass;
use super::session::{Measured, Session};
use super::wire::{self, Given, Sequence};
use crate::train::curve::Curve;
use crate::train::divergence::Watch;
use crate::train::ending::{add, diverged, final_loss, finite, full_length, record, scaled};
use crate::train::examples::TrainExample;
use crate::train::objective::{LossParts, Objective};
use crate::train::run::{Ending, StepReport, TrainError, Trained, plan};
use crate::train::schedule::learning_rate;

impl Session<'_> {
    /// Trains on measured pairs, and fetches the adapter.
    ///
    /// # Errors
    /// Those of the local trainer, and [`TrainError::Remote`].
    pub fn train(&self, pairs: &[Measured]) -> Result<Trained, TrainError> {
        if pairs.iter().all(|p| p.example.category == Category::Retain) {
            return Err(TrainError::NoConflicts);
        }
        let examples: Vec<TrainExample> = pairs.iter().map(|p| p.example.clone()).collect();
        let plan = plan(&examples, self.recipe);
        let mut curve = Curve::default();
        let mut watch = Watch::new(self.recipe.max_loss_ratio);
        let mut ending = full_length(self.recipe, plan.len());
        for (step, batches) in plan.iter().enumerate() {
            let report = self.step(pairs, batches, (step, plan.len()))?;
            curve.0.push(record(&report));
            diverged(self.recipe, &report, &mut watch)?;
            self.observer.0.on_step(&report);
            let bound = self.recipe.stop_gradient_norm;
            if bound > 0.0 && report.gradient_norm > 0.0 && report.gradient_norm <= bound {
                ending = Ending::SmallGradient;
                break;
            }
        }
        Ok(Trained {
            weights: self.fetch()?,
            steps: curve.0.len(),
            final_loss: final_loss(&curve, plan.len(), self.recipe),
            curve,
            ending,
        })
    }

    fn step(
        &self,
        pairs: &[Measured],
        batches: &[Vec<usize>],
        (step, steps): (usize, usize),
    ) -> Result<StepReport, TrainError> {
        let started = Instant::now();
        let batches: Vec<Batch> = batches.iter().map(|b| Batch::new(pairs, b)).collect();
        let total = batches.iter().map(|b| b.sequences.len()).sum();
        let share = 1.0 / batches.len().max(1) as f64;
        let (mut loss, mut tokens) = (LossParts::default(), 0);
        for batch in &batches {
            loss = add(loss, self.accumulate(batch, share, total)?);
            tokens += batch.rows();
        }
        let loss = scaled(loss, share);
        finite(self.recipe, "the loss", loss.total(), step)?;
        let learning_rate = learning_rate(self.recipe, step, steps);
        let gradient_norm = self.update(learning_rate)?;
        finite(self.recipe, "the gradient's norm", gradient_norm, step)?;
        Ok(StepReport {
            step: step + 1,
            total: steps,
            loss,
            gradient_norm,
            learning_rate,
            tokens,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Adds a batch's gradient on the engine; returns its loss.
    fn accumulate(
        &self,
        batch: &Batch<'_>,
        share: f64,
        sequences: usize,
    ) -> Result<LossParts, TrainError> {
        let logprobs = self.logprobs(&batch.sequences)?;
        let (coefficients, loss) = batch.weigh(&self.recipe.into(), &logprobs);
        // What is not finite cannot be written as JSON; the step ends with its loss.
        if !loss.total().is_finite() {
            return Ok(loss);
        }
        let coefficients: Vec<f32> = coefficients.iter().map(|c| c * share as f32).collect();
        let mut from = 0;
        let datum = |sequence: &Sequence| {
            let span = from..from + sequence.response();
            from = span.end;
            sequence.weighted_datum(Given {
                logprobs: &logprobs[span.clone()],
                coefficients: &coefficients[span],
                sequences,
            })
        };
        self.pass(&Pass {
            forward_only: false,
            loss: "importance_sampling",
            data: batch.sequences.iter().map(datum).collect(),
        })?;
        Ok(loss)
    }

    /// One optimiser step. Returns the gradient's norm; 0 if the engine does not tell.
    fn update(&self, learning_rate: f64) -> Result<f64, TrainError> {
        let [beta1, beta2] = self.recipe.betas;
        let body = json!({ "adam_params": {
            "learning_rate": learning_rate, "beta1": beta1, "beta2": beta2,
            "eps": self.recipe.epsilon, "weight_decay": self.recipe.weight_decay,
        } });
        let result = self.run("optim_step", body)?;
        let norm = result["metrics"].get("skyrl.ai/grad_norm");
        // What is not finite is written as null.
        Ok(norm.map_or(0.0, |norm| norm.as_f64().unwrap_or(f64::NAN)))
    }
}

/// Pairs whose losses are summed up.
struct Batch<'a> {
    pairs: Vec<&'a Measured>,
    packed: Packed,
    sequences: Vec<Sequence>,
}

impl<'a> Batch<'a> {
    fn new(pairs: &'a [Measured], indices: &[usize]) -> Self {
        let pairs: Vec<&Measured> = indices.iter().map(|&i| &pairs[i]).collect();
        let examples = || pairs.iter().map(|p| &p.example.example);
        Self {
            packed: Packed::new(examples()),
            sequences: wire::sequences(examples()),
            pairs,
        }
    }

    fn rows(&self) -> usize {
        let examples = self.pairs.iter().map(|p| &p.example.example);
        examples.map(Example::rows).sum()
    }

    /// The loss, and its derivative in the log-probability of every response token.
    ///
    /// The API has no distributions, so the KL of a RETAIN token is half the square of its log-ratio to
    /// the base: 0 with a gradient of 0 at the base, and to first order the same gradient in the mean
    /// over tokens that the base would write.
    fn weigh(&self, objective: &Objective, logprobs: &[f32]) -> (Vec<f32>, LossParts) {
        let examples: Vec<&TrainExample> = self.pairs.iter().map(|p| &p.example).collect();
        let mut values = logprobs.to_vec();
        let mut slopes = vec![1f32; values.len()];
        for (i, pair) in self.pairs.iter().enumerate() {
            if pair.example.category != Category::Retain {
                continue;
            }
            for (at, base) in self.packed.span(i, 0).zip(&pair.tokens) {
                let ratio = logprobs[at] - base;
                values[at] = ratio * ratio / 2.0;
                slopes[at] = ratio;
            }
        }
        let (mut coefficients, loss) = objective.weigh(&examples, &self.packed, &values);
        for (coefficient, slope) in coefficients.iter_mut().zip(slopes) {
            *coefficient *= slope;
        }
        (coefficients, loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Recipe;

    #[test]
    fn coefficients_are_the_derivatives_of_what_is_reported() {
        let pair = |category, responses: &[usize]| Measured {
            example: TrainExample {
                id: "id".into(),
                category,
                example: Example::new(vec![1, 2], responses.iter().map(|n| vec![5; *n]).collect()),
                weight: 0.8,
                reference: [-7.0, -9.0],
                reference_hidden: None,
            },
            tokens: vec![-1.25; responses[0]],
        };
        let pairs = [
            pair(Category::Invert, &[6, 3]),
            pair(Category::Retain, &[7]),
            pair(Category::Punish, &[2, 5]),
        ];
        let batch = Batch::new(&pairs, &[2, 0, 1]);
        let objective = Objective::from(&Recipe::default());
        let values: Vec<f32> = (0..23).map(|n| -0.25 - (n * 7 % 11) as f32 / 4.0).collect();
        let (coefficients, _) = batch.weigh(&objective, &values);
        for at in 0..values.len() {
            let loss = |by: f32| {
                let mut values = values.clone();
                values[at] += by;
                batch.weigh(&objective, &values).1.total()
            };
            let step = 1.0 / 64.0;
            let measured = (loss(step) - loss(-step)) / f64::from(2.0 * step);
            let given = f64::from(coefficients[at]);
            assert!((measured - given).abs() < 1e-4, "{at}: {measured} {given}");
        }
        let base = vec![-1.25; values.len()];
        let retained = batch.packed.span(2, 0);
        let (at_base, loss) = batch.weigh(&objective, &base);
        assert_eq!(loss.retain, 0.0, "nothing holds what has not moved");
        assert!(at_base[retained].iter().all(|c| *c == 0.0));
    }
}
