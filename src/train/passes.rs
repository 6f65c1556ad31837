//! What training and scoring ask of a model, in two forms: by the CPU's own passes on packed
//! weights, and by candle's automatic differentiation on float weights, which is what other devices
//! run, a layer at a time. The graph of a whole pass is the slow twin of both.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::examples::TrainExample;
use super::objective::{LossParts, Objective};
use super::trainable::{Gradients, TrainableLora};
use crate::model::packing::{Example, Packed, remember_states};
use crate::model::{
    Differentiator, Dropout, LoraPair, LoraSite, LoraWeights, Model, Ops, Precision, Recompute,
    SiteGradients, Stepwise, TokenLoss, WholeGraph, ops,
};
use crate::triage::Category;

/// Computes losses, gradients and derivatives.
#[derive(Debug)]
pub enum Passes<'a> {
    /// Candle's tensors.
    Tensors {
        /// A model with float weights.
        model: &'a Model,
        /// Form of the operations.
        ops: Ops,
        /// Whether a layer's intermediate results are computed again for its gradients.
        recompute: bool,
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
            false => Self::Tensors {
                model,
                ops,
                recompute: Recompute::Auto.unplanned(&model.device),
            },
        })
    }

    /// The same passes, intermediate results computed again or not. Those on packed weights keep
    /// what they need either way.
    #[must_use]
    pub fn recomputing(mut self, on: bool) -> Self {
        if let Self::Tensors { recompute, .. } = &mut self {
            *recompute = on;
        }
        self
    }

    /// Runs the layers below `layer` once and leaves the result with the examples.
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    pub fn remember(&mut self, examples: &mut [Example], layer: usize) -> Result<()> {
        match self {
            Self::Tensors { model, ops, .. } => remember_states(model, *ops, examples, layer),
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

    /// Final hidden states that predict the response tokens, (response tokens, hidden).
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn hidden(&mut self, batch: &Packed, adapter: Option<&LoraWeights>) -> Result<Tensor> {
        match self {
            Self::Tensors { model, ops, .. } => Stepwise::new(model, *ops).hidden(batch, adapter),
            Self::Packed(passes) => {
                let hidden = passes.hidden(batch, adapter)?;
                let shape = (batch.targets().len(), passes.model().spec.hidden_size);
                Tensor::from_vec(hidden, shape, &candle_core::Device::Cpu)
            }
        }
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
        match self {
            Self::Tensors {
                model,
                ops,
                recompute: true,
            } => {
                let passes = Stepwise::new(model, *ops);
                let hidden = passes.hidden(batch, adapter)?;
                let logprobs = passes.logprobs_of(&hidden, batch.targets())?;
                Ok((hidden, logprobs))
            }
            Self::Tensors { model, ops, .. } => {
                let hidden = batch.response_hidden(model, *ops, adapter)?;
                let logits = model.logits(&hidden)?;
                let logprobs = ops::token_logprobs(*ops, &logits, batch.targets())?;
                Ok((hidden.detach(), logprobs.to_vec1()?))
            }
            Self::Packed(passes) => {
                let hidden = passes.hidden(batch, adapter)?;
                let losses = logprobs_of(batch);
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
            Self::Tensors {
                model,
                ops,
                recompute: true,
            } => Stepwise::new(model, *ops).logprobs(&batch, adapter)?,
            Self::Tensors { model, ops, .. } => {
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
        let packed = Packed::new(batch.iter().map(|e| &e.example));
        let mut losses = logprobs_of(&packed);
        let mut reference = Vec::new();
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
            reference.push((span, hidden));
        }
        let mut parts = LossParts::default();
        let wanted = (losses.as_slice(), reference.as_slice());
        let found = self.gradients(&packed, &lora.weights(), wanted, |values| {
            let (coefficients, sum) = objective.weigh(batch, &packed, values);
            parts = sum;
            coefficients
        })?;
        Ok((gradients(found), parts))
    }

    /// Gradients of Σ cᵢ vᵢ, where vᵢ are the values that the losses name and c =
    /// `coefficients`(v). `reference` holds the reference's hidden states of the spans with a KL,
    /// in the batch's order.
    fn gradients(
        &mut self,
        packed: &Packed,
        adapter: &LoraWeights,
        (losses, reference): (&[TokenLoss], &[(Range<usize>, &Tensor)]),
        coefficients: impl FnOnce(&[f32]) -> Vec<f32> + Send,
    ) -> Result<SiteGradients> {
        match self {
            Self::Tensors {
                model,
                ops,
                recompute,
            } => {
                let rows: Vec<&Tensor> = reference.iter().map(|(_, hidden)| *hidden).collect();
                let reference = match rows.is_empty() {
                    true => None,
                    false => Some(Tensor::cat(&rows, 0)?),
                };
                let wanted = (losses, reference.as_ref());
                match recompute {
                    true => {
                        Stepwise::new(model, *ops).gradients(packed, adapter, wanted, coefficients)
                    }
                    false => WholeGraph { model, ops: *ops }.gradients(
                        packed,
                        adapter,
                        wanted,
                        coefficients,
                    ),
                }
            }
            Self::Packed(passes) => {
                let width = passes.model().spec.hidden_size;
                let size = if reference.is_empty() {
                    0
                } else {
                    losses.len()
                };
                let mut flat = vec![0f32; size * width];
                for (span, hidden) in reference {
                    let rows = hidden.flatten_all()?.to_vec1::<f32>()?;
                    flat[span.start * width..span.end * width].copy_from_slice(&rows);
                }
                passes.gradients(packed, adapter, (losses, &flat), coefficients)
            }
        }
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
        let variables = match self {
            Self::Tensors { .. } => Some(TrainableLora::from_weights(adapter)?.weights()),
            Self::Packed(_) => None,
        };
        let adapter = variables.as_ref().unwrap_or(adapter);
        let found = self.gradients(&packed, adapter, (&losses, &[]), |values| {
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

/// Every response token measured by its log p.
fn logprobs_of(batch: &Packed) -> Vec<TokenLoss> {
    let targets = batch.targets().iter();
    targets.map(|t| TokenLoss::LogProb(*t)).collect()
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
