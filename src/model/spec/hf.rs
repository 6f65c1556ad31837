//! Reading a Hugging Face `config.json`.
//!
//! Fields are looked up one by one rather than through one struct: families name the same thing
//! differently, newer files nest what older ones had flat, and an error can name the field.

mod mixture;

use std::path::Path;

use realign_core::files::{self, Limit};
use serde_json::Value;

use super::family::{Multipliers, rotated_layers, unsupported, without_rotation};
use super::rope::yarn_scale;
use super::{
    Family, ModelSpec, RopeScaling, RopeSpec, Variant, check_layers, head_width, periodic_windows,
};
use crate::activation::Activation;
use crate::error::{ModelError, Result};

/// Maximum size of a `config.json`; real ones have a few kilobytes.
const MAX_CONFIG: Limit = Limit::mib(16);

impl ModelSpec {
    /// Reads a Hugging Face `config.json`.
    pub(crate) fn from_config_json(path: &Path) -> Result<Self> {
        let text = files::read_text(path, MAX_CONFIG).map_err(|source| ModelError::Io {
            path: path.into(),
            source,
        })?;
        let root: Value = serde_json::from_str(&text).map_err(|e| ModelError::Malformed {
            path: path.into(),
            what: format!("not a JSON file: {e}"),
        })?;
        Self::from_config(path, &root)
    }

    /// As [`ModelSpec::from_config_json`], of a file that is already parsed.
    fn from_config(path: &Path, root: &Value) -> Result<Self> {
        let outer = Fields { path, object: root };
        let family = outer.family(outer.string("model_type")?)?;
        // A multimodal model keeps its decoder in here; the image tower is left aside.
        let object = root.get("text_config").unwrap_or(root);
        let fields = Fields { path, object };
        let family = match fields.text("model_type")? {
            Some(inner) => fields.family(inner)?,
            None => family,
        };
        fields.refuse_what_is_not_built(family)?;
        let spec = fields.spec(family)?;
        spec.check(path)?;
        Ok(spec)
    }
}

/// Typed look-ups with errors that name the file and the field. A null counts as absent.
struct Fields<'a> {
    path: &'a Path,
    object: &'a Value,
}

impl<'a> Fields<'a> {
    fn wrong(&self, field: &str, what: impl Into<String>) -> ModelError {
        ModelError::Field {
            path: self.path.into(),
            field: field.into(),
            what: what.into(),
        }
    }

    fn family(&self, model_type: &str) -> Result<Family> {
        Family::from_name(model_type)
            .ok_or_else(|| self.wrong("model_type", unsupported(model_type)))
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        field: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(field, format!("expected {kind}, got {value}"))),
        }
    }

    fn count(&self, field: &str) -> Result<Option<usize>> {
        let read = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        self.typed(field, "a whole number", read)
    }

    fn number(&self, field: &str) -> Result<Option<f64>> {
        self.typed(field, "a number", Value::as_f64)
    }

    fn flag(&self, field: &str) -> Result<Option<bool>> {
        self.typed(field, "true or false", Value::as_bool)
    }

    fn text(&self, field: &str) -> Result<Option<&'a str>> {
        self.typed(field, "a string", Value::as_str)
    }

    fn string(&self, field: &str) -> Result<&'a str> {
        self.required(field, self.text(field)?)
    }

    fn required<T>(&self, field: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.wrong(field, "is missing"))
    }

    /// Switches that change the arithmetic and that this decoder does not have.
    fn refuse_what_is_not_built(&self, family: Family) -> Result<()> {
        for field in ["mlp_bias", "use_bidirectional_attention"] {
            if self.flag(field)? == Some(true) {
                return Err(self.wrong(field, "is not supported; false is"));
            }
        }
        match self.number("partial_rotary_factor")? {
            Some(share) if share != 1.0 && family != Family::Phi3 => Err(self.wrong(
                "partial_rotary_factor",
                "is not supported; rotations of whole heads are",
            )),
            _ => Ok(()),
        }
    }

    fn spec(&self, family: Family) -> Result<ModelSpec> {
        // Gemma 3 leaves out of its file what equals its library's defaults.
        let gemma3 = |value: usize| (family == Family::Gemma3).then_some(value);
        let count = |field: &str, default: Option<usize>| {
            self.required(field, self.count(field)?.or(default))
        };
        let hidden_size = count("hidden_size", None)?;
        let heads = count("num_attention_heads", gemma3(8))?;
        let kv_heads = self.count("num_key_value_heads")?.or(gemma3(4));
        let head_dim = self.count("head_dim")?.or(gemma3(256));
        let layers = count("num_hidden_layers", None)?;
        check_layers(layers).map_err(|what| self.wrong("num_hidden_layers", what))?;
        let head_dim = match head_dim {
            Some(width) => width,
            None => head_width(hidden_size, heads)
                .map_err(|what| self.wrong("num_attention_heads", what))?,
        };
        let eps = self
            .number("rms_norm_eps")?
            .or((family == Family::Gemma3).then_some(1e-6));
        let biased = self.flag("attention_bias")?;
        let (rope, local_rope) = self.ropes(family)?;
        let trained = count("max_position_embeddings", gemma3(131_072))?;
        let max_position = self.context(&rope, trained)?;
        let mut spec = ModelSpec {
            architecture: family.name().into(),
            vocab_size: count("vocab_size", gemma3(262_208))?,
            hidden_size,
            intermediate_size: count("intermediate_size", None)?,
            layers,
            heads,
            kv_heads: kv_heads.unwrap_or(heads),
            head_dim,
            rms_norm_eps: self.required("rms_norm_eps", eps)?,
            rope,
            max_position,
            // Qwen 2 has these three biases by definition and no field that says so.
            qkv_bias: biased.unwrap_or(family == Family::Qwen2),
            tied_embeddings: self.flag("tie_word_embeddings")?.unwrap_or(family.ties()),
            variant: Variant {
                output_bias: family != Family::Qwen2 && biased == Some(true),
                activation: self.activation(family)?,
                attention_scale_width: self.attention_scale_width(family)?,
                attention_cap: self.cap("attn_logit_softcapping", family, 50.0)?,
                logit_cap: self.cap("final_logit_softcapping", family, 30.0)?,
                windows: self.windows(family, layers)?,
                local_rope,
                rotary_width: self.rotary_width(head_dim)?,
                mixture: self.mixture(family, layers)?,
                ..family.variant(hidden_size)
            },
        };
        if family == Family::SmolLm3 {
            without_rotation(&mut spec.variant, &self.rotated_layers(layers)?);
        }
        if family == Family::Granite {
            let multipliers = self.multipliers()?;
            multipliers.apply(&mut spec.variant, &mut spec.rms_norm_eps);
        }
        Ok(spec)
    }

    /// The rotary parameters of newer files, or those of older ones.
    fn rope_block(&self) -> Option<&'a Value> {
        self.get("rope_parameters").or(self.get("rope_scaling"))
    }

    fn in_rope_block(&self) -> Fields<'a> {
        Fields {
            path: self.path,
            object: self.rope_block().unwrap_or(&Value::Null),
        }
    }

    /// The context that the weights are for: all of it, or, where what follows changes with the
    /// position, that before the change. LongRoPE has other divisors beyond its original context,
    /// and Ministral 3 another scale of scores.
    fn context(&self, rope: &RopeSpec, whole: usize) -> Result<usize> {
        let block = self.in_rope_block();
        let long = matches!(rope.scaling, RopeScaling::LongRope { .. });
        let tempered = block.number("llama_4_scaling_beta")?.unwrap_or(0.0) != 0.0;
        if !long && !tempered {
            return Ok(whole);
        }
        Ok(self.original_context()?.map_or(whole, |n| n.min(whole)))
    }

    /// The context before a stretch: in the block of rotary parameters, or beside it.
    fn original_context(&self) -> Result<Option<usize>> {
        let field = "original_max_position_embeddings";
        let listed = self.in_rope_block().count(field)?;
        Ok(listed.or(self.count(field)?))
    }

    fn rotary_width(&self, head_dim: usize) -> Result<Option<usize>> {
        let field = "partial_rotary_factor";
        let share = self.in_rope_block().number(field)?;
        let share = share.or(self.number(field)?).filter(|share| *share != 1.0);
        // `as` saturates, and the width is checked against that of a head.
        Ok(share.map(|share| (head_dim as f64 * share) as usize))
    }

    /// Which layers of a SmolLM3 are rotated.
    fn rotated_layers(&self, layers: usize) -> Result<Vec<bool>> {
        let Some(listed) = self.get("no_rope_layers") else {
            let interval = self.count("no_rope_layer_interval")?.unwrap_or(4).max(1);
            return Ok(rotated_layers(layers, interval));
        };
        let rotated = listed.as_array().map(|listed| {
            let one = |value: &Value| value.as_u64().map(|rotated| rotated != 0);
            listed.iter().map(one).collect::<Option<Vec<bool>>>()
        });
        match rotated.flatten() {
            // The list may be longer than the model.
            Some(mut rotated) if rotated.len() >= layers => {
                rotated.truncate(layers);
                Ok(rotated)
            }
            _ => {
                let what = format!("expected {layers} entries, each 0 or 1, got {listed}");
                Err(self.wrong("no_rope_layers", what))
            }
        }
    }

    fn multipliers(&self) -> Result<Multipliers> {
        let positive = |field: &str| match self.number(field)?.unwrap_or(1.0) {
            value if value.is_finite() && value > 0.0 => Ok(value),
            value => Err(self.wrong(field, format!("must be finite and positive, got {value}"))),
        };
        Ok(Multipliers {
            embedding: positive("embedding_multiplier")?,
            residual: positive("residual_multiplier")?,
            attention: Some(positive("attention_multiplier")?),
            logit_divisor: positive("logits_scaling")?,
        })
    }

    fn attention_scale_width(&self, family: Family) -> Result<Option<f64>> {
        let width = self.number("query_pre_attn_scalar")?.unwrap_or(256.0);
        Ok(family.is_gemma().then_some(width))
    }

    /// A soft-cap: Gemma 2 has both unless its file says null.
    fn cap(&self, field: &str, family: Family, default: f64) -> Result<Option<f64>> {
        match self.object.get(field) {
            None => Ok((family == Family::Gemma2).then_some(default)),
            Some(_) => self.number(field),
        }
    }

    fn activation(&self, family: Family) -> Result<Activation> {
        // Gemma's own field wins over the general one, which some of its files have wrong.
        let field = match self.get("hidden_activation") {
            Some(_) => "hidden_activation",
            None => "hidden_act",
        };
        match self.text(field)? {
            None => Ok(family.variant(1).activation),
            Some("silu") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some(other) => Err(self.wrong(
                field,
                format!("`{other}` is not supported; `silu` and `gelu_pytorch_tanh` are"),
            )),
        }
    }

    /// Windows by layer: listed in newer files, given by a rule in older ones.
    fn windows(&self, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
        let switched = self.flag("use_sliding_window")?;
        // Off where a file does not say so.
        let switched = switched.or((family == Family::Qwen3Moe).then_some(false));
        let switched_off = switched == Some(false);
        let window = self.count("sliding_window")?;
        // As above: a file may leave out what equals the library's default.
        let has_default = matches!(family, Family::Gemma3 | Family::Mistral);
        let default = (has_default && self.object.get("sliding_window").is_none()).then_some(4096);
        let Some(window) = window.or(default).filter(|_| !switched_off) else {
            return Ok(vec![]);
        };
        if let Some(kinds) = self.get("layer_types") {
            return self.listed_windows(kinds, layers, window);
        }
        match family.window_period() {
            None => return Ok(vec![Some(window); layers]),
            Some(period) if family.is_gemma() => {
                let given = self.count("sliding_window_pattern")?;
                return Ok(periodic_windows(
                    layers,
                    given.unwrap_or(period).max(1),
                    window,
                ));
            }
            Some(_) => {}
        }
        if self.flag("use_sliding_window")? != Some(true) {
            return Ok(vec![]);
        }
        let full = self.count("max_window_layers")?.unwrap_or(layers);
        Ok((0..layers).map(|i| (i >= full).then_some(window)).collect())
    }

    fn listed_windows(
        &self,
        kinds: &Value,
        layers: usize,
        window: usize,
    ) -> Result<Vec<Option<usize>>> {
        let windows: Option<Vec<Option<usize>>> = kinds.as_array().and_then(|kinds| {
            let one = |kind: &Value| match kind.as_str()? {
                "full_attention" => Some(None),
                "sliding_attention" => Some(Some(window)),
                _ => None,
            };
            kinds.iter().map(one).collect()
        });
        windows.filter(|w| w.len() == layers).ok_or_else(|| {
            let what = format!(
                "expected {layers} entries, each `full_attention` or `sliding_attention`, got {kinds}"
            );
            self.wrong("layer_types", what)
        })
    }

    /// The rotary embedding, and that of windowed layers where it differs.
    fn ropes(&self, family: Family) -> Result<(RopeSpec, Option<RopeSpec>)> {
        let parameters = self.get("rope_parameters");
        let by_kind = |kind: &str| parameters.and_then(|p| p.get(kind));
        if let (Some(full), Some(sliding)) =
            (by_kind("full_attention"), by_kind("sliding_attention"))
        {
            let rope = |block, theta| self.rope(family, Some(block), theta);
            let (full, sliding) = (rope(full, 1e6)?, rope(sliding, 1e4)?);
            return Ok((full, Some(sliding)));
        }
        let theta = self.number("rope_theta")?.unwrap_or(family.theta());
        let rope = self.rope(family, self.rope_block(), theta)?;
        let local = self
            .number("rope_local_base_freq")?
            .or((family == Family::Gemma3).then_some(1e4));
        Ok((rope, local.map(RopeSpec::plain)))
    }

    /// One block of rotary parameters; `theta` is what holds where the block has none.
    fn rope(&self, family: Family, block: Option<&'a Value>, theta: f64) -> Result<RopeSpec> {
        let Some(block) = block else {
            return Ok(RopeSpec::plain(theta));
        };
        let fields = Fields {
            path: self.path,
            object: block,
        };
        let number = |field: &str| fields.required(field, fields.number(field)?);
        let kind = match fields.text("rope_type")? {
            Some(kind) => Some(kind),
            None => fields.text("type")?,
        };
        let scaling = match kind {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: number("factor")?,
            },
            Some("llama3") => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_position: number("original_max_position_embeddings")?,
            },
            // Phi's first files have other names for it.
            Some("longrope" | "su") => self.longrope(&fields)?,
            Some("yarn") if family == Family::Phi3 => self.longrope(&fields)?,
            Some("yarn") => self.yarn(&fields)?,
            Some(other) => {
                let what = format!(
                    "`{other}` is not supported; `default`, `linear`, `llama3`, `yarn` and `longrope` are"
                );
                return Err(self.wrong("rope_type", what));
            }
        };
        Ok(RopeSpec {
            theta: fields.number("rope_theta")?.unwrap_or(theta),
            scaling,
        })
    }

    fn yarn(&self, block: &Fields<'a>) -> Result<RopeScaling> {
        let (original, factor) = self.stretch(block)?;
        let given = |field: &str| Ok::<_, ModelError>(block.number(field)?.filter(|v| *v != 0.0));
        let amplitude = match (
            given("attention_factor")?,
            given("mscale")?,
            given("mscale_all_dim")?,
        ) {
            (Some(amplitude), ..) => amplitude,
            (None, Some(some), Some(all)) => yarn_scale(factor, some) / yarn_scale(factor, all),
            (None, ..) => yarn_scale(factor, 1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: given("beta_fast")?.unwrap_or(32.0),
            beta_slow: given("beta_slow")?.unwrap_or(1.0),
            original_max_position: original,
            truncate: block.flag("truncate")?.unwrap_or(true),
            amplitude,
        })
    }

    fn longrope(&self, block: &Fields<'a>) -> Result<RopeScaling> {
        let (original, factor) = self.stretch(block)?;
        let listed = block.get("short_factor").and_then(Value::as_array);
        let divisors = listed.map(|listed| {
            let one = |value: &Value| value.as_f64().map(|divisor| divisor as f32);
            listed.iter().map(one).collect::<Option<Vec<f32>>>()
        });
        let divisors = block.required("short_factor", divisors.flatten())?;
        let amplitude = match block.number("attention_factor")? {
            Some(amplitude) => amplitude,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        Ok(RopeScaling::LongRope {
            divisors,
            amplitude,
        })
    }

    /// The original context in tokens, and how far it is stretched.
    fn stretch(&self, block: &Fields<'a>) -> Result<(f64, f64)> {
        let whole = self.count("max_position_embeddings")?;
        let original = self.original_context()?.or(whole);
        let original = self.required("original_max_position_embeddings", original)? as f64;
        let factor = match block.number("factor")? {
            Some(factor) => factor,
            None => whole.map_or(1.0, |whole| whole as f64) / original,
        };
        Ok((original, factor))
    }
}
