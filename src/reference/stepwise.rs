//! Gradients by candle's automatic differentiation, one layer at a time.
//!
//! The graph of a whole pass holds every intermediate result of every layer until the backward
//! comes for it. Here the forward keeps what enters each adapted layer and nothing else; the backward
//! goes from the head down, runs one layer again with its graph, pulls the gradient through it, and
//! drops the graph before the next. The head turns a few rows into logits at a time. So the most
//! that exists at once is one layer's intermediate results, one hidden state a layer and one chunk of
//! logits, for one more forward of the adapted layers. The graph of a whole pass is the slow twin.

use std::ops::Range;

use candle_core::{Result, Tensor, Var, bail};
use realign_model::compute::Ropes;
use realign_model::packing::Packed;
use realign_model::{LoraWeights, Measured, SiteGradients, TokenLoss};

use crate::decoder::{Batch, TensorModel, entering, on_all_rows};
use crate::linear::{AdapterRows, TensorWeight};

/// Rows of the head's products at a time: so many that their logits have 8 million elements on the
/// CPU and 32 million on a device, which wants larger products; at least 8, at most 512.
pub fn head_rows(vocabulary: usize, on_device: bool) -> usize {
    let elements = if on_device { 32 << 20 } else { 8 << 20 };
    (elements / vocabulary.max(1)).clamp(8, 512)
}

/// Computes values and gradients of a batch with little memory.
#[derive(Debug)]
pub struct Stepwise<'a, W> {
    model: &'a TensorModel<W>,
    /// Rows of the head at a time.
    head_rows: usize,
}

/// What the head gives.
struct Values {
    /// In the batch's order.
    values: Vec<f32>,
    /// The tokens in the order in which `gradients` has them.
    order: Vec<usize>,
    /// The gradient of every value in its row of the residual stream, (tokens, hidden).
    gradients: Tensor,
}

impl<'a, W: TensorWeight> Stepwise<'a, W> {
    /// Passes of a model.
    pub fn new(model: &'a TensorModel<W>) -> Self {
        let vocabulary = model.decoder.spec.vocab_size;
        Self {
            model,
            head_rows: head_rows(vocabulary, !model.device().is_cpu()),
        }
    }

    /// The residual stream that leaves the last layer in the rows that predict the response tokens,
    /// (response tokens, hidden); no gradient.
    fn top(&self, batch: &Packed, adapter: Option<&LoraWeights>) -> Result<Tensor> {
        let still = adapter.map(LoraWeights::detached);
        let still = on_all_rows(batch, still.as_ref());
        let pass = self.pass(batch, &still);
        let (x, first) = pass.enter()?;
        let x = pass.run(x, first..self.model.decoder.layers.len())?;
        x.index_select(&self.rows(batch)?, 0)
    }

    /// Final hidden states, after the last norm, that predict the response tokens: (response
    /// tokens, hidden); no gradient.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn hidden(&self, batch: &Packed, adapter: Option<&LoraWeights>) -> Result<Tensor> {
        let top = self.top(batch, adapter)?;
        self.model.normalised(&top)
    }

    /// The values that `measured` names, of hidden states that are there already; no gradient.
    ///
    /// # Errors
    /// If a target is not in the vocabulary.
    pub(crate) fn measured(&self, measured: Measured, hidden: &Tensor) -> Result<Vec<f32>> {
        self.model
            .values(measured, hidden, self.head_rows)?
            .to_vec1()
    }

    /// Gradients of Σ cᵢ vᵢ in the adapter's factors, where vᵢ are the values that `measured` names
    /// and c = `coefficients`(v). The factors have to be variables.
    ///
    /// # Errors
    /// If the adapter does not fit the model, or its factors are no variables.
    pub fn gradients(
        &self,
        batch: &Packed,
        adapter: &LoraWeights,
        measured: Measured,
        coefficients: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Result<SiteGradients> {
        if measured.losses.is_empty() {
            bail!("a batch needs at least one response token");
        }
        let layers = self.model.decoder.layers.len();
        let (still, live) = (adapter.detached(), on_all_rows(batch, Some(adapter)));
        let still = on_all_rows(batch, Some(&still));
        let forward = self.pass(batch, &still);
        let (x, first) = forward.enter()?;
        let lowest = adapter.lowest_layer().unwrap_or(layers).max(first);
        let mut x = forward.run(x, first..lowest)?;
        let mut entered = Vec::with_capacity(layers - lowest);
        for layer in lowest..layers {
            entered.push(x.clone());
            x = forward.run(x, layer..layer + 1)?;
        }
        let by_top = self.head(batch, &x, measured, coefficients)?;
        drop(x);
        // The layers have the same rotations on both ways.
        let backward = Pass {
            batch: Batch::packed(batch, &live),
            ..forward
        };
        self.down(&backward, adapter, entered, by_top)
    }

    /// Goes down through the layers whose inputs are in `entered`, the last of them first, with the
    /// gradient `by_output` in what the last one gives.
    fn down(
        &self,
        pass: &Pass<W>,
        adapter: &LoraWeights,
        mut entered: Vec<Tensor>,
        mut by_output: Tensor,
    ) -> Result<SiteGradients> {
        let lowest = self.model.decoder.layers.len() - entered.len();
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
        measured: Measured,
        coefficients: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Result<Tensor> {
        let rows = x.index_select(&self.rows(batch)?, 0)?;
        let losses = measured.losses;
        let measured = self.measure(&rows, measured)?;
        let of_token = coefficients(&measured.values);
        if of_token.len() != losses.len() {
            bail!(
                "{} coefficients for {} tokens",
                of_token.len(),
                losses.len()
            );
        }
        let device = self.model.device();
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
    fn measure(&self, rows: &Tensor, measured: Measured) -> Result<Values> {
        let Measured { losses, reference } = measured;
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
        Ok(Values {
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
        let logits = self.model.logits(&self.model.normalised(&variable)?)?;
        let values = match reference {
            Some(reference) => {
                let reference = self.model.logits(reference)?;
                self.model.ops.kl_from_reference(&reference, &logits)?
            }
            None => {
                let target = |i: &usize| match losses[*i] {
                    TokenLoss::LogProb(token) => token,
                    TokenLoss::Kl => 0,
                };
                let targets: Vec<u32> = indices.iter().map(target).collect();
                self.model.ops.token_logprobs(&logits, &targets)?
            }
        };
        let mut store = values.sum_all()?.backward()?;
        let Some(gradient) = store.remove(&variable) else {
            bail!("the head passes no gradient on");
        };
        Ok((values.to_vec1()?, gradient.detach()))
    }

    fn rows(&self, batch: &Packed) -> Result<Tensor> {
        Tensor::new(batch.rows.as_slice(), self.model.device())
    }

    fn pass<'b>(&self, batch: &'b Packed, adapters: &'b [AdapterRows<'b>]) -> Pass<'b, W>
    where
        'a: 'b,
    {
        Pass {
            model: self.model,
            packed: batch,
            batch: Batch::packed(batch, adapters),
            ropes: Ropes::new(&self.model.decoder.spec, &batch.positions),
        }
    }
}

/// A batch on its way through the layers.
struct Pass<'b, W> {
    model: &'b TensorModel<W>,
    packed: &'b Packed,
    batch: Batch<'b>,
    ropes: Ropes,
}

impl<W: TensorWeight> Pass<'_, W> {
    /// Where the batch begins: the residual stream, and the layer that it enters.
    fn enter(&self) -> Result<(Tensor, usize)> {
        match &self.packed.states {
            Some(states) => Ok((entering(self.packed, states)?, states[0].layer)),
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
