//! The fields that chat completions and completions share.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use realign_engine::request::SamplingParams;
use realign_model::Tokenizer;
use realign_model::tokenizer::TokenizerError;

/// Most choices per prompt.
const MAX_CHOICES: i64 = 8;
/// Most stop strings, as OpenAI has it.
const MAX_STOPS: usize = 4;
/// Longest stop string in bytes: the engine holds back that much text.
const MAX_STOP_BYTES: usize = 1024;

/// Most biased tokens, as OpenAI has it.
const MAX_BIASES: usize = 1024;

/// Shared fields, checked.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// `model` as sent.
    pub(crate) model: String,
    /// Everything but `max_tokens` and `top_logprobs`, which the routes define differently.
    pub(crate) sampling: SamplingParams,
    /// `None`: the route's default.
    pub(crate) max_tokens: Option<usize>,
    /// Choices per prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    /// `stream_options.include_usage`.
    pub(crate) include_usage: bool,
}

impl Params {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
        Ok(Self {
            model: fields.string("model")?.to_string(),
            sampling: SamplingParams {
                temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32,
                top_p: share(fields, "top_p", 1.0)?,
                // -1 is how other servers spell "off".
                top_k: fields
                    .integer("top_k", -1..=i64::MAX)?
                    .and_then(|k| usize::try_from(k).ok())
                    .unwrap_or(0),
                min_p: share(fields, "min_p", 0.0)?,
                presence_penalty: penalty(fields, "presence_penalty")?,
                frequency_penalty: penalty(fields, "frequency_penalty")?,
                logit_bias: logit_bias(fields)?,
                grammar: None,
                seed: seed.map_or_else(rand::random, i64::cast_unsigned),
                max_tokens: 0,
                stop: stops(fields)?,
                ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
                top_logprobs: None,
            },
            max_tokens: fields.count("max_tokens", 1..=i64::MAX)?,
            n: fields.count("n", 1..=MAX_CHOICES)?.unwrap_or(1),
            stream,
            include_usage: include_usage(fields, stream)?,
        })
    }

    /// Fails for a biased token that the model does not have.
    pub(crate) fn check_bias(&self, tokenizer: &Tokenizer) -> Result<(), ApiError> {
        let mut ids = self.sampling.logit_bias.iter().map(|(id, _)| *id);
        let check = |id| tokenizer.check_id(id);
        let wrong = |e: TokenizerError| ApiError::field("logit_bias", format!("`logit_bias`: {e}"));
        ids.try_for_each(check).map_err(wrong)
    }

    /// The sampling of choice `index`: its own seed, so that choices differ.
    pub(crate) fn sampling_of(&self, index: usize, max_tokens: usize) -> SamplingParams {
        let mut sampling = self.sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(index as u64);
        sampling.max_tokens = max_tokens;
        sampling
    }
}

fn share(fields: &Fields<'_>, name: &str, default: f64) -> Result<f32, ApiError> {
    Ok(fields.number(name, 0.0..=1.0)?.unwrap_or(default) as f32)
}

fn penalty(fields: &Fields<'_>, name: &str) -> Result<f32, ApiError> {
    Ok(fields.number(name, -2.0..=2.0)?.unwrap_or(0.0) as f32)
}

/// `{"50256": -100}`: token ids as keys, -100 to 100.
fn logit_bias(fields: &Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let expected = "an object of token ids and numbers from -100 to 100";
    let object = match fields.get("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(object)) => object,
        Some(other) => return Err(wrong_type("logit_bias", expected, other)),
    };
    if object.len() > MAX_BIASES {
        let message = format!(
            "`logit_bias` has {} tokens; allowed: up to {MAX_BIASES}",
            object.len()
        );
        return Err(ApiError::field("logit_bias", message));
    }
    let entry = |(id, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b));
        let id = id.parse::<u32>().ok();
        id.zip(bias).map(|(id, bias)| (id, bias as f32))
    };
    let entries: Option<Vec<_>> = object.iter().map(entry).collect();
    entries.ok_or_else(|| ApiError::field("logit_bias", format!("`logit_bias` must be {expected}")))
}

fn include_usage(fields: &Fields<'_>, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.get("stream_options") else {
        return Ok(false);
    };
    if !stream {
        return Err(ApiError::field(
            "stream_options",
            "`stream_options` is only allowed when `stream` is true",
        ));
    }
    let options = Fields::nested(options, "stream_options")?;
    Ok(options.boolean("include_usage")?.unwrap_or(false))
}

fn stops(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let expected = "a string or an array of up to 4 strings";
    let stops = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(str::to_string))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| ApiError::field("stop", format!("`stop` must be {expected}")))?,
        Some(other) => return Err(wrong_type("stop", expected, other)),
    };
    if stops.len() > MAX_STOPS {
        return Err(ApiError::field(
            "stop",
            format!(
                "`stop` has {} strings; allowed: up to {MAX_STOPS}",
                stops.len()
            ),
        ));
    }
    if stops
        .iter()
        .any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES)
    {
        return Err(ApiError::field(
            "stop",
            format!("each string of `stop` must have 1 to {MAX_STOP_BYTES} bytes"),
        ));
    }
    Ok(stops)
}
