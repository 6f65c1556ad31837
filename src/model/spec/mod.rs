//! A model family as data: everything the decoder needs to know besides the weights.
//!
//! Families are values of [`ModelSpec`], read from a Hugging Face `config.json` (`hf`) or from the
//! metadata of a GGUF file (`gguf`); the decoder never asks for an architecture's name.

mod gguf;
mod hf;
mod rope;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use rope::{RopeScaling, RopeSpec};

use super::activation::Activation;
use super::attention::AttentionShape;
use super::error::{ModelError, Result};
use super::lora::{LoraSite, Projection};

/// Shapes and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Architecture as GGUF names it: `llama`, `qwen2`, `qwen3`, `gemma2` or `gemma3`.
    pub architecture: String,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads` (grouped-query attention).
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon inside RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary embedding of layers that see the whole context.
    pub rope: RopeSpec,
    /// Longest context the model was trained for, in tokens.
    pub max_position: usize,
    /// Whether q, k and v have a bias (Qwen 2).
    pub qkv_bias: bool,
    /// Whether the LM head is the token embedding.
    pub tied_embeddings: bool,
    /// What sets the family apart from Llama.
    pub variant: Variant,
}

/// Where a family departs from Llama 2; the default departs nowhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variant {
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether every head of q and k is normalised before the rotation (Qwen 3, Gemma 3).
    pub qk_norm: bool,
    /// Whether the outputs of attention and MLP are normalised too (Gemma).
    pub output_norms: bool,
    /// Whether norms scale by 1 + w (Gemma). GGUF files store the sum, safetensors the w.
    pub norm_offset: bool,
    /// What gates the MLP.
    pub activation: Activation,
    /// Factor on token embeddings: √hidden for Gemma.
    pub embedding_scale: Option<f64>,
    /// The width whose inverse root scales attention scores; `None` for that of a head.
    pub attention_scale_width: Option<f64>,
    /// c in c · tanh(score / c), applied to attention scores (Gemma 2).
    pub attention_cap: Option<f64>,
    /// c in c · tanh(logit / c), applied to the LM head's output (Gemma 2).
    pub logit_cap: Option<f64>,
    /// How many tokens each layer sees, itself included; layers that are not listed see all.
    pub windows: Vec<Option<usize>>,
    /// Rotary embedding of layers with a window, where it differs (Gemma 3).
    pub local_rope: Option<RopeSpec>,
}

const SUPPORTED: &str = "supported architectures: llama (2, 3, 3.1, 3.2), qwen2 (and 2.5), \
                         qwen3, gemma2, gemma3 (text)";

/// A family as a table entry: what its name alone settles, whatever the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
}

impl Family {
    /// By `general.architecture` or `model_type`.
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gemma2" => Family::Gemma2,
            "gemma3" | "gemma3_text" => Family::Gemma3,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
        }
    }

    fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }

    /// Every n-th layer sees the whole context, the others a window.
    fn window_period(self) -> usize {
        match self {
            Family::Gemma2 => 2,
            Family::Gemma3 => 6,
            Family::Llama | Family::Qwen2 | Family::Qwen3 => 1,
        }
    }

    /// What the family's name alone says.
    fn variant(self, hidden_size: usize) -> Variant {
        let gemma = self.is_gemma();
        Variant {
            qk_norm: matches!(self, Family::Qwen3 | Family::Gemma3),
            output_norms: gemma,
            norm_offset: gemma,
            activation: match gemma {
                true => Activation::GeluTanh,
                false => Activation::Silu,
            },
            embedding_scale: gemma.then(|| (hidden_size as f64).sqrt()),
            ..Variant::default()
        }
    }
}

/// Most layers of a model. A list of windows is made of them before anything else is checked.
const MAX_LAYERS: usize = 4096;
/// Largest width, vocabulary or number of heads.
const MAX_SIZE: usize = 1 << 24;
/// Longest context, in tokens.
const MAX_CONTEXT: usize = 1 << 32;
/// Most weights: a hundred times the largest open model.
const MAX_PARAMETERS: u128 = 1 << 47;

fn check_layers(layers: usize) -> Result<(), String> {
    match layers > MAX_LAYERS {
        true => Err(format!(
            "{layers} layers are more than {MAX_LAYERS}, the limit"
        )),
        false => Ok(()),
    }
}

/// The width of a head where no field gives it.
fn head_width(hidden_size: usize, heads: usize) -> Result<usize, String> {
    match heads > 0 && hidden_size.is_multiple_of(heads) {
        true => Ok(hidden_size / heads),
        false => Err(format!(
            "{heads} heads do not divide the width {hidden_size}, and no field gives a head's width"
        )),
    }
}

/// A window on every layer but each `period`-th.
fn periodic_windows(layers: usize, period: usize, window: usize) -> Vec<Option<usize>> {
    (1..=layers)
        .map(|layer| (!layer.is_multiple_of(period)).then_some(window))
        .collect()
}

impl ModelSpec {
    /// (in, out) widths of a linear map, the shape an adapter must fit.
    pub fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        let (h, q, kv) = (
            self.hidden_size,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        );
        match projection {
            Projection::Q => (h, q),
            Projection::K | Projection::V => (h, kv),
            Projection::O => (q, h),
            Projection::Gate | Projection::Up => (h, self.intermediate_size),
            Projection::Down => (self.intermediate_size, h),
        }
    }

    /// Whether a linear map has a bias.
    pub(crate) fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Q | Projection::K | Projection::V => self.qkv_bias,
            Projection::O => self.variant.output_bias,
            Projection::Gate | Projection::Up | Projection::Down => false,
        }
    }

    /// How a layer attends.
    pub fn attention(&self, layer: usize) -> AttentionShape {
        let variant = &self.variant;
        let width = variant
            .attention_scale_width
            .unwrap_or(self.head_dim as f64);
        AttentionShape {
            head_dim: self.head_dim,
            scale: (1.0 / width.sqrt()) as f32,
            cap: variant.attention_cap.map(|c| c as f32),
            window: variant.windows.get(layer).copied().flatten(),
        }
    }

    /// Number of weights, shared ones counted once.
    pub fn parameters(&self) -> usize {
        let maps = Projection::ALL.map(|p| {
            let (inputs, outputs) = self.projection_shape(p);
            inputs * outputs + if self.has_bias(p) { outputs } else { 0 }
        });
        let norms = if self.variant.output_norms { 4 } else { 2 };
        let head_norms = if self.variant.qk_norm { 2 } else { 0 };
        let layer =
            maps.iter().sum::<usize>() + norms * self.hidden_size + head_norms * self.head_dim;
        let embedding = self.vocab_size * self.hidden_size;
        let head = if self.tied_embeddings { 0 } else { embedding };
        embedding + head + self.layers * layer + self.hidden_size
    }

    /// (in, out) at a site, or `None` if the model has no such layer.
    pub fn site_shape(&self, site: LoraSite) -> Option<(usize, usize)> {
        (site.layer < self.layers).then(|| self.projection_shape(site.projection))
    }

    /// Nothing that is computed from the sizes overflows or asks for absurd memory.
    fn check_magnitude(&self) -> Result<(), String> {
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.heads.saturating_mul(self.head_dim),
            self.kv_heads.saturating_mul(self.head_dim),
        ];
        if let Some(size) = sizes.into_iter().find(|size| *size > MAX_SIZE) {
            return Err(format!(
                "{size} is more than {MAX_SIZE}, the limit of a width"
            ));
        }
        if self.max_position > MAX_CONTEXT {
            let context = self.max_position;
            return Err(format!(
                "a context of {context} is more than {MAX_CONTEXT}, the limit"
            ));
        }
        check_layers(self.layers)?;
        let layer: u128 = Projection::ALL
            .map(|p| self.projection_shape(p))
            .iter()
            .map(|(inputs, outputs)| *inputs as u128 * *outputs as u128)
            .sum();
        let embedding = self.vocab_size as u128 * self.hidden_size as u128;
        let total = layer * self.layers as u128 + 2 * embedding;
        match total > MAX_PARAMETERS {
            true => Err(format!(
                "{total} weights are more than {MAX_PARAMETERS}, the limit"
            )),
            false => Ok(()),
        }
    }

    fn check(&self, path: &Path) -> Result<()> {
        let field = |field: &str, what: &str| ModelError::Field {
            path: path.into(),
            field: field.into(),
            what: what.into(),
        };
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.max_position,
        ];
        if sizes.contains(&0) {
            return Err(field(
                "(sizes)",
                &format!("every size must be at least 1, got {self:?}"),
            ));
        }
        self.check_magnitude()
            .map_err(|what| field("(sizes)", &what))?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(field(
                "num_key_value_heads",
                "must divide the number of attention heads",
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(field("head_dim", "must be even for rotary embeddings"));
        }
        let ropes = std::iter::once(&self.rope).chain(&self.variant.local_rope);
        for rope in ropes {
            rope.check(self.head_dim)
                .map_err(|error| field("rope", &error.to_string()))?;
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(field("rms_norm_eps", "must be finite and not negative"));
        }
        let variant = &self.variant;
        if !variant.windows.is_empty() && variant.windows.len() != self.layers {
            let what = "must say for every layer whether it has a window";
            return Err(field("layer_types", what));
        }
        if variant.windows.contains(&Some(0)) {
            return Err(field("sliding_window", "must be at least 1"));
        }
        let positive = [
            ("attention logit soft-cap", variant.attention_cap),
            ("final logit soft-cap", variant.logit_cap),
            ("query_pre_attn_scalar", variant.attention_scale_width),
        ];
        for (name, value) in positive {
            if value.is_some_and(|v| !(v.is_finite() && v > 0.0)) {
                return Err(field(name, "must be finite and positive"));
            }
        }
        Ok(())
    }
}
