//! What training and scoring ask of a model, in two forms: by the CPU's own passes on packed
//! weights, and by candle's automatic differentiation on f32 weights, which is the slow twin and
//! what other devices run.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::examples::TrainExample;
use super::objective::{LossParts, Objective};
use super::trainable::{Gradients, TrainableLora};
use crate::model::packing::{Example, Packed, remember_states};
use crate::model::{
    Differentiator, Dropout, LoraPair, LoraSite, LoraWeights, Model, Ops, Precision, SiteGradients,
    TokenLoss, ops,
};
use crate::triage::Category;

/// Computes losses, gradients and derivatives.
#[derive(Debug)]
pub enum Passes<'a> {
    /// Candle's tensors.
    Tensors {
        /// A model with f32 weights.
        model: &'a Model,
        /// Form of the operations.
        ops: Ops,
    },
    /// Flat buffers on packed weights.
    Packed(Box<Differentiator>),
}

/// The slow twin's step, as a length in parameter space. At this length the response
/// log-probabilities of the default model move by about half a unit: far above f32's noise of
/// 2e-4 and, by test against per-pair gradients, well inside the linear range.
const STEP_LENGTH: f64 = 6e-3;

/// log p of an example's responses, or their derivatives: two numbers, 0 where there is no second.
pub type PerResponse = [f64; 2];

impl<'a> Passes<'a> {
    /// The form that the model's weights allow.
    ///
    /// # Errors
    /// If some weights are packed and others are not.
    pub fn new(model: &'a Model, ops: Ops, precision: Precision) -> Result<Self> {
        Ok(match model.is_packed() {
            true => Self::Packed(Box::new(Differentiator::new(
                Arc::new(model.clone()),
                precision,
            )?)),
            false => Self::Tensors { model, ops },
        })
    }

    /// Runs the layers below `layer` once and leaves the result with the examples.
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    pub fn remember(&mut self, examples: &mut [Example], layer: usize) -> Result<()> {
        match self {
            Self::Tensors { model, ops } => remember_states(model, *ops, examples, layer),
            Self::Packed(passes) => {
                let states = passes.states(&Packed::new(&*examples), layer)?;
                examples
                    .iter_mut()
                    .zip(states)
                    .for_each(|(e, s)| e.states = Some(s));
                Ok(())
            }
        }
    }

    /// Final hidden states that predict the response tokens, (response tokens, hidden), and the
    /// log-probability of each.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn reference(
        &mut self,
        batch: &Packed,
        adapter: Option<&LoraWeights>,
    ) -> Result<(Tensor, Vec<f32>)> {
        match self {
            Self::Tensors { model, ops } => {
                let hidden = batch.response_hidden(model, *ops, adapter)?;
                let logits = model.logits(*ops, &hidden)?;
                let logprobs = ops::token_logprobs(*ops, &logits, batch.targets())?;
                Ok((hidden.detach(), logprobs.to_vec1()?))
            }
            Self::Packed(passes) => {
                let hidden = passes.hidden(batch, adapter)?;
                let losses: Vec<TokenLoss> = batch
                    .targets()
                    .iter()
                    .map(|t| TokenLoss::LogProb(*t))
                    .collect();
                let logprobs = passes.measure(&losses, &hidden, &[])?;
                let (rows, width) = (losses.len(), passes.model().spec.hidden_size);
                Ok((
                    Tensor::from_vec(hidden, (rows, width), &candle_core::Device::Cpu)?,
                    logprobs,
                ))
            }
        }
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
        let tokens = match self {
            Self::Tensors { model, ops } => {
                batch.token_logprobs(model, *ops, adapter)?.to_vec1()?
            }
            Self::Packed(passes) => passes.logprobs(&batch, adapter)?,
        };
        Ok(per_response(examples, &batch, &tokens))
    }

    /// What the losses that follow leave out of the adapter's inputs.
    ///
    /// # Errors
    /// If these passes cannot leave anything out.
    pub fn drop_out(&mut self, dropout: Dropout) -> Result<()> {
        match self {
            Self::Packed(passes) => passes.dropout = dropout,
            Self::Tensors { .. } if dropout.share == 0.0 => {}
            Self::Tensors { .. } => candle_core::bail!(
                "train.dropout works on the CPU's packed weights only: set it to 0 here"
            ),
        }
        Ok(())
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
        let passes = match self {
            Self::Tensors { model, ops } => {
                let (loss, parts) = objective.loss(model, *ops, &lora.weights(), batch)?;
                return Ok((lora.gradients(&loss.backward()?)?, parts));
            }
            Self::Packed(passes) => passes,
        };
        let packed = Packed::new(batch.iter().map(|e| &e.example));
        let width = passes.model().spec.hidden_size;
        let mut losses: Vec<TokenLoss> = packed
            .targets()
            .iter()
            .map(|t| TokenLoss::LogProb(*t))
            .collect();
        let mut reference = vec![0f32; losses.len() * width];
        for (i, example) in batch
            .iter()
            .enumerate()
            .filter(|(_, e)| e.category == Category::Retain)
        {
            let Some(hidden) = &example.reference_hidden else {
                candle_core::bail!("a RETAIN example came without the reference's hidden states");
            };
            let span = packed.span(i, 0);
            losses[span.clone()].fill(TokenLoss::Kl);
            let rows = hidden.flatten_all()?.to_vec1::<f32>()?;
            reference[span.start * width..span.end * width].copy_from_slice(&rows);
        }
        let mut parts = LossParts::default();
        let found =
            passes.gradients(&packed, &lora.weights(), (&losses, &reference), |values| {
                let (coefficients, sum) = objective.weigh(batch, &packed, values);
                parts = sum;
                coefficients
            })?;
        Ok((gradients(found), parts))
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
        match self {
            Self::Tensors { model, ops } => {
                let lora = TrainableLora::from_weights(adapter)?;
                let loss = objective.gold_loss(model, *ops, &lora.weights(), batch)?;
                lora.gradients(&loss.backward()?)
            }
            Self::Packed(passes) => {
                let packed = Packed::new(batch.iter().map(|(e, _)| *e));
                let losses: Vec<TokenLoss> = packed
                    .targets()
                    .iter()
                    .map(|t| TokenLoss::LogProb(*t))
                    .collect();
                let found = passes.gradients(&packed, adapter, (&losses, &[]), |values| {
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
                })?;
                Ok(gradients(found))
            }
        }
    }

    /// log p of both responses of every example, and d log p along `direction` at `adapter`:
    /// forward-mode on packed weights, a central difference on tensors.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn slopes(
        &mut self,
        examples: &[Example],
        adapter: &LoraWeights,
        direction: &Gradients,
    ) -> Result<Vec<[PerResponse; 2]>> {
        if let Self::Packed(passes) = self {
            let batch = Packed::new(examples);
            let (values, slopes) =
                passes.slopes(&batch, adapter, &as_adapter(direction, adapter))?;
            let both = per_response(examples, &batch, &values)
                .into_iter()
                .zip(per_response(examples, &batch, &slopes));
            return Ok(both.map(|(v, s)| [v, s]).collect());
        }
        let norm = direction.norm()?;
        let now = self.logprobs(examples, Some(adapter))?;
        if norm == 0.0 {
            return Ok(now.into_iter().map(|v| [v, [0.0; 2]]).collect());
        }
        let step = STEP_LENGTH / norm;
        let ahead = self.logprobs(examples, Some(&direction.perturb(adapter, step)?))?;
        let behind = self.logprobs(examples, Some(&direction.perturb(adapter, -step)?))?;
        let slope =
            |(a, b): (PerResponse, PerResponse)| [0, 1].map(|r| (a[r] - b[r]) / (2.0 * step));
        let slopes = ahead.into_iter().zip(behind).map(slope);
        Ok(now.into_iter().zip(slopes).map(|(v, s)| [v, s]).collect())
    }
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum()
}

fn per_response(examples: &[Example], batch: &Packed, tokens: &[f32]) -> Vec<PerResponse> {
    let of = |(i, example): (usize, &Example)| {
        [0, 1].map(|r| match r < example.responses.len() {
            true => sum(&tokens[batch.span(i, r)]),
            false => 0.0,
        })
    };
    examples.iter().enumerate().map(of).collect()
}

fn gradients(sites: SiteGradients) -> Gradients {
    Gradients { sites }
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
        .collect::<std::collections::BTreeMap<_, _>>()
        .into()
}
