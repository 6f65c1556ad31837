//! AdamW (arXiv 1711.05101) without weight decay, with bias correction, over LoRA variables.

use candle_core::{Result, Tensor, Var};

use super::trainable::Gradients;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// First and second moments per variable, in the order of [`super::TrainableLora::vars`].
#[derive(Debug)]
pub struct AdamW {
    /// Updates made so far.
    pub steps: usize,
    /// (m, v) per variable.
    pub moments: Vec<(Tensor, Tensor)>,
}

impl AdamW {
    /// Zero moments for these variables.
    pub fn new<'a>(vars: impl Iterator<Item = &'a Var>) -> Result<Self> {
        let zero = |var: &Var| Ok((var.zeros_like()?.detach(), var.zeros_like()?.detach()));
        Ok(Self {
            steps: 0,
            moments: vars.map(zero).collect::<Result<_>>()?,
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
        let clip = if norm > clip_norm {
            clip_norm / norm
        } else {
            1.0
        };
        self.steps += 1;
        let correction1 = 1.0 - BETA1.powi(self.steps as i32);
        let correction2 = 1.0 - BETA2.powi(self.steps as i32);
        for ((var, gradient), (m, v)) in vars.zip(gradients.tensors()).zip(&mut self.moments) {
            let gradient = (gradient * clip)?;
            *m = ((&*m * BETA1)? + (&gradient * (1.0 - BETA1))?)?;
            *v = ((&*v * BETA2)? + (gradient.sqr()? * (1.0 - BETA2))?)?;
            let denominator = ((&*v / correction2)?.sqrt()? + EPSILON)?;
            let update = ((&*m / correction1)? / denominator)?;
            var.set(&(var.as_detached_tensor() - (update * learning_rate)?)?)?;
        }
        Ok(norm)
    }
}

/// Linear warm-up over the first `warmup_ratio` of `total` steps, then a cosine to zero.
pub fn learning_rate(peak: f64, warmup_ratio: f64, step: usize, total: usize) -> f64 {
    let warmup = (warmup_ratio * total as f64).ceil().max(0.0);
    let step = step as f64;
    if step < warmup {
        return peak * (step + 1.0) / warmup;
    }
    let progress = (step - warmup) / (total as f64 - warmup).max(1.0);
    peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_warms_up_then_falls_to_zero() {
        let rates: Vec<f64> = (0..100).map(|s| learning_rate(1.0, 0.1, s, 100)).collect();
        assert!(
            (rates[0] - 0.1).abs() < 1e-12
                && (rates[9] - 1.0).abs() < 1e-12
                && (rates[10] - 1.0).abs() < 1e-12
        );
        assert!(
            rates.windows(2).skip(10).all(|w| w[1] < w[0]),
            "falls after the warm-up"
        );
        assert!(rates[99] < 1e-3 && rates[99] > 0.0);
        assert_eq!(learning_rate(1.0, 0.0, 0, 1), 1.0);
    }
}
