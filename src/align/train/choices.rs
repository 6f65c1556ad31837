//! What a recipe chooses between.

use serde::{Deserialize, Serialize};

use realign_model::ModelSpec;

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

/// Which rule turns gradients into updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// AdamW (arXiv 1711.05101).
    Adamw,
    /// Lion (arXiv 2302.06675): the sign of the momentum. One moment less in memory; wants a
    /// learning rate three to ten times smaller than AdamW's.
    Lion,
}

/// How the learning rate goes after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine, to zero.
    Cosine,
    /// A straight line, to zero.
    Linear,
    /// It stays at its peak.
    Constant,
}

/// Element types of a training pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Single precision throughout: the same bits everywhere.
    F32,
    /// Products in half the width where the machine is faster so; sums stay f32.
    Mixed,
}

impl From<Precision> for realign_model::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::Exact,
            Precision::Mixed => Self::Mixed,
        }
    }
}

/// How large a model is, as far as recipes care.
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
