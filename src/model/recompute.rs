//! Gradients by candle's automatic differentiation, one layer at a time.
//!
//! The graph of a whole pass holds every intermediate result of every layer until the backward
//! comes for it. Here the forward keeps what enters each adapted layer and nothing else; the backward
//! goes from the head down, runs one layer again with its graph, pulls the gradient through it, and
//! drops the graph before the next. The head turns a few rows into logits at a time. So the most
//! that exists at once is one layer's intermediate results, one hidden state a layer and one chunk of
//! logits, for one more forward of the adapted layers. The graph of a whole pass is the slow twin.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use candle_core::{Device, Result, Tensor, Var, bail};

use super::compute::Ropes;
use super::cpu::learn::{SiteGradients, TokenLoss};
use super::decoder::{Batch, Model};
use super::linear::AdapterRows;
use super::lora::LoraWeights;
use super::ops::{self, Ops};
use super::packing::Packed;

/// Whether the backward computes the layers' intermediate results again instead of keeping them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Where they do not fit into memory otherwise; for passes without a memory plan, on a device.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl Recompute {
    /// What it is read from, for messages.
    pub const ALLOWED: &'static str = "allowed are \"auto\", \"on\" and \"off\"";

    /// The choice for passes whose memory nobody has planned.
    pub fn unplanned(self, device: &Device) -> bool {
        match self {
            Recompute::Auto => !device.is_cpu(),
            Recompute::On => true,
            Recompute::Off => false,
        }
    }
}

impl FromStr for Recompute {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Recompute::Auto),
            "on" => Ok(Recompute::On),
            "off" => Ok(Recompute::Off),
            _ => Err(Self::ALLOWED),
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Recompute::Auto => "auto",
            Recompute::On => "on",
            Recompute::Off => "off",
        })
    }
}

/// Rows of the head's products at a time: so many that their logits have 8 million elements on the
/// CPU and 32 million on a device, which wants larger products; at least 8, at most 512.
pub fn head_rows(vocabulary: usize, on_device: bool) -> usize {
    let elements = if on_device { 32 << 20 } else { 8 << 20 };
    (elements / vocabulary.max(1)).clamp(8, 512)
}

/// Computes values and gradients of a batch with little memory. Weights are floats.
#[derive(Clone, Copy, Debug)]
pub struct Stepwise<'a> {
    model: &'a Model,
    ops: Ops,
    /// Rows of the head at a time.
    head_rows: usize,
}

/// What the head gives.
struct Measured {
    /// In the batch's order.
    values: Vec<f32>,
    /// The tokens in the order in which `gradients` has them.
    order: Vec<usize>,
    /// The gradient of every value in its row of the residual stream, (tokens, hidden).
    gradients: Tensor,
}

impl<'a> Stepwise<'a> {
    /// Passes of a model in one form of the operations.
    pub fn new(model: &'a Model, ops: Ops) -> Self {
        Self {
            model,
            ops,
            head_rows: head_rows(model.spec.vocab_size, !model.device.is_cpu()),
        }
    }

    /// The residual stream that leaves the last layer in the rows that predict the response tokens,
    /// (response tokens, hidden); no gradient.
    fn top(&self, batch: &Packed, adapter: Option<&LoraWeights>) -> Result<Tensor> {
        let still = adapter.map(LoraWeights::detached);
        let still = rows_of(batch, still.as_ref());
        let pass = self.pass(batch, &still);
        let (x, first) = pass.enter()?;
        let x = pass.run(x, first..self.model.layers.len())?;
        x.index_select(&self.rows(batch)?, 0)
    }

    /// Final hidden states, after the last norm, that predict the response tokens: (response
    /// tokens, hidden); no gradient.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn hidden(&self, batch: &Packed, adapter: Option<&LoraWeights>) -> Result<Tensor> {
        let top = self.top(batch, adapter)?;
        self.normalised(&top)
    }

    /// log p of every response token; no gradient.
    ///
    /// # Errors
    /// As [`Stepwise::hidden`].
    pub fn logprobs(&self, batch: &Packed, adapter: Option<&LoraWeights>) -> Result<Vec<f32>> {
        let hidden = self.hidden(batch, adapter)?;
        self.logprobs_of(&hidden, batch.targets())
    }

    /// log p of `targets`, one of each row of normalised hidden states; no gradient.
    ///
    /// # Errors
    /// If a target is not in the vocabulary.
    pub fn logprobs_of(&self, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(targets.len());
        for (i, targets) in targets.chunks(self.head_rows).enumerate() {
            let rows = hidden.narrow(0, i * self.head_rows, targets.len())?;
            let logits = self.model.logits(&rows)?;
            values.extend(ops::token_logprobs(self.ops, &logits, targets)?.to_vec1::<f32>()?);
        }
        Ok(values)
    }

    /// Gradients of Σ cᵢ vᵢ in the adapter's factors, where vᵢ are the values that `losses` name and
    /// c = `coefficients`(v). `reference` holds the reference's hidden states, one row per token
    /// with a KL, in the batch's order. The factors have to be variables.
    ///
    /// # Errors
    /// If the adapter does not fit the model, or its factors are no variables.
    pub fn gradients(
        &self,
        batch: &Packed,
        adapter: &LoraWeights,
        (losses, reference): (&[TokenLoss], Option<&Tensor>),
        coefficients: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Result<SiteGradients> {
        if losses.is_empty() {
            bail!("a batch needs at least one response token");
        }
        let layers = self.model.layers.len();
        let (still, live) = (adapter.detached(), rows_of(batch, Some(adapter)));
        let still = rows_of(batch, Some(&still));
        let forward = self.pass(batch, &still);
        let (x, first) = forward.enter()?;
        let lowest = adapter.lowest_layer().unwrap_or(layers).max(first);
        let mut x = forward.run(x, first..lowest)?;
        let mut entered = Vec::with_capacity(layers - lowest);
        for layer in lowest..layers {
            entered.push(x.clone());
            x = forward.run(x, layer..layer + 1)?;
        }
        let by_top = self.head(batch, &x, (losses, reference), coefficients)?;
        drop(x);
        // The layers have the same rotations on both ways.
        let backward = Pass {
            batch: batch.batch(self.ops, &live),
            ..forward
        };
        self.down(&backward, adapter, entered, by_top)
    }

    /// Goes down through the layers whose inputs are in `entered`, the last of them first, with the
    /// gradient `by_output` in what the last one gives.
    fn down(
        &self,
        pass: &Pass,
        adapter: &LoraWeights,
        mut entered: Vec<Tensor>,
        mut by_output: Tensor,
    ) -> Result<SiteGradients> {
        let lowest = self.model.layers.len() - entered.len();
        let mut found = SiteGradients::new();
        while let Some(input) = entered.pop() {
            let layer = lowest + entered.len();
            // Nothing below the lowest layer wants a gradient.
            let variable = match layer > lowest {
                true => Some(Var::from_tensor(&input)?),
                false => None,
            };
            let from = variable.as_deref().unwrap_or(&input).clone();
            drop(input);
            let output = pass.run(from, layer..layer + 1)?;
            let mut store = (output * &by_output)?.sum_all()?.backward()?;
            for (site, pair) in adapter.sites.iter().filter(|(s, _)| s.layer == layer) {
                let mut take = |factor: &Tensor| match (factor.is_variable(), store.remove(factor))
                {
                    (true, Some(gradient)) => Ok(gradient.detach()),
                    (true, None) => factor.zeros_like(),
                    (false, _) => bail!("{site:?}: a factor under training has to be a variable"),
                };
                found.insert(*site, (take(&pair.a)?, take(&pair.b)?));
            }
            match variable.map(|v| store.remove(&v)) {
                Some(Some(gradient)) => by_output = gradient.detach(),
                Some(None) => bail!("layer {layer} passes no gradient on"),
                None => break,
            }
        }
        // Sites below what was remembered of the batch take no part in it.
        for (site, pair) in adapter.sites.iter().filter(|(s, _)| s.layer < lowest) {
            found.insert(*site, (pair.a.zeros_like()?, pair.b.zeros_like()?));
        }
        Ok(found)
    }

    /// The gradient of Σ cᵢ vᵢ in the residual stream `x` that leaves the last layer.
    fn head(
        &self,
        batch: &Packed,
        x: &Tensor,
        (losses, reference): (&[TokenLoss], Option<&Tensor>),
        coefficients: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Result<Tensor> {
        let rows = x.index_select(&self.rows(batch)?, 0)?;
        let measured = self.measure(&rows, losses, reference)?;
        let of_token = coefficients(&measured.values);
        if of_token.len() != losses.len() {
            bail!(
                "{} coefficients for {} tokens",
                of_token.len(),
                losses.len()
            );
        }
        let device = &self.model.device;
        let ordered: Vec<f32> = measured.order.iter().map(|&i| of_token[i]).collect();
        let ordered = Tensor::from_vec(ordered, (losses.len(), 1), device)?;
        let into: Vec<u32> = measured.order.iter().map(|&i| batch.rows[i]).collect();
        let into = Tensor::from_vec(into, losses.len(), device)?;
        // Both responses of a pair begin at the same row of its prompt: their gradients add up.
        let of_rows = measured.gradients.broadcast_mul(&ordered)?;
        x.zeros_like()?.index_add(&into, &of_rows, 0)
    }

    /// Values of all tokens, and the gradient of each in its row of the residual stream: rows do not
    /// meet in the head, so one backward of their sum gives every row its own.
    fn measure(
        &self,
        rows: &Tensor,
        losses: &[TokenLoss],
        reference: Option<&Tensor>,
    ) -> Result<Measured> {
        let is_kl = |i: &usize| losses[*i] == TokenLoss::Kl;
        let (kl, logprob): (Vec<usize>, Vec<usize>) = (0..losses.len()).partition(is_kl);
        let reference = match (reference, kl.is_empty()) {
            (_, true) => None,
            (Some(r), false) if r.dim(0)? == kl.len() => Some(r),
            (r, false) => bail!(
                "{} tokens want the reference's hidden states, {} have some",
                kl.len(),
                r.map_or(0, |r| r.dims()[0])
            ),
        };
        let mut values = vec![0f32; losses.len()];
        let mut gradients = Vec::new();
        let mut seen = 0;
        for indices in logprob
            .chunks(self.head_rows)
            .chain(kl.chunks(self.head_rows))
        {
            let reference = match reference.filter(|_| is_kl(&indices[0])) {
                Some(reference) => {
                    seen += indices.len();
                    Some(reference.narrow(0, seen - indices.len(), indices.len())?)
                }
                None => None,
            };
            let (of_chunk, gradient) = self.chunk(rows, losses, indices, reference.as_ref())?;
            for (i, value) in indices.iter().zip(of_chunk) {
                values[*i] = value;
            }
            gradients.push(gradient);
        }
        Ok(Measured {
            values,
            order: logprob.into_iter().chain(kl).collect(),
            gradients: Tensor::cat(&gradients, 0)?,
        })
    }

    fn chunk(
        &self,
        rows: &Tensor,
        losses: &[TokenLoss],
        indices: &[usize],
        reference: Option<&Tensor>,
    ) -> Result<(Vec<f32>, Tensor)> {
        let picked: Vec<u32> = indices.iter().map(|&i| i as u32).collect();
        let picked = Tensor::from_vec(picked, indices.len(), rows.device())?;
        let variable = Var::from_tensor(&rows.index_select(&picked, 0)?)?;
        let logits = self.model.logits(&self.normalised(&variable)?)?;
        let values = match reference {
            Some(reference) => {
                let reference = self.model.logits(reference)?;
                ops::kl_from_reference(self.ops, &reference, &logits)?
            }
            None => {
                let target = |i: &usize| match losses[*i] {
                    TokenLoss::LogProb(token) => token,
                    TokenLoss::Kl => 0,
                };
                let targets: Vec<u32> = indices.iter().map(target).collect();
                ops::token_logprobs(self.ops, &logits, &targets)?
            }
        };
        let mut store = values.sum_all()?.backward()?;
        let Some(gradient) = store.remove(&variable) else {
            bail!("the head passes no gradient on");
        };
        Ok((values.to_vec1()?, gradient.detach()))
    }

    fn normalised(&self, x: &Tensor) -> Result<Tensor> {
        let eps = self.model.spec.rms_norm_eps;
        ops::rms_norm(self.ops, x, &self.model.final_norm, eps)
    }

    fn rows(&self, batch: &Packed) -> Result<Tensor> {
        Tensor::new(batch.rows.as_slice(), &self.model.device)
    }

    fn pass<'b>(&self, batch: &'b Packed, adapters: &'b [AdapterRows<'b>]) -> Pass<'b>
    where
        'a: 'b,
    {
        Pass {
            model: self.model,
            packed: batch,
            batch: batch.batch(self.ops, adapters),
            ropes: Ropes::new(&self.model.spec, &batch.positions),
        }
    }
}

fn rows_of<'b>(batch: &Packed, adapter: Option<&'b LoraWeights>) -> Vec<AdapterRows<'b>> {
    let rows = 0..batch.token_count();
    adapter
        .map(|adapter| AdapterRows { rows, adapter })
        .into_iter()
        .collect()
}

/// A batch on its way through the layers.
struct Pass<'b> {
    model: &'b Model,
    packed: &'b Packed,
    batch: Batch<'b>,
    ropes: Ropes,
}

impl Pass<'_> {
    /// Where the batch begins: the residual stream, and the layer that it enters.
    fn enter(&self) -> Result<(Tensor, usize)> {
        match &self.packed.states {
            Some(states) => {
                let rows: Vec<&Tensor> = states.iter().map(|s| &s.hidden).collect();
                Ok((Tensor::cat(&rows, 0)?, states[0].layer))
            }
            None => Ok((self.model.states_below(&self.batch, 0)?, 0)),
        }
    }

    fn run(&self, x: Tensor, layers: Range<usize>) -> Result<Tensor> {
        self.model
            .run_layers_with(&self.batch, &self.ropes, x, layers)
    }
}

#[cfg(test)]
mod tests;
