//! Probabilities from a classifier's scores: Platt scaling.

use serde::{Deserialize, Serialize};

/// 1 / (1 + e^(−z)).
pub(crate) fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// log(1 + e^z), without overflow.
pub(crate) fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// Platt scaling: p = σ(slope · z + offset), fitted on scores of rows that the model did not see.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calibration {
    /// Factor of the score.
    #[serde(with = "super::bits")]
    pub(crate) slope: f64,
    /// Added to the scaled score.
    #[serde(with = "super::bits")]
    pub(crate) offset: f64,
}

impl Calibration {
    /// The calibrated probability.
    pub(crate) fn probability(self, logit: f64) -> f64 {
        sigmoid(self.slope * logit + self.offset)
    }

    /// Fits by Newton's method with Platt's smoothed targets (Platt 1999, section 2.2). If the
    /// slope is not positive, the scores carry no information, and the result is the base rate.
    pub(crate) fn fit(logits: &[f64], positive: &[bool]) -> Calibration {
        let count = positive.iter().filter(|p| **p).count() as f64;
        let other = positive.len() as f64 - count;
        let target = |positive: bool| {
            if positive {
                (count + 1.0) / (count + 2.0)
            } else {
                1.0 / (other + 2.0)
            }
        };
        let base = ((count + 1.0) / (other + 1.0)).ln();
        let mut at = Calibration {
            slope: 0.0,
            offset: base,
        };
        for _ in 0..50 {
            let (mut g, mut h) = ([0.0f64; 2], [1e-9f64, 0.0, 1e-9]);
            for (z, p) in logits.iter().zip(positive) {
                let probability = at.probability(*z);
                let (r, v) = (probability - target(*p), probability * (1.0 - probability));
                g = [g[0] + r * z, g[1] + r];
                h = [h[0] + v * z * z, h[1] + v * z, h[2] + v];
            }
            let determinant = h[0] * h[2] - h[1] * h[1];
            if determinant.abs() < 1e-12 {
                break;
            }
            let step = [
                (h[2] * g[0] - h[1] * g[1]) / determinant,
                (h[0] * g[1] - h[1] * g[0]) / determinant,
            ];
            at.slope -= step[0];
            at.offset -= step[1];
            if step[0].abs() + step[1].abs() < 1e-8 {
                break;
            }
        }
        if at.slope > 0.0 && at.slope.is_finite() && at.offset.is_finite() {
            at
        } else {
            Calibration {
                slope: 0.0,
                offset: base,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibration_undoes_a_wrong_scale() {
        // True log-odds t in −2..2, shown three times as large.
        let mut logits = Vec::new();
        let mut positive = Vec::new();
        for step in -20..=20 {
            let t = f64::from(step) / 10.0;
            for k in 0..100 {
                logits.push(3.0 * t);
                positive.push(f64::from(k) < 100.0 * sigmoid(t));
            }
        }
        let fitted = Calibration::fit(&logits, &positive);
        assert!((fitted.slope - 1.0 / 3.0).abs() < 0.02, "{fitted:?}");
        assert!(fitted.offset.abs() < 0.05, "{fitted:?}");
        // Log-odds that point the wrong way are worth nothing.
        let wrong: Vec<f64> = logits.iter().map(|z| -z).collect();
        assert_eq!(Calibration::fit(&wrong, &positive).slope, 0.0);
    }
}
