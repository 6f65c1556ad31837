//! A model family as data: everything the decoder needs to know besides the weights.

use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};

use super::error::{ModelError, Result};
use super::lora::{LoraSite, Projection};

/// Shapes and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Architecture as its files name it: `llama` or `qwen2`.
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
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Longest context the model was trained for, in tokens.
    pub max_position: usize,
    /// Whether q, k and v have a bias (Qwen 2).
    pub qkv_bias: bool,
    /// Whether the LM head is the token embedding.
    pub tied_embeddings: bool,
}

const SUPPORTED: &str = "supported architectures: llama, qwen2";

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

    /// Number of weights, shared ones counted once.
    pub fn parameters(&self) -> usize {
        let maps = Projection::ALL.map(|p| {
            let (inputs, outputs) = self.projection_shape(p);
            inputs * outputs
        });
        let biases = if self.qkv_bias {
            (self.heads + 2 * self.kv_heads) * self.head_dim
        } else {
            0
        };
        let layer = maps.iter().sum::<usize>() + biases + 2 * self.hidden_size;
        let embedding = self.vocab_size * self.hidden_size;
        let head = if self.tied_embeddings { 0 } else { embedding };
        embedding + head + self.layers * layer + self.hidden_size
    }

    /// (in, out) at a site, or `None` if the model has no such layer.
    pub fn site_shape(&self, site: LoraSite) -> Option<(usize, usize)> {
        (site.layer < self.layers).then(|| self.projection_shape(site.projection))
    }

    /// Reads the metadata of a GGUF file.
    pub fn from_gguf(path: &Path, content: &Content) -> Result<Self> {
        let meta = GgufMeta { path, content };
        let architecture = meta.string("general.architecture")?;
        if !matches!(architecture.as_str(), "llama" | "qwen2") {
            return Err(meta.wrong(
                "general.architecture",
                format!("`{architecture}` is not supported; {SUPPORTED}"),
            ));
        }
        if content.tensor_infos.contains_key("rope_freqs.weight") {
            return Err(meta.wrong(
                "rope_freqs.weight",
                "scaled rotary frequencies (Llama 3.1 and later) are not supported yet".into(),
            ));
        }
        let key = |suffix: &str| format!("{architecture}.{suffix}");
        let hidden_size = meta.usize(&key("embedding_length"))?;
        let heads = meta.usize(&key("attention.head_count"))?;
        let head_dim = match meta.optional(&key("attention.key_length"))? {
            Some(d) => d,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        };
        let embedding = content
            .tensor_infos
            .get("token_embd.weight")
            .map(|t| t.shape.dims().to_vec());
        let vocab_size = embedding.and_then(|d| d.first().copied()).ok_or_else(|| {
            meta.wrong(
                "token_embd.weight",
                "the file has no token embedding".into(),
            )
        })?;
        let spec = ModelSpec {
            vocab_size,
            hidden_size,
            intermediate_size: meta.usize(&key("feed_forward_length"))?,
            layers: meta.usize(&key("block_count"))?,
            heads,
            kv_heads: meta
                .optional(&key("attention.head_count_kv"))?
                .unwrap_or(heads),
            head_dim,
            rms_norm_eps: meta.float(&key("attention.layer_norm_rms_epsilon"))?,
            rope_theta: meta
                .optional_float(&key("rope.freq_base"))?
                .unwrap_or(10_000.0),
            max_position: meta.usize(&key("context_length"))?,
            qkv_bias: content.tensor_infos.contains_key("blk.0.attn_q.bias"),
            tied_embeddings: !content.tensor_infos.contains_key("output.weight"),
            architecture,
        };
        spec.check(path)?;
        Ok(spec)
    }

    /// Reads a Hugging Face `config.json`.
    pub fn from_config_json(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| ModelError::Io {
            path: path.into(),
            source,
        })?;
        let raw: HfConfig = serde_json::from_str(&text).map_err(|e| ModelError::Malformed {
            path: path.into(),
            what: e.to_string(),
        })?;
        let field = |field: &str, what: String| ModelError::Field {
            path: path.into(),
            field: field.into(),
            what,
        };
        if !matches!(raw.model_type.as_str(), "llama" | "qwen2") {
            return Err(field(
                "model_type",
                format!("`{}` is not supported; {SUPPORTED}", raw.model_type),
            ));
        }
        if raw.rope_scaling.as_ref().is_some_and(|v| !v.is_null()) {
            return Err(field(
                "rope_scaling",
                "scaled rotary embeddings are not supported yet; null is".into(),
            ));
        }
        if raw.use_sliding_window == Some(true) {
            return Err(field(
                "use_sliding_window",
                "sliding-window attention is not supported yet; false is".into(),
            ));
        }
        if raw.hidden_act.as_deref().is_some_and(|a| a != "silu") {
            return Err(field(
                "hidden_act",
                "only `silu` is supported for this architecture".into(),
            ));
        }
        let spec = ModelSpec {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: match raw.head_dim {
                Some(d) => d,
                None => raw
                    .hidden_size
                    .checked_div(raw.num_attention_heads)
                    .unwrap_or(0),
            },
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: raw.rope_theta.unwrap_or(10_000.0),
            max_position: raw.max_position_embeddings,
            // Qwen 2 has biases by definition and no field that says so.
            qkv_bias: raw.attention_bias.unwrap_or(raw.model_type == "qwen2"),
            tied_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            architecture: raw.model_type,
        };
        spec.check(path)?;
        Ok(spec)
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
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(field(
                "num_key_value_heads",
                "must divide the number of attention heads",
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(field("head_dim", "must be even for rotary embeddings"));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0 && self.rms_norm_eps >= 0.0) {
            return Err(field(
                "rope_theta / rms_norm_eps",
                "must be finite and not negative",
            ));
        }
        Ok(())
    }
}

/// The fields of `config.json` that matter; the file has many others.
#[derive(serde::Deserialize)]
struct HfConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    use_sliding_window: Option<bool>,
    max_position_embeddings: usize,
    attention_bias: Option<bool>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
}

/// Typed look-ups with errors that name the file and the key.
struct GgufMeta<'a> {
    path: &'a Path,
    content: &'a Content,
}

impl GgufMeta<'_> {
    fn wrong(&self, key: &str, what: String) -> ModelError {
        ModelError::Field {
            path: self.path.into(),
            field: key.into(),
            what,
        }
    }

    fn get(&self, key: &str) -> Result<&Value> {
        self.content
            .metadata
            .get(key)
            .ok_or_else(|| self.wrong(key, "missing from the file's metadata".into()))
    }

    fn string(&self, key: &str) -> Result<String> {
        self.get(key)?
            .to_string()
            .cloned()
            .map_err(|e| self.wrong(key, e.to_string()))
    }

    fn usize(&self, key: &str) -> Result<usize> {
        self.optional(key)?
            .ok_or_else(|| self.wrong(key, "missing from the file's metadata".into()))
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.content.metadata.get(key) else {
            return Ok(None);
        };
        match value {
            Value::U8(v) => Ok(Some(usize::from(*v))),
            Value::U16(v) => Ok(Some(usize::from(*v))),
            Value::U32(v) => Ok(Some(*v as usize)),
            Value::I32(v) if *v >= 0 => Ok(Some(*v as usize)),
            Value::U64(v) => Ok(Some(*v as usize)),
            Value::I64(v) if *v >= 0 => Ok(Some(*v as usize)),
            other => Err(self.wrong(key, format!("expected a whole number, got {other:?}"))),
        }
    }

    fn float(&self, key: &str) -> Result<f64> {
        self.optional_float(key)?
            .ok_or_else(|| self.wrong(key, "missing from the file's metadata".into()))
    }

    fn optional_float(&self, key: &str) -> Result<Option<f64>> {
        match self.content.metadata.get(key) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(f64::from(*v))),
            Some(Value::F64(v)) => Ok(Some(*v)),
            Some(other) => Err(self.wrong(key, format!("expected a number, got {other:?}"))),
        }
    }
}
