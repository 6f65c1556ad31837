//! Enumerated settings of a recipe.

use serde::{Deserialize, Serialize};

use realign_model::ModelSpec;

/// How raw impact scores become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightScale {
    /// Mean 1 over all conflicts: the conflict terms keep their strength as data grows.
    MeanOne,
    /// Sum 1 over all conflicts, as the paper normalises. Too weak to change small models.
    SumOne,
    /// No impact weights: every weight is 1 (the ablation, with the mean of `mean-one`).
    Uniform,
}

/// The optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// AdamW (arXiv 1711.05101).
    Adamw,
    /// Lion (arXiv 2302.06675): the sign of the momentum. Keeps one moment less in memory; needs
    /// a learning rate three to ten times smaller than AdamW's.
    Lion,
}

/// Course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine, down to zero.
    Cosine,
    /// Linear decay to zero.
    Linear,
    /// Constant at the peak.
    Constant,
}

/// Element types of a training pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecipePrecision {
    /// Single precision throughout: bit-identical on every machine.
    F32,
    /// 16-bit products where the machine is faster with them; sums stay f32.
    Mixed,
}

impl From<RecipePrecision> for realign_model::Precision {
    fn from(precision: RecipePrecision) -> Self {
        match precision {
            RecipePrecision::F32 => Self::Exact,
            RecipePrecision::Mixed => Self::Mixed,
        }
    }
}

/// Size class of a model, which selects its default recipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelSize {
    /// Below half a billion parameters.
    #[default]
    Small,
    /// Below three billion.
    Medium,
    /// Three billion and more.
    Large,
}

impl From<&ModelSpec> for ModelSize {
    fn from(spec: &ModelSpec) -> Self {
        match spec.parameters() {
            0..500_000_000 => ModelSize::Small,
            500_000_000..3_000_000_000 => ModelSize::Medium,
            _ => ModelSize::Large,
        }
    }
}
