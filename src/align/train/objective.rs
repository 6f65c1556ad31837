//! TRACE's losses on a packed batch (arXiv 2511.02623, Algorithm 1).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::examples::TrainExample;
use super::recipe::Recipe;
use realign_core::Category;
use realign_model::packing::Packed;

/// Form of the loss on a preferred and a dispreferred response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreferenceLoss {
    /// −log σ(β Δ): what the paper's Algorithm 1 and its code compute.
    Sigmoid,
    /// (Δ − 1/(2β))² (Azar et al. 2023), Δ summed over tokens.
    Ipo,
}

/// First tokens of a response.
const OPENING: usize = 4;

/// The constants of the hybrid loss.
#[derive(Clone, Copy, Debug)]
pub struct Objective {
    /// β.
    pub beta: f64,
    /// Weight of the KL term.
    pub alpha_kl: f64,
    /// Weight of the likelihood term on INVERT pairs (0: the paper's form).
    pub alpha_sft: f64,
    /// Weight of a response's first tokens, as a multiple of all its tokens' weight, in the likelihood
    /// term and in the KL term: what an answer begins with decides what it becomes.
    pub alpha_opening: f64,
    /// Form of the preference loss.
    pub preference: PreferenceLoss,
}

impl From<&Recipe> for Objective {
    fn from(r: &Recipe) -> Self {
        Self {
            beta: r.beta,
            alpha_kl: r.alpha_kl,
            alpha_sft: r.alpha_sft,
            alpha_opening: r.alpha_opening,
            preference: r.preference_loss,
        }
    }
}

/// The parts of one batch's loss, already weighted, as they add up to `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossParts {
    /// Σ w ℓ_pref over INVERT.
    pub invert: f64,
    /// Σ w ℓ_NPO over PUNISH.
    pub punish: f64,
    /// α_KL Σ KL over RETAIN, the part of the first tokens included.
    pub retain: f64,
    /// α_sft Σ w NLL over INVERT, the part of the first tokens included.
    pub sft: f64,
}

impl LossParts {
    /// The whole loss.
    pub fn total(&self) -> f64 {
        self.invert + self.punish + self.retain + self.sft
    }
}

impl Objective {
    /// The loss of a batch from the value of every response token (its log π_θ, or for RETAIN its
    /// KL), as its parts and as ∂loss/∂value of every token.
    pub fn weigh(
        &self,
        batch: &[&TrainExample],
        packed: &Packed,
        values: &[f32],
    ) -> (Vec<f32>, LossParts) {
        let mut coefficients = vec![0f32; values.len()];
        let mut parts = LossParts::default();
        for (i, example) in batch.iter().enumerate() {
            let span = |r: usize| packed.span(i, r);
            let sum = |r: usize| -> f64 { values[span(r)].iter().map(|v| f64::from(*v)).sum() };
            let ratio = |r: usize| sum(r) - example.reference[r];
            let weight = example.weight;
            match example.category {
                Category::Invert => {
                    let margin = ratio(0) - ratio(1);
                    parts.invert += weight * self.preference_value(margin);
                    let slope = weight * self.preference_slope(margin);
                    let tokens = span(0).len() as f64;
                    parts.sft -= self.alpha_sft * weight * sum(0) / tokens;
                    let likelihood = self.alpha_sft * weight / tokens;
                    coefficients[span(0)].fill((slope - likelihood) as f32);
                    let opening = opening(span(0));
                    let likelihood =
                        self.alpha_sft * self.alpha_opening * weight / opening.len() as f64;
                    for at in opening {
                        parts.sft -= likelihood * f64::from(values[at]);
                        coefficients[at] -= likelihood as f32;
                    }
                    coefficients[span(1)].fill(-slope as f32);
                }
                Category::Punish => {
                    for r in 0..2 {
                        parts.punish += weight * minus_log_sigmoid_value(-self.beta * ratio(r));
                        coefficients[span(r)].fill((weight * self.npo_slope(ratio(r))) as f32);
                    }
                }
                Category::Retain => {
                    let per_token = self.alpha_kl / span(0).len() as f64;
                    parts.retain += per_token * sum(0);
                    coefficients[span(0)].fill(per_token as f32);
                    let opening = opening(span(0));
                    let per_token = self.alpha_kl * self.alpha_opening / opening.len() as f64;
                    for at in opening {
                        parts.retain += per_token * f64::from(values[at]);
                        coefficients[at] += per_token as f32;
                    }
                }
            }
        }
        (coefficients, parts)
    }

    /// The preference loss at a margin Δ.
    fn preference_value(&self, margin: f64) -> f64 {
        match self.preference {
            PreferenceLoss::Sigmoid => minus_log_sigmoid_value(self.beta * margin),
            PreferenceLoss::Ipo => (margin - 1.0 / (2.0 * self.beta)).powi(2),
        }
    }

    /// dℓ/dΔ of the preference loss at a margin Δ.
    pub(crate) fn preference_slope(&self, margin: f64) -> f64 {
        match self.preference {
            PreferenceLoss::Sigmoid => -self.beta * sigmoid(-self.beta * margin),
            PreferenceLoss::Ipo => 2.0 * (margin - 1.0 / (2.0 * self.beta)),
        }
    }

    /// dℓ_NPO/d log π of one response whose log-ratio to the reference is `log_ratio`.
    pub(crate) fn npo_slope(&self, log_ratio: f64) -> f64 {
        self.beta * sigmoid(self.beta * log_ratio)
    }
}

/// A response's first tokens.
fn opening(span: Range<usize>) -> Range<usize> {
    span.start..span.end.min(span.start + OPENING)
}

/// −log σ(x).
fn minus_log_sigmoid_value(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_model::packing::Example;

    fn example(category: Category, responses: &[usize], weight: f64) -> TrainExample {
        let responses = responses.iter().map(|length| vec![5; *length]).collect();
        TrainExample {
            id: "id".into(),
            category,
            example: Example::new(vec![1, 2], responses),
            weight,
            reference: [-7.0, -9.0],
            reference_hidden: None,
        }
    }

    #[test]
    fn coefficients_are_the_derivatives_of_the_loss() {
        // Responses shorter and longer than an opening.
        let examples = [
            example(Category::Invert, &[6, 3], 0.7),
            example(Category::Punish, &[2, 5], 1.3),
            example(Category::Retain, &[9], 1.0),
            example(Category::Retain, &[2], 1.0),
        ];
        let batch: Vec<&TrainExample> = examples.iter().collect();
        let packed = Packed::new(examples.iter().map(|e| &e.example));
        let values: Vec<f32> = (0..packed.rows.len())
            .map(|n| -0.25 - (n * 7 % 11) as f32 / 4.0)
            .collect();
        for (preference, alpha_opening) in [
            (PreferenceLoss::Sigmoid, 1.5),
            (PreferenceLoss::Ipo, 1.5),
            (PreferenceLoss::Sigmoid, 0.0),
        ] {
            let objective = Objective {
                beta: 0.1,
                alpha_kl: 3.0,
                alpha_sft: 0.5,
                alpha_opening,
                preference,
            };
            let loss = |values: &[f32]| objective.weigh(&batch, &packed, values).1.total();
            let (coefficients, _) = objective.weigh(&batch, &packed, &values);
            for at in 0..values.len() {
                let moved = |by: f32| {
                    let mut values = values.clone();
                    values[at] += by;
                    loss(&values)
                };
                // A power of two, so that the difference of the values is exact.
                let step = 1.0 / 64.0;
                let measured = (moved(step) - moved(-step)) / f64::from(2.0 * step);
                let given = f64::from(coefficients[at]);
                assert!((measured - given).abs() < 1e-4, "{at}: {measured} {given}");
            }
        }
    }
}
