//! Gradients by candle's automatic differentiation, from one graph of the whole pass: the slow twin
//! of every other way to get them. It keeps every intermediate result of every layer.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use realign_model::packing::Packed;
use realign_model::{LoraWeights, Measured, SiteGradients, TokenLoss};

use crate::decoder::TensorModel;
use crate::linear::TensorWeight;

impl<W: TensorWeight> TensorModel<W> {
    /// Gradients of Σ cᵢ vᵢ in the adapter's factors, where vᵢ are the values that `measured` names
    /// and c = `coefficients`(v), which are constants. The factors have to be variables.
    ///
    /// # Errors
    /// If the adapter does not fit the model, or its factors are no variables.
    pub fn whole_gradients(
        &self,
        batch: &Packed,
        adapter: &LoraWeights,
        measured: Measured,
        coefficients: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Result<SiteGradients> {
        let count = measured.losses.len();
        if count == 0 {
            bail!("a batch needs at least one response token");
        }
        let hidden = self.response_hidden(batch, Some(adapter))?;
        let values = self.values(measured, &hidden, usize::MAX)?;
        let of_token = coefficients(&values.to_vec1()?);
        let of_token = Tensor::from_vec(of_token, count, values.device())?;
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

    /// The value of every response token, (tokens), from their final hidden states; logits exist for
    /// at most `rows` of them at a time.
    pub(crate) fn values(
        &self,
        measured: Measured,
        hidden: &Tensor,
        rows: usize,
    ) -> Result<Tensor> {
        let losses = measured.losses;
        let mut parts = Vec::new();
        let mut seen = 0;
        for run in runs(losses, rows) {
            let logits = self.logits(&hidden.narrow(0, run.start, run.len())?)?;
            let targets: Vec<u32> = losses[run.clone()].iter().filter_map(target).collect();
            parts.push(match (targets.is_empty(), measured.reference) {
                (false, _) => self.ops.token_logprobs(&logits, &targets)?,
                (true, None) => bail!("a KL needs the reference's hidden states"),
                (true, Some(reference)) => {
                    let reference = reference.narrow(0, seen, run.len())?;
                    seen += run.len();
                    let reference = self.logits(&reference)?;
                    self.ops.kl_from_reference(&reference, &logits)?
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

/// Stretches of tokens that are measured alike, of at most `rows` each.
fn runs(losses: &[TokenLoss], rows: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let is_kl = |i: usize| losses[i] == TokenLoss::Kl;
    for i in 0..losses.len() {
        match runs.last_mut() {
            Some(last) if is_kl(last.start) == is_kl(i) && last.len() < rows => last.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}
