//! Learning by candle's automatic differentiation.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor, Var};
use realign_model::learning::logprobs_of;
use realign_model::packing::{Packed, States};
use realign_model::{
    Dropout, LearningPasses, LoraPair, LoraWeights, Measured, SiteGradients, Slopes,
};

use crate::decoder::TensorModel;
use crate::linear::TensorWeight;
use crate::stepwise::Stepwise;

/// The step of a central difference, as a length in parameter space. At this length the response
/// log-probabilities of the default model move by about half a unit: far above f32's noise of
/// 2e-4 and, by test against per-pair gradients, well inside the linear range.
const STEP_LENGTH: f64 = 6e-3;

/// Passes of a decoder on candle's tensors.
#[derive(Clone, Debug)]
pub struct TensorPasses<W> {
    model: Arc<TensorModel<W>>,
    /// Whether a layer's intermediate results are computed again for its gradients.
    recompute: bool,
}

impl<W: TensorWeight> TensorPasses<W> {
    /// Passes that compute intermediate results again, or keep them in the graph of a whole pass.
    pub fn new(model: Arc<TensorModel<W>>, recompute: bool) -> Self {
        Self { model, recompute }
    }

    fn logprobs(&self, batch: &Packed, adapter: &LoraWeights) -> Result<Vec<f32>> {
        let passes = Stepwise::new(&self.model);
        let hidden = passes.hidden(batch, Some(adapter))?;
        let losses = logprobs_of(batch);
        let measured = Measured {
            losses: &losses,
            reference: None,
        };
        passes.measured(measured, &hidden)
    }
}

impl<W: TensorWeight> LearningPasses for TensorPasses<W> {
    fn states(&mut self, batch: &Packed, layer: usize) -> Result<Vec<States>> {
        self.model.states(batch, layer)
    }

    fn hidden(&mut self, batch: &Packed, adapter: Option<&LoraWeights>) -> Result<Tensor> {
        Stepwise::new(&self.model).hidden(batch, adapter)
    }

    fn measure(&mut self, measured: Measured, hidden: &Tensor) -> Result<Vec<f32>> {
        Stepwise::new(&self.model).measured(measured, hidden)
    }

    fn gradients(
        &mut self,
        batch: &Packed,
        adapter: &LoraWeights,
        measured: Measured,
        coefficients: &mut (dyn FnMut(&[f32]) -> Vec<f32> + Send),
    ) -> Result<SiteGradients> {
        let adapter = variables(adapter)?;
        if self.recompute {
            return Stepwise::new(&self.model).gradients(batch, &adapter, measured, coefficients);
        }
        self.model
            .whole_gradients(batch, &adapter, measured, coefficients)
    }

    /// By a central difference.
    fn slopes(
        &mut self,
        batch: &Packed,
        adapter: &LoraWeights,
        along: &LoraWeights,
    ) -> Result<Slopes> {
        let values = self.logprobs(batch, adapter)?;
        let norm = norm(along)?;
        if norm == 0.0 {
            let slopes = vec![0.0; values.len()];
            return Ok(Slopes { values, slopes });
        }
        let step = STEP_LENGTH / norm;
        let ahead = self.logprobs(batch, &moved(adapter, along, step)?)?;
        let behind = self.logprobs(batch, &moved(adapter, along, -step)?)?;
        let slope = |(a, b): (f32, f32)| ((f64::from(a) - f64::from(b)) / (2.0 * step)) as f32;
        let slopes = ahead.into_iter().zip(behind).map(slope).collect();
        Ok(Slopes { values, slopes })
    }

    fn drop_out(&mut self, dropout: Dropout) -> Result<()> {
        if dropout.share == 0.0 {
            return Ok(());
        }
        candle_core::bail!("train.dropout works on the CPU's packed weights only: set it to 0 here")
    }
}

/// The same adapter with its factors as variables; those that are variables already stay the same.
fn variables(adapter: &LoraWeights) -> Result<LoraWeights> {
    let variable = |factor: &Tensor| -> Result<Tensor> {
        if factor.is_variable() {
            return Ok(factor.clone());
        }
        Ok(Var::from_tensor(&factor.detach())?.as_tensor().clone())
    };
    map(adapter, |pair, _| {
        Ok((variable(&pair.a)?, variable(&pair.b)?))
    })
}

/// `adapter` moved by `step` along a direction.
fn moved(adapter: &LoraWeights, along: &LoraWeights, step: f64) -> Result<LoraWeights> {
    map(adapter, |pair, site| {
        let (a, b) = (pair.a.detach(), pair.b.detach());
        match along.sites.get(&site) {
            Some(by) => Ok(((a + (&by.a * step)?)?, (b + (&by.b * step)?)?)),
            None => Ok((a, b)),
        }
    })
}

fn map(
    adapter: &LoraWeights,
    f: impl Fn(&LoraPair, realign_model::LoraSite) -> Result<(Tensor, Tensor)>,
) -> Result<LoraWeights> {
    let sites = adapter.sites.iter().map(|(site, pair)| {
        let (a, b) = f(pair, *site)?;
        let scale = pair.scale;
        Ok((*site, LoraPair { a, b, scale }))
    });
    Ok(sites.collect::<Result<BTreeMap<_, _>>>()?.into())
}

/// The Euclidean norm of all factors together, in f64.
fn norm(of: &LoraWeights) -> Result<f64> {
    let mut sum = 0f64;
    for factor in of.sites.values().flat_map(|pair| [&pair.a, &pair.b]) {
        let factor = factor.to_dtype(DType::F64)?;
        sum += factor.sqr()?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(sum.sqrt())
}
