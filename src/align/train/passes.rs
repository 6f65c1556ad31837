//! What training and scoring ask of a backend's passes: losses, gradients and derivatives of pairs.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};
use realign_core::Category;
use realign_model::learning::logprobs_of;
use realign_model::packing::{Example, Packed};
use realign_model::{
    Backend, Dropout, LearningPasses, LoraPair, LoraSite, LoraWeights, Measured, PassOptions,
    Precision, TokenLoss,
};

use super::examples::TrainExample;
use super::objective::{LossParts, Objective};
use super::trainable::{Gradients, TrainableLora};

/// Computes losses, gradients and derivatives.
pub struct Passes(Box<dyn LearningPasses>);

/// log p of an example's responses, or their derivatives: two numbers, 0 where there is no second.
pub(crate) type PerResponse = [f64; 2];

impl Passes {
    /// A backend's passes, without a memory plan.
    ///
    /// # Errors
    /// If the backend has none for its weights.
    pub fn new(backend: &dyn Backend, precision: Precision) -> Result<Self> {
        let options = PassOptions {
            precision,
            ..PassOptions::default()
        };
        Self::with(backend, options)
    }

    /// A backend's passes.
    ///
    /// # Errors
    /// If the backend has none for its weights.
    pub fn with(backend: &dyn Backend, options: PassOptions) -> Result<Self> {
        backend.passes(options).map(Self)
    }

    /// Runs the layers below `layer` once and leaves the result with the examples.
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    pub fn remember(&mut self, examples: &mut [Example], layer: usize) -> Result<()> {
        let states = self.0.states(&Packed::new(&*examples), layer)?;
        for (example, states) in examples.iter_mut().zip(states) {
            example.states = Some(states);
        }
        Ok(())
    }

    /// The values that `measured` names, of hidden states that are there already.
    ///
    /// # Errors
    /// If the states do not fit.
    pub(crate) fn measure(&mut self, measured: Measured, hidden: &Tensor) -> Result<Vec<f32>> {
        self.0.measure(measured, hidden)
    }

    /// [`Passes::hidden`], and the log-probability of each response token.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn reference(
        &mut self,
        batch: &Packed,
        adapter: Option<&LoraWeights>,
    ) -> Result<(Tensor, Vec<f32>)> {
        let hidden = self.0.hidden(batch, adapter)?;
        let losses = logprobs_of(batch);
        let logprobs = self.0.measure(plain(&losses), &hidden)?;
        Ok((hidden, logprobs))
    }

    /// log p of both responses of every example.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn logprobs(
        &mut self,
        examples: &[Example],
        adapter: Option<&LoraWeights>,
    ) -> Result<Vec<PerResponse>> {
        let batch = Packed::new(examples);
        let (_, tokens) = self.reference(&batch, adapter)?;
        Ok(per_response(examples, &batch, &tokens))
    }

    /// What the losses that follow leave out of the adapter's inputs.
    ///
    /// # Errors
    /// If these passes cannot leave anything out.
    pub fn drop_out(&mut self, dropout: Dropout) -> Result<()> {
        self.0.drop_out(dropout)
    }

    /// The loss of a batch and its gradient.
    ///
    /// # Errors
    /// If an example came without what its loss needs.
    pub fn loss(
        &mut self,
        objective: &Objective,
        lora: &TrainableLora,
        batch: &[&TrainExample],
    ) -> Result<(Gradients, LossParts)> {
        let packed = Packed::new(batch.iter().map(|e| &e.example));
        let mut losses = logprobs_of(&packed);
        let mut reference = Vec::new();
        for (i, example) in batch.iter().enumerate() {
            if example.category != Category::Retain {
                continue;
            }
            let Some(hidden) = &example.reference_hidden else {
                bail!("a RETAIN example came without the reference's hidden states");
            };
            losses[packed.span(i, 0)].fill(TokenLoss::Kl);
            reference.push(hidden);
        }
        let reference = if reference.is_empty() {
            None
        } else {
            Some(Tensor::cat(&reference, 0)?)
        };
        let measured = Measured {
            losses: &losses,
            reference: reference.as_ref(),
        };
        let mut parts = LossParts::default();
        let sites = self
            .0
            .gradients(&packed, &lora.weights(), measured, &mut |values| {
                let (coefficients, sum) = objective.weigh(batch, &packed, values);
                parts = sum;
                coefficients
            })?;
        Ok((Gradients { sites }, parts))
    }

    /// The gradient of the gold pairs' preference losses, summed; (preferred, dispreferred)
    /// responses with their log π_ref, or `None` where the
    /// adapter is fresh and every margin is 0.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn gold(
        &mut self,
        objective: &Objective,
        adapter: &LoraWeights,
        batch: &[(&Example, Option<PerResponse>)],
    ) -> Result<Gradients> {
        let packed = Packed::new(batch.iter().map(|(e, _)| *e));
        let losses = logprobs_of(&packed);
        let mut slopes = |values: &[f32]| {
            let mut coefficients = vec![0f32; values.len()];
            for (i, (_, reference)) in batch.iter().enumerate() {
                let spans = [packed.span(i, 0), packed.span(i, 1)];
                let margin = reference.map_or(0.0, |reference| {
                    let ratio = |r: usize| sum(&values[spans[r].clone()]) - reference[r];
                    ratio(0) - ratio(1)
                });
                let slope = objective.preference_slope(margin) as f32;
                coefficients[spans[0].clone()].fill(slope);
                coefficients[spans[1].clone()].fill(-slope);
            }
            coefficients
        };
        let sites = self
            .0
            .gradients(&packed, adapter, plain(&losses), &mut slopes)?;
        Ok(Gradients { sites })
    }

    /// log p of both responses of every example, and d log p along `direction` at `adapter`.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub(crate) fn slopes(
        &mut self,
        examples: &[Example],
        adapter: &LoraWeights,
        direction: &Gradients,
    ) -> Result<Vec<[PerResponse; 2]>> {
        let batch = Packed::new(examples);
        let along = as_adapter(direction, adapter);
        let found = self.0.slopes(&batch, adapter, &along)?;
        let values = per_response(examples, &batch, &found.values);
        let slopes = per_response(examples, &batch, &found.slopes);
        Ok(values
            .into_iter()
            .zip(slopes)
            .map(|(v, s)| [v, s])
            .collect())
    }
}

/// Values that need no reference.
fn plain(losses: &[TokenLoss]) -> Measured<'_> {
    Measured {
        losses,
        reference: None,
    }
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum()
}

fn per_response(examples: &[Example], batch: &Packed, tokens: &[f32]) -> Vec<PerResponse> {
    let of = |(i, example): (usize, &Example)| {
        [0, 1].map(|r| {
            if r < example.responses.len() {
                sum(&tokens[batch.span(i, r)])
            } else {
                0.0
            }
        })
    };
    examples.iter().enumerate().map(of).collect()
}

/// A direction in the form of an adapter, with that adapter's scales.
fn as_adapter(direction: &Gradients, adapter: &LoraWeights) -> LoraWeights {
    let pair = |(site, (a, b)): (&LoraSite, &(Tensor, Tensor))| {
        let scale = adapter.sites.get(site).map_or(1.0, |p| p.scale);
        (
            *site,
            LoraPair {
                a: a.clone(),
                b: b.clone(),
                scale,
            },
        )
    };
    direction
        .sites
        .iter()
        .map(pair)
        .collect::<BTreeMap<_, _>>()
        .into()
}
