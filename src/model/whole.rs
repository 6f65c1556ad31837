//! Gradients by candle's automatic differentiation, from one graph of the whole pass: the slow twin
//! of every other way to get them. It keeps every intermediate result of every layer.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::cpu::learn::{SiteGradients, TokenLoss};
use super::decoder::Model;
use super::lora::LoraWeights;
use super::ops::{self, Ops};
use super::packing::Packed;

/// Passes of a model whose gradients come from one graph.
#[derive(Clone, Copy, Debug)]
pub struct WholeGraph<'a> {
    /// The model, its weights floats.
    pub model: &'a Model,
    /// Form of the operations.
    pub ops: Ops,
}

impl WholeGraph<'_> {
    /// Gradients of Σ cᵢ vᵢ in the adapter's factors, where vᵢ are the values that `losses` name and
    /// c = `coefficients`(v), which are constants. `reference` holds the reference's hidden states,
    /// one row per token with a KL, in the batch's order. The factors have to be variables.
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
        let hidden = batch.response_hidden(self.model, self.ops, Some(adapter))?;
        let values = self.values(&self.model.logits(&hidden)?, losses, reference)?;
        let of_token = coefficients(&values.to_vec1()?);
        let of_token = Tensor::from_vec(of_token, losses.len(), values.device())?;
        let mut store = (values * of_token)?.sum_all()?.backward()?;
        let mut take = |factor: &Tensor| match (factor.is_variable(), store.remove(factor)) {
            (true, Some(gradient)) => Ok(gradient.detach()),
            (true, None) => factor.zeros_like(),
            (false, _) => bail!("a factor under training has to be a variable"),
        };
        let sites = adapter.sites.iter();
        sites
            .map(|(site, pair)| Ok((*site, (take(&pair.a)?, take(&pair.b)?))))
            .collect()
    }

    /// The value of every response token, (tokens), from their logits.
    fn values(
        &self,
        logits: &Tensor,
        losses: &[TokenLoss],
        reference: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut parts = Vec::new();
        let mut seen = 0;
        for run in runs(losses) {
            let rows = logits.narrow(0, run.start, run.len())?;
            let targets: Vec<u32> = losses[run.clone()].iter().filter_map(target).collect();
            parts.push(match (targets.is_empty(), reference) {
                (false, _) => ops::token_logprobs(self.ops, &rows, &targets)?,
                (true, None) => bail!("a KL needs the reference's hidden states"),
                (true, Some(reference)) => {
                    let hidden = reference.narrow(0, seen, run.len())?;
                    seen += run.len();
                    ops::kl_from_reference(self.ops, &self.model.logits(&hidden)?, &rows)?
                }
            });
        }
        Tensor::cat(&parts, 0)
    }
}

fn target(loss: &TokenLoss) -> Option<u32> {
    match loss {
        TokenLoss::LogProb(token) => Some(*token),
        TokenLoss::Kl => None,
    }
}

/// Stretches of tokens that are measured alike.
fn runs(losses: &[TokenLoss]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let is_kl = |i: usize| losses[i] == TokenLoss::Kl;
    for i in 0..losses.len() {
        match runs.last_mut() {
            Some(last) if is_kl(last.start) == is_kl(i) => last.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}
