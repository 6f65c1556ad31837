//! Hyperparameters of training; part of a generation's identity.

use serde::{Deserialize, Serialize};

use super::choices::{ModelSize, OptimizerKind, RecipePrecision, Schedule, WeightScale};
use super::objective::PreferenceLoss;
use realign_core::ranges::Range;
use realign_model::Projection;

mod checks;

/// Hyperparameters. `Default` was tuned on the default model; [`Recipe::paper`] is the paper's
/// objective without our extension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `default` or `paper`, or `custom` once anything was changed.
    pub name: String,
    /// Seed of initialisation, gold batch and order of pairs.
    pub seed: u64,
    /// LoRA rank.
    pub rank: usize,
    /// LoRA alpha; the update is scaled by alpha / rank.
    pub alpha: f64,
    /// PEFT module names that carry the adapter.
    pub targets: Vec<String>,
    /// Share of the layers that carry the adapter, counted from the top: 1 is all of them. The
    /// layers below are computed once per pair, regardless of the number of passes.
    pub layer_share: f64,
    /// Exactly these layers, from 0; if empty, `layer_share` decides.
    pub layers: Vec<usize>,
    /// Dropout on the adapter's inputs during training, as a share; 0 is none. Scores and the
    /// reference are computed without dropout.
    pub dropout: f64,
    /// The optimiser.
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of AdamW's first and second moment, or of Lion's update and momentum.
    pub betas: [f64; 2],
    /// Added to the denominator of AdamW's update.
    pub epsilon: f64,
    /// Decoupled weight decay; 0 is none.
    pub weight_decay: f64,
    /// Course of the learning rate after the warm-up.
    pub schedule: Schedule,
    /// Share of steps that warm up linearly.
    pub warmup_ratio: f64,
    /// Passes over the pairs.
    pub epochs: usize,
    /// Least optimiser steps: with few pairs, they are passed over more often.
    pub min_steps: usize,
    /// Rounds of training at most: after each, the candidate answers what it was trained on, where an
    /// engine answers, and what it gets wrong is trained again. Three are usual, more are for what
    /// is far off and still gains.
    pub rounds: usize,
    /// Preference pairs per batch, stratified over the three categories.
    pub pairs_per_step: usize,
    /// Batches whose gradients one optimiser step averages.
    pub accumulation: usize,
    /// Maximum optimiser steps, the paper's T_max; 0 is no limit but the epochs.
    pub max_steps: usize,
    /// The paper's ε: training ends when the gradient's norm is at most this; 0 disables it.
    pub stop_gradient_norm: f64,
    /// Gradient norm above which gradients are scaled down.
    pub clip_norm: f64,
    /// A run has diverged if its smoothed loss exceeds the loss of its first steps by this factor.
    pub max_loss_ratio: f64,
    /// Element types of a training pass.
    pub precision: RecipePrecision,
    /// β of the preference and NPO losses.
    pub beta: f64,
    /// Weight of KL(reference ‖ policy) on retained responses.
    pub alpha_kl: f64,
    /// Weight of the mean per-token negative log-likelihood of the preferred response of INVERT
    /// pairs: an extension, not part of TRACE; 0 is the paper's form.
    pub alpha_sft: f64,
    /// Additional weight of a response's first tokens in the KL and likelihood terms, as a multiple of
    /// all its tokens' weight: an answer that begins right stays right, at temperature 1 too. 0 is the
    /// paper's form.
    pub alpha_opening: f64,
    /// γ, the divisor of impact scores; cancels in normalised weights.
    pub gamma: f64,
    /// Form of the preference loss.
    pub preference_loss: PreferenceLoss,
    /// How impact scores become weights.
    pub weight_scale: WeightScale,
    /// Pairs in the gold batch.
    pub gold_pairs: usize,
    /// Maximum tokens of prompt plus response; longer pairs are skipped and counted.
    pub max_tokens: usize,
    /// Maximum pairs to train on, sampled from each category in proportion, by content id; 0 takes
    /// all. With the default, realigning a small model takes minutes on two CPU cores.
    pub max_pairs: usize,
    /// Maximum prompts of the bank whose answers by the base are kept in training, where an engine
    /// answers them; 0 takes none.
    pub controls: usize,
    /// Whether some prompts are trained after a system prompt or an earlier turn instead of alone.
    pub situations: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            name: "default".into(),
            seed: 17,
            rank: 16,
            alpha: 32.0,
            targets: Projection::ALL.map(|p| p.name().to_string()).to_vec(),
            layer_share: 0.5,
            layers: Vec::new(),
            dropout: 0.0,
            optimizer: OptimizerKind::Adamw,
            learning_rate: 1.4e-3,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.1,
            epochs: 1,
            min_steps: 24,
            rounds: 8,
            pairs_per_step: 6,
            accumulation: 1,
            max_steps: 0,
            stop_gradient_norm: 0.0,
            clip_norm: 1.0,
            max_loss_ratio: 4.0,
            precision: RecipePrecision::Mixed,
            beta: 0.1,
            alpha_kl: 9.0,
            alpha_sft: 1.0,
            alpha_opening: 1.0,
            gamma: 1.0,
            preference_loss: PreferenceLoss::Sigmoid,
            weight_scale: WeightScale::Uniform,
            gold_pairs: 48,
            max_tokens: 256,
            max_pairs: 256,
            controls: 240,
            situations: true,
        }
    }
}

impl Recipe {
    /// The paper's pure objective with the reference code's hyperparameters, its impact weights
    /// summing to 1.
    pub fn paper() -> Self {
        Self {
            name: "paper".into(),
            rank: 32,
            alpha: 16.0,
            targets: vec!["q_proj".into(), "v_proj".into()],
            layer_share: 1.0,
            gold_pairs: 64,
            max_pairs: 0,
            controls: 0,
            situations: false,
            min_steps: 0,
            rounds: 1,
            learning_rate: 1e-4,
            dropout: 0.1,
            epochs: 1,
            pairs_per_step: 4,
            beta: 0.3,
            alpha_kl: 0.1,
            alpha_sft: 0.0,
            alpha_opening: 0.0,
            weight_scale: WeightScale::SumOne,
            ..Self::default()
        }
    }

    /// The default recipe of a model of this size. The first row is measured on the default model
    /// (docs/LOG.md); the others follow the paper's own settings for 7 to 9 billion parameters.
    pub fn sized(size: ModelSize) -> Self {
        let small = Self::default();
        match size {
            ModelSize::Small => small,
            ModelSize::Medium => Self {
                learning_rate: 5e-4,
                ..small
            },
            ModelSize::Large => Self {
                rank: 32,
                learning_rate: 2e-4,
                layer_share: 1.0,
                alpha_kl: 0.5,
                ..small
            },
        }
    }

    /// The recipe with this name, for a model of this size.
    ///
    /// # Errors
    /// [`RecipeError::Value`] if there is none.
    pub fn named(name: &str, size: ModelSize) -> Result<Self, RecipeError> {
        match name {
            "default" => Ok(Self::sized(size)),
            "paper" => Ok(Self::paper()),
            other => Err(RecipeError::Value {
                field: "recipe",
                value: format!("{other:?}"),
                allowed: "allowed are \"default\" and \"paper\"".into(),
            }),
        }
    }

    /// The projections that carry the adapter, parsed from `targets`.
    ///
    /// # Errors
    /// [`RecipeError::Value`] for a name that is not a projection.
    pub fn projections(&self) -> Result<Vec<Projection>, RecipeError> {
        let parse = |name: &String| {
            Projection::from_name(name).ok_or_else(|| RecipeError::Value {
                field: "targets",
                value: format!("{name:?}"),
                allowed: format!(
                    "allowed are {}",
                    Projection::ALL.map(Projection::name).join(", ")
                ),
            })
        };
        self.targets.iter().map(parse).collect()
    }

    /// The first layer of a model of `layers` layers that carries the adapter.
    pub fn lowest_layer(&self, layers: usize) -> usize {
        if let Some(lowest) = self.layers.iter().min() {
            return *lowest;
        }
        let adapted = (self.layer_share * layers as f64).ceil() as usize;
        layers - adapted.clamp(1, layers.max(1)).min(layers)
    }

    /// Whether a layer (from 0) of a model of `layers` layers carries the adapter.
    pub(crate) fn adapts(&self, layer: usize, layers: usize) -> bool {
        if self.layers.is_empty() {
            layer >= self.lowest_layer(layers)
        } else {
            self.layers.contains(&layer)
        }
    }

    /// Checks `layers` against a model's number of layers, which [`Recipe::check`] does not know.
    ///
    /// # Errors
    /// [`RecipeError::Other`] for a layer that the model does not have.
    pub fn check_layers(&self, layers: usize) -> Result<(), RecipeError> {
        match self.layers.iter().find(|layer| **layer >= layers) {
            Some(layer) => Err(RecipeError::Other {
                field: "layers",
                what: format!(
                    "the model has no layer {layer}; use 0 to {}",
                    layers.saturating_sub(1)
                ),
            }),
            None => Ok(()),
        }
    }
}

/// Why a recipe is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// A value is not allowed.
    #[error("train.{field} is {value}; {allowed}")]
    Value {
        /// The setting's key below `train.`.
        field: &'static str,
        /// The given value.
        value: String,
        /// The allowed values.
        allowed: String,
    },
    /// Something else is wrong with a setting.
    #[error("train.{field}: {what}")]
    Other {
        /// The setting's key below `train.`.
        field: &'static str,
        /// What is wrong and what to do.
        what: String,
    },
}

impl RecipeError {
    /// Rejects a number outside its range.
    ///
    /// # Errors
    /// [`RecipeError::Value`], with the range.
    pub fn unless_inside(range: Range, value: f64) -> Result<(), Self> {
        if range.contains(value) {
            return Ok(());
        }
        Err(Self::Value {
            field: range.key,
            value: value.to_string(),
            allowed: range.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_recipes_pass_their_own_check() {
        for name in ["default", "paper"] {
            for size in [ModelSize::Small, ModelSize::Medium, ModelSize::Large] {
                Recipe::named(name, size).and_then(|r| r.check()).unwrap();
            }
        }
        assert_eq!(
            Recipe::paper().alpha_sft,
            0.0,
            "the paper's objective has no likelihood term"
        );
    }

    #[test]
    fn a_wrong_field_is_named_with_what_is_allowed() {
        type Spoil = fn(&mut Recipe);
        let cases: [(Spoil, &str); 10] = [
            (
                |r| r.dropout = 1.0,
                "train.dropout is 1; 0 or more and below 1",
            ),
            (
                |r| r.betas = [0.9, 1.0],
                "train.betas is 1; 0 or more and below 1",
            ),
            (
                |r| r.accumulation = 0,
                "train.accumulation is 0; from 1 to 1024",
            ),
            (
                |r| r.max_loss_ratio = 0.5,
                "train.max_loss_ratio is 0.5; above 1",
            ),
            (|r| r.rank = 0, "train.rank is 0; from 1 to 512"),
            (|r| r.beta = f64::NAN, "train.beta is NaN; above 0"),
            (
                |r| r.learning_rate = 2.0,
                "train.learning_rate is 2; above 0, at most 1",
            ),
            (
                |r| r.targets = vec!["qkv".into()],
                "train.targets is \"qkv\"; allowed are q_proj",
            ),
            (|r| r.rank = 800, "train.rank is 800; from 1 to 512"),
            (|r| r.epochs = 0, "train.epochs is 0; from 1 to 100"),
        ];
        for (spoil, message) in cases {
            let mut recipe = Recipe::default();
            spoil(&mut recipe);
            let error = recipe.check().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn layers_are_a_share_from_the_top_or_a_list() {
        let adapted = |recipe: &Recipe| -> Vec<usize> {
            (0..6).filter(|&layer| recipe.adapts(layer, 6)).collect()
        };
        let mut recipe = Recipe::default();
        assert_eq!(adapted(&recipe), [3, 4, 5]);
        recipe.layers = vec![1, 4];
        assert_eq!(adapted(&recipe), [1, 4]);
        assert_eq!(recipe.lowest_layer(6), 1);
        let error = recipe.check_layers(4).unwrap_err().to_string();
        assert!(error.contains("no layer 4; use 0 to 3"), "{error}");
    }
}
