//! What training and scoring ask of a backend: values of response tokens, gradients of weighted sums
//! of them in an adapter's factors, and how they move along a direction.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use candle_core::{Result, Tensor};

use super::lora::{LoraSite, LoraWeights};
use super::packing::{Packed, States};

/// (∂A, ∂B) of every site.
pub type SiteGradients = BTreeMap<LoraSite, (Tensor, Tensor)>;

/// What a response token is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenLoss {
    /// log p of this token.
    LogProb(u32),
    /// KL(reference ‖ model) over the vocabulary.
    Kl,
}

/// Every response token of a batch measured by its log-probability.
pub fn logprobs_of(batch: &Packed) -> Vec<TokenLoss> {
    let targets = batch.targets().iter();
    targets.map(|t| TokenLoss::LogProb(*t)).collect()
}

/// The arithmetic of gradients and of serving, where a backend has several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    Exact,
    /// On the CPU, where the processor multiplies those faster: in learning, products with frozen
    /// weights in 16-bit fixed point forward and in bfloat16 on the way back; in serving, activations
    /// rounded to bfloat16 where the weights are.
    #[default]
    Mixed,
}

/// Which elements of an adapter's input are left out while it is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropout {
    /// Share that is left out, 0 to below 1; the others are scaled up to make up for it.
    pub share: f32,
    /// The same seed leaves the same elements out.
    pub seed: u64,
}

/// Whether the backward computes the layers' intermediate results again instead of keeping them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Where they do not fit into memory otherwise; for passes without a memory plan, as the backend
    /// prefers.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl Recompute {
    /// What it is read from, for messages.
    pub(crate) const ALLOWED: &'static str = "allowed are \"auto\", \"on\" and \"off\"";
}

impl FromStr for Recompute {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Recompute::Auto),
            "on" => Ok(Recompute::On),
            "off" => Ok(Recompute::Off),
            _ => Err(Self::ALLOWED),
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Recompute::Auto => "auto",
            Recompute::On => "on",
            Recompute::Off => "off",
        })
    }
}

/// How passes compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// The arithmetic of gradients.
    pub precision: Precision,
    /// Whether intermediate results are computed again.
    pub recompute: Recompute,
    /// Whether the passes answer a request: they yield to no step then.
    pub answering: bool,
}

/// log p of every response token, and how it moves along a direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slopes {
    /// log p, one per response token.
    pub values: Vec<f32>,
    /// Its derivative along the direction.
    pub slopes: Vec<f32>,
}

/// What is to be differentiated: a value for each response token of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    /// What each response token is measured by, in the batch's order.
    pub losses: &'a [TokenLoss],
    /// The reference's final hidden states, one row per token that is measured by a KL, in the
    /// batch's order: (tokens with a KL, hidden). `None` if there is no such token.
    pub reference: Option<&'a Tensor>,
}

/// Passes of a model over packed batches. Hidden states are f32 tensors of shape (response tokens,
/// hidden) where the backend computes; adapters lie there too.
pub trait LearningPasses: Send {
    /// The base model's residual stream entering `layer`, per example.
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    fn states(&mut self, batch: &Packed, layer: usize) -> Result<Vec<States>>;

    /// Final hidden states, after the last norm, that predict the response tokens; no gradient.
    ///
    /// # Errors
    /// If the adapter does not fit, or the batch's states lie above its lowest layer.
    fn hidden(&mut self, batch: &Packed, adapter: Option<&LoraWeights>) -> Result<Tensor>;

    /// The values that `measured` names, of hidden states that are there already.
    ///
    /// # Errors
    /// If a target is not in the vocabulary, or the reference's states do not fit.
    fn measure(&mut self, measured: Measured, hidden: &Tensor) -> Result<Vec<f32>>;

    /// Gradients of Σ cᵢ vᵢ in the adapter's factors, where vᵢ are the values that `measured` names
    /// and c = `coefficients`(v), which are constants.
    ///
    /// # Errors
    /// As [`LearningPasses::hidden`] and [`LearningPasses::measure`].
    fn gradients(
        &mut self,
        batch: &Packed,
        adapter: &LoraWeights,
        measured: Measured,
        coefficients: &mut (dyn FnMut(&[f32]) -> Vec<f32> + Send),
    ) -> Result<SiteGradients>;

    /// log p of every response token at `adapter`, and how it moves along `along`, whose pairs are
    /// (∂A, ∂B).
    ///
    /// # Errors
    /// As [`LearningPasses::hidden`].
    fn slopes(
        &mut self,
        batch: &Packed,
        adapter: &LoraWeights,
        along: &LoraWeights,
    ) -> Result<Slopes>;

    /// What the gradients that follow leave out of the adapter's inputs.
    ///
    /// # Errors
    /// If these passes cannot leave anything out.
    fn drop_out(&mut self, dropout: Dropout) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written() {
        for choice in [Recompute::Auto, Recompute::On, Recompute::Off] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("yes".parse::<Recompute>(), Err(Recompute::ALLOWED));
    }
}
