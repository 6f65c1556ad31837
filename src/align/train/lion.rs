//! Lion (arXiv 2302.06675): the sign of an interpolated momentum, over LoRA variables.

use candle_core::{Result, Tensor, Var};

use super::adamw::decayed;
use super::trainable::Gradients;

/// The momentum per variable, in the order of [`super::TrainableLora::vars`].
#[derive(Debug)]
pub(crate) struct Lion {
    /// Updates made so far.
    pub(crate) steps: usize,
    /// Momentum per variable.
    pub(crate) moments: Vec<Tensor>,
    /// Decay rates: β₁ of the update, β₂ of the momentum.
    pub betas: [f64; 2],
    /// Decoupled weight decay; 0 is none.
    pub weight_decay: f64,
}

impl Lion {
    /// Zero momentum for these variables.
    pub(crate) fn new<'a>(
        vars: impl Iterator<Item = &'a Var>,
        betas: [f64; 2],
        weight_decay: f64,
    ) -> Result<Self> {
        Ok(Self {
            steps: 0,
            moments: vars
                .map(|var| Ok(var.zeros_like()?.detach()))
                .collect::<Result<_>>()?,
            betas,
            weight_decay,
        })
    }

    /// One update with gradients scaled by `scale`.
    pub(crate) fn update<'a>(
        &mut self,
        vars: impl Iterator<Item = &'a Var>,
        gradients: &Gradients,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        let [beta1, beta2] = self.betas;
        self.steps += 1;
        for ((var, gradient), m) in vars.zip(gradients.tensors()).zip(&mut self.moments) {
            let gradient = (gradient * scale)?;
            let update = ((&*m * beta1)? + (&gradient * (1.0 - beta1))?)?.sign()?;
            let value = decayed(var, learning_rate * self.weight_decay)?;
            var.set(&(value - (update * learning_rate)?)?)?;
            *m = ((&*m * beta2)? + (&gradient * (1.0 - beta2))?)?;
        }
        Ok(())
    }
}
