//! A model family as data: everything the decoder needs to know besides the weights.
//!
//! Families are values of [`ModelSpec`], read from a Hugging Face `config.json` (`hf`) or from the
//! metadata of a GGUF file (`gguf`); the decoder never asks for an architecture's name.

mod family;
mod gguf;
mod hf;
mod mixture;
mod rope;
#[cfg(test)]
mod tests;

use std::path::Path;

use family::Family;
pub use mixture::Mixture;
pub use rope::{RopeScaling, RopeSpec};

use super::activation::Activation;
use super::attention::AttentionShape;
use super::error::{ModelError, Result};
use super::lora::{LoraSite, Projection};

/// Shapes and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Architecture as GGUF names it, such as `llama` or `gemma3`.
    pub architecture: String,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP of layers without experts.
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
    /// A second rotary embedding: that of layers with a window (Gemma 3), or none at all (SmolLM3).
    pub local_rope: Option<RopeSpec>,
    /// Whether each layer has the second rotary embedding; if empty, those with a window have it.
    pub local_rope_layers: Vec<bool>,
    /// How many columns of a head are rotated, from the first on; `None` for all (Phi-4-mini).
    pub rotary_width: Option<usize>,
    /// What divides the logits, applied to the last norm's scale (Granite).
    pub logit_divisor: Option<f64>,
    /// Experts in place of the MLP of some layers (Qwen 3 MoE).
    pub mixture: Option<Mixture>,
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
            local_rope: self.has_local_rope(layer),
        }
    }

    fn has_local_rope(&self, layer: usize) -> bool {
        let variant = &self.variant;
        let windowed = variant.windows.get(layer).copied().flatten().is_some();
        let listed = variant.local_rope_layers.get(layer).copied();
        variant.local_rope.is_some() && listed.unwrap_or(windowed)
    }

    /// The rotary embedding of a layer that attends like this.
    pub fn rope_of(&self, shape: &AttentionShape) -> &RopeSpec {
        match &self.variant.local_rope {
            Some(local) if shape.local_rope => local,
            _ => &self.rope,
        }
    }

    /// How many columns of a head are rotated, from the first on.
    pub fn rotary_width(&self) -> usize {
        self.variant.rotary_width.unwrap_or(self.head_dim)
    }

    /// Number of weights, shared ones counted once.
    pub fn parameters(&self) -> usize {
        use Projection::{K, O, Q, V};
        let maps = [Q, K, V, O].map(|p| {
            let (inputs, outputs) = self.projection_shape(p);
            inputs * outputs + if self.has_bias(p) { outputs } else { 0 }
        });
        let norms = if self.variant.output_norms { 4 } else { 2 };
        let head_norms = if self.variant.qk_norm { 2 } else { 0 };
        let layer =
            maps.iter().sum::<usize>() + norms * self.hidden_size + head_norms * self.head_dim;
        let embedding = self.vocab_size * self.hidden_size;
        let head = if self.tied_embeddings { 0 } else { embedding };
        let mlps = self.mlp_parameters() as usize;
        embedding + head + self.layers * layer + mlps + self.hidden_size
    }

    /// (in, out) at a site, or `None` if the model has no such layer, or no adapter can be there: models
    /// with experts carry adapters on attention alone, in layers without experts too, as PEFT takes
    /// their other projections for those of experts.
    pub fn site_shape(&self, site: LoraSite) -> Option<(usize, usize)> {
        let experts = site.projection.parent() == "mlp" && self.variant.mixture.is_some();
        (site.layer < self.layers && !experts).then(|| self.projection_shape(site.projection))
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
        use Projection::{K, O, Q, V};
        let attention: u128 = [Q, K, V, O]
            .map(|p| self.projection_shape(p))
            .iter()
            .map(|(inputs, outputs)| *inputs as u128 * *outputs as u128)
            .sum();
        let embedding = self.vocab_size as u128 * self.hidden_size as u128;
        let total = attention * self.layers as u128 + self.mlp_parameters() + 2 * embedding;
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
        if let Some(mixture) = &self.variant.mixture {
            mixture
                .check(self.layers)
                .map_err(|(name, what)| field(name, &what))?;
            if self.variant.output_norms {
                let what = "are not supported along with norms on outputs";
                return Err(field("num_experts", what));
            }
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
        let rotated = self.rotary_width();
        if rotated == 0 || rotated > self.head_dim || !rotated.is_multiple_of(2) {
            let what = format!(
                "{rotated} columns of a head are rotated: an even number up to {} can be",
                self.head_dim
            );
            return Err(field("partial_rotary_factor", &what));
        }
        let ropes = std::iter::once(&self.rope).chain(&self.variant.local_rope);
        for rope in ropes {
            rope.check(rotated)
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
            ("attention scale", variant.attention_scale_width),
            ("embedding scale", variant.embedding_scale),
            ("logits_scaling", variant.logit_divisor),
        ];
        for (name, value) in positive {
            if value.is_some_and(|v| !(v.is_finite() && v > 0.0)) {
                return Err(field(name, "must be finite and positive"));
            }
        }
        Ok(())
    }
}
