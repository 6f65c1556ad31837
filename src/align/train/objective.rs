//! TRACE's losses on a packed batch (arXiv 2511.02623, Algorithm 1).

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use super::examples::TrainExample;
use super::recipe::Recipe;
use realign_core::Category;
use realign_model::packing::{Example, Packed};
use realign_model::{LoraWeights, Model, Ops, ops};

/// Form of the loss on a preferred and a dispreferred response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreferenceLoss {
    /// −log σ(β Δ): what the paper's Algorithm 1 and its code compute.
    Sigmoid,
    /// (Δ − 1/(2β))² (Azar et al. 2023), Δ summed over tokens.
    Ipo,
}

/// The constants of the hybrid loss.
#[derive(Clone, Copy, Debug)]
pub struct Objective {
    /// β.
    pub beta: f64,
    /// Weight of the KL term.
    pub alpha_kl: f64,
    /// Weight of the likelihood term on INVERT pairs (0: the paper's form).
    pub alpha_sft: f64,
    /// Form of the preference loss.
    pub preference: PreferenceLoss,
}

impl From<&Recipe> for Objective {
    fn from(r: &Recipe) -> Self {
        Self {
            beta: r.beta,
            alpha_kl: r.alpha_kl,
            alpha_sft: r.alpha_sft,
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
    /// α_KL Σ KL over RETAIN.
    pub retain: f64,
    /// α_sft Σ w NLL over INVERT.
    pub sft: f64,
}

impl LossParts {
    /// The whole loss.
    pub fn total(&self) -> f64 {
        self.invert + self.punish + self.retain + self.sft
    }
}

impl Objective {
    /// The loss of a batch as a scalar that can be differentiated, and its parts.
    ///
    /// `reference` log-probabilities come with the examples; RETAIN needs the reference's hidden
    /// states there too.
    pub fn loss(
        &self,
        model: &Model,
        ops: Ops,
        adapter: &LoraWeights,
        batch: &[&TrainExample],
    ) -> Result<(Tensor, LossParts)> {
        let packed = Packed::new(batch.iter().map(|e| &e.example));
        let logits = model.logits(ops, &packed.response_hidden(model, ops, Some(adapter))?)?;
        let logprobs = ops::token_logprobs(ops, &logits, packed.targets())?;
        let view = BatchView {
            model,
            ops,
            packed: &packed,
            logits: &logits,
            logprobs: &logprobs,
        };
        let mut parts = LossParts::default();
        let mut total: Option<Tensor> = None;
        for (i, example) in batch.iter().enumerate() {
            let loss = match example.category {
                Category::Invert => self.invert(&view, i, example, &mut parts)?,
                Category::Punish => self.punish(&view, i, example, &mut parts)?,
                Category::Retain => self.retain(&view, i, example, &mut parts)?,
            };
            total = Some(match total {
                Some(sum) => (sum + loss)?,
                None => loss,
            });
        }
        match total {
            Some(total) => Ok((total, parts)),
            None => bail!("a batch needs at least one example"),
        }
    }

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

    fn invert(
        &self,
        view: &BatchView,
        i: usize,
        example: &TrainExample,
        parts: &mut LossParts,
    ) -> Result<Tensor> {
        let margin = (view.log_ratio(i, 0, example)? - view.log_ratio(i, 1, example)?)?;
        let loss = (self.preference_loss(&margin)? * example.weight)?;
        parts.invert += scalar(&loss)?;
        if self.alpha_sft == 0.0 {
            return Ok(loss);
        }
        let nll = (view.response(i, 0)?.mean_all()? * (-self.alpha_sft * example.weight))?;
        parts.sft += scalar(&nll)?;
        loss + nll
    }

    fn punish(
        &self,
        view: &BatchView,
        i: usize,
        example: &TrainExample,
        parts: &mut LossParts,
    ) -> Result<Tensor> {
        let both =
            [0, 1].map(|r| minus_log_sigmoid(&(view.log_ratio(i, r, example)? * -self.beta)?));
        let [chosen, rejected] = both;
        let loss = ((chosen? + rejected?)? * example.weight)?;
        parts.punish += scalar(&loss)?;
        Ok(loss)
    }

    fn retain(
        &self,
        view: &BatchView,
        i: usize,
        example: &TrainExample,
        parts: &mut LossParts,
    ) -> Result<Tensor> {
        let Some(hidden) = &example.reference_hidden else {
            bail!("a RETAIN example came without the reference's hidden states");
        };
        let span = view.packed.span(i, 0);
        let reference = view.model.logits(view.ops, hidden)?;
        let policy = view.logits.narrow(0, span.start, span.len())?;
        let loss =
            (ops::kl_from_reference(view.ops, &reference, &policy)?.mean_all()? * self.alpha_kl)?;
        parts.retain += scalar(&loss)?;
        Ok(loss)
    }

    fn preference_loss(&self, margin: &Tensor) -> Result<Tensor> {
        match self.preference {
            PreferenceLoss::Sigmoid => minus_log_sigmoid(&(margin * self.beta)?),
            PreferenceLoss::Ipo => (margin - 1.0 / (2.0 * self.beta))?.sqr(),
        }
    }

    /// dℓ/dΔ of the preference loss at a margin Δ.
    pub fn preference_slope(&self, margin: f64) -> f64 {
        match self.preference {
            PreferenceLoss::Sigmoid => -self.beta * sigmoid(-self.beta * margin),
            PreferenceLoss::Ipo => 2.0 * (margin - 1.0 / (2.0 * self.beta)),
        }
    }

    /// dℓ_NPO/d log π of one response whose log-ratio to the reference is `log_ratio`.
    pub fn npo_slope(&self, log_ratio: f64) -> f64 {
        self.beta * sigmoid(self.beta * log_ratio)
    }

    /// The preference loss alone, without weight or likelihood term: what the gold batch and the
    /// impact scores differentiate. `example.responses` are (preferred, dispreferred).
    pub fn gold_loss(
        &self,
        model: &Model,
        ops: Ops,
        adapter: &LoraWeights,
        batch: &[(&Example, Option<[f64; 2]>)],
    ) -> Result<Tensor> {
        let packed = Packed::new(batch.iter().map(|(e, _)| *e));
        let logprobs = packed.token_logprobs(model, ops, Some(adapter))?;
        let mut total: Option<Tensor> = None;
        for (i, (_, reference)) in batch.iter().enumerate() {
            let ratio = |r: usize| -> Result<Tensor> {
                let span = packed.span(i, r);
                let sum = logprobs.narrow(0, span.start, span.len())?.sum_all()?;
                let reference = match reference {
                    Some(reference) => reference[r],
                    None => scalar(&sum)?,
                };
                sum - reference
            };
            let loss = self.preference_loss(&(ratio(0)? - ratio(1)?)?)?;
            total = Some(match total {
                Some(sum) => (sum + loss)?,
                None => loss,
            });
        }
        match total {
            Some(total) => Ok(total),
            None => bail!("a gold batch needs at least one pair"),
        }
    }
}

struct BatchView<'a> {
    model: &'a Model,
    ops: Ops,
    packed: &'a Packed,
    logits: &'a Tensor,
    logprobs: &'a Tensor,
}

impl BatchView<'_> {
    /// Token log-probabilities of one response.
    fn response(&self, example: usize, response: usize) -> Result<Tensor> {
        let span = self.packed.span(example, response);
        self.logprobs.narrow(0, span.start, span.len())
    }

    /// log π_θ(y|x) − log π_ref(y|x), summed over response tokens.
    fn log_ratio(&self, i: usize, response: usize, example: &TrainExample) -> Result<Tensor> {
        self.response(i, response)?.sum_all()? - example.reference[response]
    }
}

/// −log σ(x) of a scalar, as its tangent at x: value and gradient are exact.
///
/// The usual max(−x, 0) + log(1 + e^(−|x|)) has kinks that cancel in mathematics but not in
/// automatic differentiation: at x = 0, where every pair stands at θ_ref, its gradient is wrong.
fn minus_log_sigmoid(x: &Tensor) -> Result<Tensor> {
    let at = scalar(x)?;
    let value = minus_log_sigmoid_value(at);
    let slope = -sigmoid(-at);
    (x * slope)? + (value - slope * at)
}

fn minus_log_sigmoid_value(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn scalar(x: &Tensor) -> Result<f64> {
    Ok(f64::from(x.to_scalar::<f32>()?))
}
