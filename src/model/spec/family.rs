//! The families that can be read, by the names that files give them.

use super::{RopeSpec, Variant};
use crate::activation::Activation;

/// What an error about an architecture lists.
pub(super) const SUPPORTED: &str = "supported architectures: llama (2, 3, 3.1, 3.2), mistral, \
    ministral, ministral3 (mistral3 in GGUF), qwen2 (and 2.5), qwen3, qwen3_moe (qwen3moe in GGUF), gemma2, gemma3 (text), smollm3, \
    granite (dense), phi3 (and Phi-4, Phi-4-mini)";

/// What well-known families have that this decoder has not.
const MISSING: [(&str, &[&str]); 5] = [
    (
        "mixture-of-experts layers of another kind than Qwen 3's",
        &[
            "qwen2_moe",
            "qwen2moe",
            "mixtral",
            "granitemoe",
            "granitemoeshared",
            "phimoe",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek2",
            "gpt_oss",
            "gpt-oss",
            "llama4",
            "llama4_text",
        ],
    ),
    (
        "linear attention or state-space layers",
        &[
            "qwen3_5",
            "qwen3_5_text",
            "qwen3_5_moe",
            "qwen3_next",
            "qwen35",
            "qwen35moe",
            "qwen3next",
            "granitemoehybrid",
            "granitehybrid",
        ],
    ),
    (
        "per-layer embeddings and layers that share keys and values",
        &[
            "gemma3n",
            "gemma3n_text",
            "gemma4",
            "gemma4_text",
            "gemma4_unified",
        ],
    ),
    ("attention sinks", &["granite_swa", "granitemoe_swa"]),
    (
        "rotations of sections of a head",
        &["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2vl", "qwen3vl"],
    ),
];

/// What is said about an architecture that cannot be read.
pub(super) fn unsupported(name: &str) -> String {
    let known = MISSING.iter().find(|(_, names)| names.contains(&name));
    match known {
        Some((what, _)) => {
            format!(
                "`{name}` is not supported: it has {what}, which this decoder does not; {SUPPORTED}"
            )
        }
        None => format!("`{name}` is not supported; {SUPPORTED}"),
    }
}

/// A family as a table entry: what its name alone settles, whatever the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Mistral3,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    SmolLm3,
    Granite,
    Phi3,
}

impl Family {
    /// By `general.architecture` or `model_type`.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Family::Llama,
            "mistral" | "ministral" => Family::Mistral,
            "mistral3" | "ministral3" => Family::Mistral3,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "qwen3_moe" | "qwen3moe" => Family::Qwen3Moe,
            "gemma2" => Family::Gemma2,
            "gemma3" | "gemma3_text" => Family::Gemma3,
            "smollm3" => Family::SmolLm3,
            "granite" => Family::Granite,
            "phi3" => Family::Phi3,
            _ => return None,
        })
    }

    /// As GGUF spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Mistral3 => "mistral3",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Qwen3Moe => "qwen3moe",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
            Family::SmolLm3 => "smollm3",
            Family::Granite => "granite",
            Family::Phi3 => "phi3",
        }
    }

    pub(super) fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }

    /// Whether the LM head is the embedding where no field says so.
    pub(super) fn ties(self) -> bool {
        self.is_gemma() || self == Family::SmolLm3
    }

    /// Every n-th layer sees the whole context, the others a window; 1 for families without
    /// windows, `None` for those where every layer has one.
    pub(super) fn window_period(self) -> Option<usize> {
        match self {
            Family::Gemma2 => Some(2),
            Family::Gemma3 => Some(6),
            Family::Mistral | Family::Mistral3 | Family::Phi3 | Family::Qwen3Moe => None,
            Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 | Family::Granite => {
                Some(1)
            }
        }
    }

    /// Base of the rotary frequencies where no field gives it.
    pub(super) fn theta(self) -> f64 {
        match self {
            Family::Gemma3 => 1e6,
            Family::SmolLm3 => 2e6,
            _ => 1e4,
        }
    }

    /// What the family's name alone says.
    pub(super) fn variant(self, hidden_size: usize) -> Variant {
        let gemma = self.is_gemma();
        let activation = if gemma {
            Activation::GeluTanh
        } else {
            Activation::Silu
        };
        Variant {
            qk_norm: matches!(self, Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3),
            output_norms: gemma,
            norm_offset: gemma,
            activation,
            embedding_scale: gemma.then(|| (hidden_size as f64).sqrt()),
            ..Variant::default()
        }
    }
}

/// The multipliers of Granite, as a model without them.
///
/// A residual stream x that grows by r · f(norm x) is r times a stream y = x / r that grows by
/// f(norm (r y)), and the norm of r y is that of y with r² of its epsilon. So only the scale of the
/// embeddings and the epsilon change.
pub(super) struct Multipliers {
    pub(super) embedding: f64,
    pub(super) residual: f64,
    pub(super) attention: Option<f64>,
    pub(super) logit_divisor: f64,
}

impl Multipliers {
    /// Applies them; `eps` is the epsilon of the norms.
    pub(super) fn apply(&self, variant: &mut Variant, eps: &mut f64) {
        variant.embedding_scale = Some(self.embedding / self.residual);
        *eps /= self.residual * self.residual;
        if let Some(scale) = self.attention {
            variant.attention_scale_width = Some(scale.powi(-2));
        }
        variant.logit_divisor = Some(self.logit_divisor);
    }
}

/// Marks layers without rotation; `rotated` says which have one.
pub(super) fn without_rotation(variant: &mut Variant, rotated: &[bool]) {
    variant.local_rope = Some(RopeSpec::still());
    variant.local_rope_layers = rotated.iter().map(|rotated| !rotated).collect();
}

/// SmolLM3's rule: every `interval`-th layer is not rotated.
pub(super) fn rotated_layers(layers: usize, interval: usize) -> Vec<bool> {
    (1..=layers)
        .map(|layer| !layer.is_multiple_of(interval))
        .collect()
}
