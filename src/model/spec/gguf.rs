//! Reading the metadata of a GGUF file.

mod mixture;

use std::path::Path;

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};

use realign_core::files;

use super::family::{Multipliers, rotated_layers, unsupported, without_rotation};
use super::rope::yarn_scale;
use super::{
    Family, ModelSpec, RopeScaling, RopeSpec, Variant, check_layers, head_width, periodic_windows,
};
use crate::error::{ModelError, Result};

/// Divisors of the rotary frequencies, where Llama 3.1 and later keep their stretch.
const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// Divisors within the original context, where LongRoPE keeps them.
const SHORT_DIVISORS: &str = "rope_factors_short.weight";

impl ModelSpec {
    /// Reads the metadata of a GGUF file; `path` is the file that `content` heads.
    pub fn from_gguf(path: &Path, content: &Content) -> Result<Self> {
        let name = Meta::string(path, content, "general.architecture")?;
        let family = Family::from_name(name)
            .ok_or_else(|| wrong(path, "general.architecture", unsupported(name)))?;
        let meta = Meta {
            path,
            content,
            family,
        };
        let spec = meta.spec()?;
        spec.check(path)?;
        Ok(spec)
    }
}

fn wrong(path: &Path, key: &str, what: impl Into<String>) -> ModelError {
    ModelError::Field {
        path: path.into(),
        field: key.into(),
        what: what.into(),
    }
}

/// Typed look-ups under the family's prefix, with errors that name the file and the key.
struct Meta<'a> {
    path: &'a Path,
    content: &'a Content,
    family: Family,
}

impl Meta<'_> {
    fn string<'a>(path: &Path, content: &'a Content, key: &str) -> Result<&'a str> {
        match content.metadata.get(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(wrong(
                path,
                key,
                format!("expected a string, got {other:?}"),
            )),
            None => Err(wrong(path, key, "missing from the file's metadata")),
        }
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.family.name())
    }

    fn wrong(&self, suffix: &str, what: impl Into<String>) -> ModelError {
        wrong(self.path, &self.key(suffix), what)
    }

    fn get(&self, suffix: &str) -> Option<&Value> {
        self.content.metadata.get(&self.key(suffix))
    }

    fn has(&self, tensor: &str) -> bool {
        self.content.tensor_infos.contains_key(tensor)
    }

    fn count(&self, suffix: &str) -> Result<usize> {
        self.optional(suffix)?
            .ok_or_else(|| self.wrong(suffix, "missing from the file's metadata"))
    }

    fn optional(&self, suffix: &str) -> Result<Option<usize>> {
        match self.get(suffix) {
            None => Ok(None),
            Some(Value::U8(v)) => Ok(Some(usize::from(*v))),
            Some(Value::U16(v)) => Ok(Some(usize::from(*v))),
            Some(Value::U32(v)) => Ok(Some(*v as usize)),
            Some(Value::I32(v)) if *v >= 0 => Ok(Some(*v as usize)),
            Some(Value::U64(v)) => Ok(Some(*v as usize)),
            Some(Value::I64(v)) if *v >= 0 => Ok(Some(*v as usize)),
            Some(other) => {
                Err(self.wrong(suffix, format!("expected a whole number, got {other:?}")))
            }
        }
    }

    fn number(&self, suffix: &str) -> Result<Option<f64>> {
        match self.get(suffix) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(f64::from(*v))),
            Some(Value::F64(v)) => Ok(Some(*v)),
            Some(other) => Err(self.wrong(suffix, format!("expected a number, got {other:?}"))),
        }
    }

    fn spec(&self) -> Result<ModelSpec> {
        let hidden_size = self.count("embedding_length")?;
        let layers = self.count("block_count")?;
        check_layers(layers).map_err(|what| self.wrong("block_count", what))?;
        let heads = self.count("attention.head_count")?;
        let head_dim = self.head_dim(hidden_size, heads)?;
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let vocab_size = embedding
            .and_then(|t| t.shape.dims().first().copied())
            .ok_or_else(|| {
                let what = "the file has no token embedding";
                wrong(self.path, "token_embd.weight", what)
            })?;
        let eps = "attention.layer_norm_rms_epsilon";
        // The first Gemma 2 files were written before these keys were.
        let gemma2 = |suffix: &str, default: f64| {
            let default = (self.family == Family::Gemma2).then_some(default);
            Ok::<_, ModelError>(self.number(suffix)?.or(default))
        };
        let mixture = self.mixture(layers)?;
        let rope = self.rope()?;
        let mut spec = ModelSpec {
            architecture: self.family.name().into(),
            vocab_size,
            hidden_size,
            intermediate_size: self.intermediate_size(mixture.as_ref())?,
            layers,
            heads,
            kv_heads: self.optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            rms_norm_eps: self
                .number(eps)?
                .ok_or_else(|| self.wrong(eps, "missing from the file's metadata"))?,
            max_position: self.context(&rope)?,
            rope,
            qkv_bias: self.has("blk.0.attn_q.bias") || self.has("blk.0.attn_qkv.bias"),
            tied_embeddings: !self.has("output.weight"),
            variant: Variant {
                output_bias: self.has("blk.0.attn_output.bias"),
                // The converter writes 1 + w, so that readers need not know the family.
                norm_offset: false,
                attention_scale_width: self.attention_scale_width(layers, hidden_size, heads)?,
                attention_cap: gemma2("attn_logit_softcapping", 50.0)?,
                logit_cap: gemma2("final_logit_softcapping", 30.0)?,
                windows: self.windows(layers)?,
                local_rope: self.local_rope()?,
                rotary_width: self.rotary_width(head_dim)?,
                mixture,
                ..self.family.variant(hidden_size)
            },
        };
        if self.family == Family::SmolLm3 {
            // No key says so: it is the family's only rule.
            without_rotation(&mut spec.variant, &rotated_layers(layers, 4));
        }
        if self.family == Family::Granite {
            let multipliers = self.multipliers()?;
            multipliers.apply(&mut spec.variant, &mut spec.rms_norm_eps);
        }
        Ok(spec)
    }

    /// As `config.json`'s: where something changes with the position, the context before that.
    fn context(&self, rope: &RopeSpec) -> Result<usize> {
        let whole = self.count("context_length")?;
        let long = matches!(rope.scaling, RopeScaling::LongRope { .. });
        let tempered = self
            .number("attention.temperature_scale")?
            .is_some_and(|scale| scale != 0.0);
        if !long && !tempered {
            return Ok(whole);
        }
        let original = self.optional("rope.scaling.original_context_length")?;
        Ok(original.map_or(whole, |original| original.min(whole)))
    }

    /// Columns of a head that are rotated, where not all are.
    fn rotary_width(&self, head_dim: usize) -> Result<Option<usize>> {
        let width = self.optional("rope.dimension_count")?;
        Ok(width.filter(|width| *width != head_dim))
    }

    fn multipliers(&self) -> Result<Multipliers> {
        let positive = |suffix: &str| match self.number(suffix)?.unwrap_or(1.0) {
            value if value.is_finite() && value > 0.0 => Ok(value),
            value => Err(self.wrong(suffix, format!("must be finite and positive, got {value}"))),
        };
        Ok(Multipliers {
            embedding: positive("embedding_scale")?,
            residual: positive("residual_scale")?,
            // A writer leaves it out where it is that of other families.
            attention: None,
            logit_divisor: positive("logit_scale")?,
        })
    }

    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize> {
        let key = self.optional("attention.key_length")?;
        let head_dim = match key {
            Some(width) => width,
            None => head_width(hidden_size, heads)
                .map_err(|what| self.wrong("attention.head_count", what))?,
        };
        // Both have to be a head's whole width: this decoder has one width for q, k and v.
        let whole: &[&str] = match self.family {
            Family::Phi3 => &["attention.value_length"],
            _ => &["attention.value_length", "rope.dimension_count"],
        };
        for suffix in whole {
            let width = self.optional(suffix)?.unwrap_or(head_dim);
            if width != head_dim {
                let what = format!("{width} is not supported; the width of a head, {head_dim}, is");
                return Err(self.wrong(suffix, what));
            }
        }
        Ok(head_dim)
    }

    /// Gemma's largest models scale scores by hidden/heads rather than by a head's width. Few
    /// files say so; like other readers, we know these two by their number of layers.
    fn attention_scale_width(
        &self,
        layers: usize,
        hidden_size: usize,
        heads: usize,
    ) -> Result<Option<f64>> {
        // Zero is how some writers say that nothing was set.
        if let Some(scale) = self.number("attention.scale")?.filter(|s| *s != 0.0) {
            return Ok(Some(scale.powi(-2)));
        }
        let largest = matches!(
            (self.family, layers),
            (Family::Gemma2, 46) | (Family::Gemma3, 62)
        );
        Ok(largest.then(|| hidden_size as f64 / heads as f64))
    }

    fn windows(&self, layers: usize) -> Result<Vec<Option<usize>>> {
        let default = (self.family == Family::Gemma2).then_some(4096);
        let window = self.optional("attention.sliding_window")?.or(default);
        let Some(window) = window.filter(|w| *w > 0) else {
            return Ok(vec![]);
        };
        let pattern = "attention.sliding_window_pattern";
        if let Some(Value::Array(listed)) = self.get(pattern) {
            let windowed = |value: &Value| match value {
                Value::Bool(windowed) => Ok(windowed.then_some(window)),
                other => Err(self.wrong(pattern, format!("expected booleans, got {other:?}"))),
            };
            return listed.iter().map(windowed).collect();
        }
        let period = match self.optional(pattern)? {
            Some(period) => period.max(1),
            // A Mistral, which most files call a Llama.
            None if self.family == Family::Llama => return Ok(vec![Some(window); layers]),
            None => match self.family.window_period() {
                Some(period) => period,
                None => return Ok(vec![Some(window); layers]),
            },
        };
        Ok(periodic_windows(layers, period, window))
    }

    fn rope(&self) -> Result<RopeSpec> {
        let theta = self.number("rope.freq_base")?.unwrap_or(1e4);
        let scaling = if self.has(ROPE_DIVISORS) {
            RopeScaling::Divisors(self.divisors(ROPE_DIVISORS)?)
        } else if self.has(SHORT_DIVISORS) {
            RopeScaling::LongRope {
                divisors: self.divisors(SHORT_DIVISORS)?,
                amplitude: self.number("rope.scaling.attn_factor")?.unwrap_or(1.0),
            }
        } else {
            self.rope_scaling()?
        };
        Ok(RopeSpec { theta, scaling })
    }

    fn local_rope(&self) -> Result<Option<RopeSpec>> {
        let theta = self.number("rope.freq_base_swa")?;
        let theta = theta.or((self.family == Family::Gemma3).then_some(1e4));
        Ok(theta.map(RopeSpec::plain))
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        let kind = match self.get("rope.scaling.type") {
            Some(Value::String(kind)) => Some(kind.as_str()),
            Some(other) => {
                let what = format!("expected a string, got {other:?}");
                return Err(self.wrong("rope.scaling.type", what));
            }
            None => None,
        };
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            // The key of files from before the type was recorded.
            None => self.number("rope.scale_linear")?,
        };
        match (kind, factor) {
            (Some("none"), _) | (None, None) => Ok(RopeScaling::None),
            (Some("linear") | None, Some(factor)) => Ok(RopeScaling::Linear { factor }),
            (Some("yarn"), Some(factor)) => self.yarn(factor),
            (Some("linear" | "yarn"), None) => {
                Err(self.wrong("rope.scaling.factor", "missing from the file's metadata"))
            }
            (Some(other), _) => {
                let what = format!(
                    "`{other}` is not supported; `none`, `linear`, `yarn`, {ROPE_DIVISORS} and \
                     {SHORT_DIVISORS} are"
                );
                Err(self.wrong("rope.scaling.type", what))
            }
        }
    }

    fn yarn(&self, factor: f64) -> Result<RopeScaling> {
        let given = |suffix: &str| {
            let number = self.number(&format!("rope.scaling.{suffix}"))?;
            Ok::<_, ModelError>(number.filter(|value| *value != 0.0))
        };
        let original = match self.optional("rope.scaling.original_context_length")? {
            Some(original) => original,
            None => self.count("context_length")?,
        };
        let all = given("yarn_log_multiplier")?.unwrap_or(0.0);
        let implied = yarn_scale(factor, 1.0) / yarn_scale(factor, all);
        let amplitude = given("yarn_attn_factor")?.unwrap_or(implied);
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: given("yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: given("yarn_beta_slow")?.unwrap_or(1.0),
            original_max_position: original as f64,
            truncate: true,
            amplitude: amplitude * given("attn_factor")?.unwrap_or(1.0),
        })
    }

    fn divisors(&self, tensor: &str) -> Result<Vec<f32>> {
        let mut file = files::open_regular(self.path).map_err(|source| ModelError::Io {
            path: self.path.into(),
            source,
        })?;
        let mut read = || {
            let stored = self.content.tensor(&mut file, tensor, &Device::Cpu)?;
            stored.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
        };
        read().map_err(|e: candle_core::Error| wrong(self.path, tensor, e.to_string()))
    }
}
