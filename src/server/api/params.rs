//! The fields that chat completions, completions and responses share.

pub(crate) mod others;
mod sampling;

use std::borrow::Cow;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::error::ApiError;
use super::request::{FIELD, Integer, ModelName, Number, message, shortened, unexpected};
use super::tools::Checks;
use others::OtherFields;
use realign_engine::bad_words::BadWords;
use realign_engine::request::SamplingParams;
use realign_model::Tokenizer;
use realign_model::tokenizer::TokenizerError;
use sampling::{PeerFields, PeerParams};

/// Maximum number of choices per prompt.
pub(crate) const MAX_CHOICES: i64 = 8;
/// Maximum number of stop strings. OpenAI's API takes 4, other servers more.
const MAX_STOPS: usize = 32;
/// Maximum length of a stop string, in bytes: the engine holds back that much text.
const MAX_STOP_BYTES: usize = 1024;

/// Maximum number of biased tokens, as with OpenAI.
const MAX_BIASES: usize = 1024;
/// Maximum absolute value of a bias.
const MAX_BIAS: f64 = 100.0;

/// The shared fields, as sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Common {
    stream: Option<bool>,
    /// The same seed gives the same text, whatever else is in the batch.
    seed: Option<Integer<{ i64::MIN }, { i64::MAX }>>,
    model: Option<ModelName>,
    /// 0 is greedy. Default 1.
    temperature: Option<Number<0, 2>>,
    top_p: Option<Number<0, 1>>,
    /// Keep the k most probable tokens; 0 and -1 keep all.
    top_k: Option<Integer<-1, { i64::MAX }>>,
    /// Keep tokens at least this share as probable as the best one.
    min_p: Option<Number<0, 1>>,
    presence_penalty: Option<Number<-2, 2>>,
    frequency_penalty: Option<Number<-2, 2>>,
    /// Token ids and what is added to their logits.
    logit_bias: Option<LogitBias>,
    stop: Option<Stops>,
    /// Continue after the model ends its turn, up to max_tokens; for benchmarks.
    ignore_eos: Option<bool>,
    /// Only with `stream`.
    stream_options: Option<StreamOptions>,
    #[serde(rename = "user")]
    #[schemars(with = "Option<String>")]
    _user: Option<serde::de::IgnoredAny>,
    #[serde(rename = "..peers")]
    #[schemars(flatten)]
    peers: PeerFields,
    #[serde(rename = "..others")]
    #[schemars(flatten)]
    _others: OtherFields,
}

/// `stream_options`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct StreamOptions {
    /// A last chunk with the token counts of the whole request.
    include_usage: Option<bool>,
    /// The counts so far in every chunk; only with `include_usage`.
    continuous_usage_stats: Option<bool>,
    /// Without effect: chunks are not padded.
    #[serde(rename = "include_obfuscation")]
    #[schemars(with = "Option<bool>")]
    _include_obfuscation: Option<serde::de::IgnoredAny>,
}

/// The shared fields, validated.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// `model` as sent; empty, which stands for the served name, if it was omitted.
    pub(crate) model: String,
    /// Sampling parameters except `max_tokens` and `top_logprobs`, which the routes define
    /// differently.
    pub(crate) sampling: SamplingParams,
    /// `None` means the route's default.
    pub(crate) max_tokens: Option<usize>,
    /// Choices per prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    /// `stream_options.include_usage`.
    pub(crate) include_usage: bool,
    /// What the finished answer is checked against.
    pub(crate) checks: Option<Arc<Checks>>,
    /// The field that the answer's constraint came in.
    pub(crate) constraint_field: &'static str,
    /// `stream_options.continuous_usage_stats`.
    pub(crate) continuous_usage: bool,
    /// Whether the answer has the ids of its tokens and of the prompt's.
    pub(crate) token_ids: bool,
    /// Most tokens of thoughts.
    pub(crate) thinking_budget: Option<usize>,
    peers: PeerParams,
}

impl Common {
    /// Validates what depends on several fields. The result has one choice and the route's default
    /// length.
    ///
    /// # Errors
    /// For `stream_options` without `stream`, or counts in every chunk without the last ones.
    pub(crate) fn check(self) -> Result<Params, ApiError> {
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            return Err(ApiError::field(
                "stream_options",
                "`stream_options` is only allowed when `stream` is true",
            ));
        }
        let (include_usage, continuous_usage) = match self.stream_options {
            Some(options) => (
                options.include_usage.unwrap_or(false),
                options.continuous_usage_stats.unwrap_or(false),
            ),
            None => (false, false),
        };
        if continuous_usage && !include_usage {
            return Err(ApiError::field(
                "stream_options.continuous_usage_stats",
                "`stream_options.continuous_usage_stats` is only allowed when \
                 `stream_options.include_usage` is true",
            ));
        }
        let penalty = |penalty: Option<Number<-2, 2>>| penalty.map_or(0.0, |p| p.0 as f32);
        let mut sampling = SamplingParams {
            temperature: self.temperature.map_or(1.0, |t| t.0 as f32),
            top_p: self.top_p.map_or(1.0, |p| p.0 as f32),
            // Other servers use -1 for "off".
            top_k: self
                .top_k
                .and_then(|k| usize::try_from(k.0).ok())
                .unwrap_or(0),
            min_p: self.min_p.map_or(0.0, |p| p.0 as f32),
            presence_penalty: penalty(self.presence_penalty),
            frequency_penalty: penalty(self.frequency_penalty),
            logit_bias: self.logit_bias.map_or_else(Vec::new, |bias| bias.0),
            seed: self
                .seed
                .map_or_else(rand::random, |seed| seed.0.cast_unsigned()),
            max_tokens: 0,
            stop: self.stop.map_or_else(Vec::new, |stop| stop.0),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            ..SamplingParams::default()
        };
        let peers = self.peers.check(&mut sampling)?;
        Ok(Params {
            model: self.model.map_or_else(String::new, |model| model.0),
            sampling,
            max_tokens: None,
            n: 1,
            stream,
            checks: None,
            constraint_field: "response_format",
            include_usage,
            continuous_usage,
            token_ids: false,
            thinking_budget: None,
            peers,
        })
    }
}

impl Params {
    /// Checks lengths, and that the model has all tokens that are named; looks forbidden words up
    /// in its vocabulary.
    ///
    /// # Errors
    /// [`ApiError::Field`].
    pub(crate) fn bind(&mut self, tokenizer: &Arc<Tokenizer>) -> Result<(), ApiError> {
        let min = self.sampling.min_tokens;
        if let Some(max) = self.max_tokens.filter(|max| *max < min) {
            let message = format!("`min_tokens` is {min}, more than the {max} that are allowed");
            return Err(ApiError::field("min_tokens", message));
        }
        let check = |field: &str, id: u32| {
            let wrong = |e: TokenizerError| ApiError::field(field, format!("`{field}`: {e}"));
            tokenizer.check_id(id).map_err(wrong)
        };
        for (id, _) in &self.sampling.logit_bias {
            check("logit_bias", *id)?;
        }
        for id in &self.sampling.stop_token_ids {
            check("stop_token_ids", *id)?;
        }
        let words = &self.peers.bad_words;
        self.sampling.bad_words = (!words.is_empty()).then(|| BadWords::new(words, tokenizer));
        Ok(())
    }

    /// Whether prompts are to be truncated.
    pub(crate) fn truncates(&self) -> bool {
        self.peers.truncates()
    }

    /// Drops the beginning of a prompt, if that was asked for.
    pub(crate) fn truncate(&self, prompt: &mut Vec<u32>, max_model_len: usize) {
        let answer = self.max_tokens.unwrap_or(1);
        self.peers
            .truncate(prompt, max_model_len.saturating_sub(answer));
    }

    /// The sampling parameters of choice `index`, with its own seed so that choices differ.
    pub(crate) fn sampling_of(&self, index: usize, max_tokens: usize) -> SamplingParams {
        let mut sampling = self.sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(index as u64);
        sampling.max_tokens = max_tokens;
        sampling
    }
}

/// `{"50256": -100}`: token ids as keys, -100 to 100.
#[derive(Clone, Debug)]
struct LogitBias(Vec<(u32, f32)>);

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = format!("an object of token ids and numbers from -{MAX_BIAS} to {MAX_BIAS}");
        let value = Value::deserialize(deserializer)?;
        let Value::Object(object) = &value else {
            return Err(D::Error::invalid_type(
                unexpected(&value),
                &expected.as_str(),
            ));
        };
        if object.len() > MAX_BIASES {
            let allowed = format!("tokens; allowed: up to {MAX_BIASES}");
            return Err(D::Error::invalid_length(object.len(), &allowed.as_str()));
        }
        let entry = |(key, bias): (&String, &Value)| {
            let number = bias.as_f64().filter(|b| b.abs() <= MAX_BIAS);
            let id = key.parse::<u32>().ok();
            let entry = id.zip(number).map(|(id, bias)| (id, bias as f32));
            entry.ok_or_else(|| {
                let (key, bias) = (shortened(key), shortened(&bias.to_string()));
                message::<D::Error>(format_args!(
                    "{FIELD} must be {expected}; it has `{key}: {bias}`"
                ))
            })
        };
        let entries: Result<Vec<_>, _> = object.iter().map(entry).collect();
        entries.map(Self)
    }
}

impl JsonSchema for LogitBias {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "LogitBias".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
            "maxProperties": MAX_BIASES,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        })
    }
}

/// Strings at which an answer ends.
#[derive(Clone, Debug)]
struct Stops(Vec<String>);

impl<'de> Deserialize<'de> for Stops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = format!("a string or an array of up to {MAX_STOPS} strings");
        let stops = match Value::deserialize(deserializer)? {
            Value::String(stop) => vec![stop],
            Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map(str::to_string))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| message::<D::Error>(format_args!("{FIELD} must be {expected}")))?,
            other => {
                return Err(D::Error::invalid_type(
                    unexpected(&other),
                    &expected.as_str(),
                ));
            }
        };
        if stops.len() > MAX_STOPS {
            let allowed = format!("strings; allowed: up to {MAX_STOPS}");
            return Err(D::Error::invalid_length(stops.len(), &allowed.as_str()));
        }
        let fits = |stop: &String| (1..=MAX_STOP_BYTES).contains(&stop.len());
        if !stops.iter().all(fits) {
            return Err(message(format_args!(
                "each string of {FIELD} must have 1 to {MAX_STOP_BYTES} bytes"
            )));
        }
        Ok(Self(stops))
    }
}

impl JsonSchema for Stops {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Stops".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A character has up to four bytes.
        let stop = json_schema!({
            "type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES / 4,
        });
        json_schema!({"anyOf": [stop, {"type": "array", "items": stop, "maxItems": MAX_STOPS}]})
    }
}
