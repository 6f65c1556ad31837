//! AdamW (arXiv 1711.05101) with bias correction, over LoRA variables.

use candle_core::{Result, Tensor, Var};

use super::trainable::Gradients;

/// Hyperparameters of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AdamWConstants {
    /// Decay of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the denominator of an update.
    pub epsilon: f64,
    /// Decoupled weight decay; 0 is none.
    pub weight_decay: f64,
}

impl Default for AdamWConstants {
    fn default() -> Self {
        Self {
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// First and second moments per variable, in the order of [`super::TrainableLora::vars`].
#[derive(Debug)]
pub struct AdamW {
    /// Updates made so far.
    pub(crate) steps: usize,
    /// (m, v) per variable.
    pub(crate) moments: Vec<(Tensor, Tensor)>,
    /// Hyperparameters.
    pub(crate) constants: AdamWConstants,
}

impl AdamW {
    /// Zero moments for these variables.
    pub fn new<'a>(vars: impl Iterator<Item = &'a Var>) -> Result<Self> {
        let zeros = |var: &Var| -> Result<Tensor> { Ok(var.zeros_like()?.detach()) };
        Ok(Self {
            steps: 0,
            moments: vars
                .map(|var| Ok((zeros(var)?, zeros(var)?)))
                .collect::<Result<_>>()?,
            constants: AdamWConstants::default(),
        })
    }

    /// One update at `learning_rate`; gradients whose total norm exceeds `clip_norm` are scaled
    /// down to it. Returns the norm before clipping.
    pub fn step<'a>(
        &mut self,
        vars: impl Iterator<Item = &'a Var>,
        gradients: &Gradients,
        learning_rate: f64,
        clip_norm: f64,
    ) -> Result<f64> {
        let norm = gradients.norm()?;
        self.update(vars, gradients, learning_rate, clip(norm, clip_norm))?;
        Ok(norm)
    }

    /// One update with gradients scaled by `scale`.
    pub fn update<'a>(
        &mut self,
        vars: impl Iterator<Item = &'a Var>,
        gradients: &Gradients,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        let AdamWConstants {
            betas: [beta1, beta2],
            epsilon,
            weight_decay,
        } = self.constants;
        self.steps += 1;
        let correction1 = 1.0 - beta1.powi(self.steps as i32);
        let correction2 = 1.0 - beta2.powi(self.steps as i32);
        for ((var, gradient), (m, v)) in vars.zip(gradients.tensors()).zip(&mut self.moments) {
            let gradient = (gradient * scale)?;
            *m = ((&*m * beta1)? + (&gradient * (1.0 - beta1))?)?;
            *v = ((&*v * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let denominator = ((&*v / correction2)?.sqrt()? + epsilon)?;
            let update = ((&*m / correction1)? / denominator)?;
            let value = decayed(var, learning_rate * weight_decay)?;
            var.set(&(value - (update * learning_rate)?)?)?;
        }
        Ok(())
    }
}

/// The factor that scales gradients of this norm down to `limit`; 1 if they are within it.
pub(super) fn clip(norm: f64, limit: f64) -> f64 {
    if norm > limit { limit / norm } else { 1.0 }
}

/// A variable's value, shrunk by decoupled weight decay.
pub(super) fn decayed(var: &Var, decay: f64) -> Result<Tensor> {
    let value = var.as_detached_tensor();
    if decay == 0.0 {
        Ok(value)
    } else {
        value * (1.0 - decay)
    }
}
