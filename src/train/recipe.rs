//! Every number that decides how an adapter is trained. Part of a generation's identity.

use serde::{Deserialize, Serialize};

use super::objective::PreferenceLoss;
use crate::model::Projection;

/// How raw impact scores become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightScale {
    /// Mean 1 over all conflicts: the conflict terms keep their strength as data grows.
    MeanOne,
    /// Sum 1 over all conflicts, as the paper normalises. On small models nothing moves then.
    SumOne,
    /// No impact weights: 1 everywhere (the ablation, at the same mean as `mean-one`).
    Uniform,
}

/// Hyperparameters. `Default` is what moved the default model; [`Recipe::paper`] is the paper's
/// objective without our extension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `default` or `paper`, or `custom` once anything was changed.
    pub name: String,
    /// Seed of initialisation, gold batch and order.
    pub seed: u64,
    /// LoRA rank.
    pub rank: usize,
    /// LoRA alpha; the update is scaled by alpha / rank.
    pub alpha: f64,
    /// PEFT module names that carry the adapter.
    pub targets: Vec<String>,
    /// Share of the layers that carry the adapter, counted from the top: 1 is all of them. The
    /// layers below are computed once per pair, whatever the number of passes.
    pub layer_share: f64,
    /// Peak learning rate of AdamW.
    pub learning_rate: f64,
    /// Share of steps that warm up linearly; a cosine to zero follows.
    pub warmup_ratio: f64,
    /// Passes over the pairs.
    pub epochs: usize,
    /// Preference pairs per optimiser step, stratified over the three categories.
    pub pairs_per_step: usize,
    /// Gradient norm above which gradients are scaled down.
    pub clip_norm: f64,
    /// β of the preference and NPO losses.
    pub beta: f64,
    /// Weight of KL(reference ‖ policy) on retained responses.
    pub alpha_kl: f64,
    /// Weight of the mean per-token negative log-likelihood of the preferred response of INVERT
    /// pairs: an extension, not part of TRACE; 0 is the paper's form.
    pub alpha_sft: f64,
    /// γ that divides impact scores; cancels in normalised weights.
    pub gamma: f64,
    /// Form of the preference loss.
    pub preference_loss: PreferenceLoss,
    /// How impact scores become weights.
    pub weight_scale: WeightScale,
    /// Pairs in the gold batch.
    pub gold_pairs: usize,
    /// Longest prompt plus response, in tokens; longer pairs are skipped and counted.
    pub max_tokens: usize,
    /// Most pairs to train on, taken per category in proportion and by content id; 0 takes all.
    /// The default keeps a realignment of a small model on two CPU cores within minutes.
    pub max_pairs: usize,
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
            learning_rate: 1e-3,
            warmup_ratio: 0.1,
            epochs: 1,
            pairs_per_step: 6,
            clip_norm: 1.0,
            beta: 0.1,
            alpha_kl: 1.0,
            alpha_sft: 1.0,
            gamma: 1.0,
            preference_loss: PreferenceLoss::Sigmoid,
            weight_scale: WeightScale::MeanOne,
            gold_pairs: 48,
            max_tokens: 256,
            max_pairs: 192,
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
            learning_rate: 1e-4,
            epochs: 1,
            pairs_per_step: 4,
            beta: 0.3,
            alpha_kl: 0.1,
            alpha_sft: 0.0,
            weight_scale: WeightScale::SumOne,
            ..Self::default()
        }
    }

    /// A recipe by name.
    pub fn named(name: &str) -> Result<Self, RecipeError> {
        match name {
            "default" => Ok(Self::default()),
            "paper" => Ok(Self::paper()),
            other => Err(RecipeError {
                field: "recipe",
                what: format!("`{other}` is unknown; use `default` or `paper`"),
            }),
        }
    }

    /// The adapted projections.
    pub fn projections(&self) -> Result<Vec<Projection>, RecipeError> {
        let parse = |name: &String| {
            Projection::from_name(name).ok_or_else(|| RecipeError {
                field: "targets",
                what: format!(
                    "`{name}` is unknown; use some of {}",
                    Projection::ALL.map(Projection::name).join(", ")
                ),
            })
        };
        self.targets.iter().map(parse).collect()
    }

    /// The first layer of `layers` that carries the adapter.
    pub fn lowest_layer(&self, layers: usize) -> usize {
        let adapted = (self.layer_share * layers as f64).ceil() as usize;
        layers - adapted.clamp(1, layers.max(1)).min(layers)
    }

    /// Checks every field's range; run it before anything expensive.
    pub fn check(&self) -> Result<(), RecipeError> {
        let positive = |v: f64| v.is_finite() && v > 0.0;
        let not_negative = |v: f64| v.is_finite() && v >= 0.0;
        let rules: [(&'static str, bool, &str); 15] = [
            ("rank", (1..=512).contains(&self.rank), "1 to 512"),
            ("alpha", positive(self.alpha), "a number above 0"),
            ("targets", !self.targets.is_empty(), "at least one module"),
            (
                "layer_share",
                self.layer_share > 0.0 && self.layer_share <= 1.0,
                "above 0, at most 1",
            ),
            (
                "learning_rate",
                positive(self.learning_rate) && self.learning_rate <= 1.0,
                "above 0, at most 1",
            ),
            (
                "warmup_ratio",
                (0.0..=1.0).contains(&self.warmup_ratio),
                "0 to 1",
            ),
            ("epochs", (1..=100).contains(&self.epochs), "1 to 100"),
            (
                "pairs_per_step",
                (1..=1024).contains(&self.pairs_per_step),
                "1 to 1024",
            ),
            ("clip_norm", positive(self.clip_norm), "a number above 0"),
            ("beta", positive(self.beta), "a number above 0"),
            ("alpha_kl", not_negative(self.alpha_kl), "0 or more"),
            ("alpha_sft", not_negative(self.alpha_sft), "0 or more"),
            ("gamma", positive(self.gamma), "a number above 0"),
            (
                "gold_pairs",
                (3..=4096).contains(&self.gold_pairs),
                "3 to 4096",
            ),
            (
                "max_tokens",
                (8..=32768).contains(&self.max_tokens),
                "8 to 32768",
            ),
        ];
        match rules.iter().find(|(_, ok, _)| !ok) {
            Some((field, _, allowed)) => Err(RecipeError {
                field,
                what: format!("must be {allowed}"),
            }),
            None => self.projections().map(drop),
        }
    }
}

/// A recipe that cannot be trained with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("train.{field}: {what}")]
pub struct RecipeError {
    /// The field.
    pub field: &'static str,
    /// What is wrong and what is allowed.
    pub what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_recipes_pass_their_own_check() {
        for name in ["default", "paper"] {
            Recipe::named(name).and_then(|r| r.check()).unwrap();
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
        let cases: [(Spoil, &str); 5] = [
            (|r| r.rank = 0, "train.rank: must be 1 to 512"),
            (
                |r| r.beta = f64::NAN,
                "train.beta: must be a number above 0",
            ),
            (
                |r| r.learning_rate = 2.0,
                "train.learning_rate: must be above 0, at most 1",
            ),
            (
                |r| r.targets = vec!["qkv".into()],
                "train.targets: `qkv` is unknown",
            ),
            (|r| r.epochs = 0, "train.epochs: must be 1 to 100"),
        ];
        for (spoil, message) in cases {
            let mut recipe = Recipe::default();
            spoil(&mut recipe);
            let error = recipe.check().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
