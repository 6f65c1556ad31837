//! The fields that chat completions, completions and responses share.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::error::ApiError;
use super::request::{FIELD, Integer, ModelName, Number, message, unexpected};
use realign_engine::request::SamplingParams;
use realign_model::Tokenizer;
use realign_model::tokenizer::TokenizerError;

/// Maximum number of choices per prompt.
pub(crate) const MAX_CHOICES: i64 = 8;
/// Maximum number of stop strings, as with OpenAI.
const MAX_STOPS: usize = 4;
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
    model: ModelName,
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
}

/// `stream_options`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// The shared fields, validated.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// `model` as sent.
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
}

impl Common {
    /// Validates what depends on several fields. The result has one choice and the route's default
    /// length.
    ///
    /// # Errors
    /// For `stream_options` without `stream`.
    pub(crate) fn check(self) -> Result<Params, ApiError> {
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            return Err(ApiError::field(
                "stream_options",
                "`stream_options` is only allowed when `stream` is true",
            ));
        }
        let options = self.stream_options.and_then(|o| o.include_usage);
        let penalty = |penalty: Option<Number<-2, 2>>| penalty.map_or(0.0, |p| p.0 as f32);
        Ok(Params {
            model: self.model.0,
            sampling: SamplingParams {
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
                grammar: None,
                seed: self
                    .seed
                    .map_or_else(rand::random, |seed| seed.0.cast_unsigned()),
                max_tokens: 0,
                stop: self.stop.map_or_else(Vec::new, |stop| stop.0),
                ignore_eos: self.ignore_eos.unwrap_or(false),
                top_logprobs: None,
            },
            max_tokens: None,
            n: 1,
            stream,
            include_usage: options.unwrap_or(false),
        })
    }
}

impl Params {
    /// Checks that the model has all biased tokens.
    ///
    /// # Errors
    /// [`ApiError::Field`].
    pub(crate) fn check_bias(&self, tokenizer: &Tokenizer) -> Result<(), ApiError> {
        let mut ids = self.sampling.logit_bias.iter().map(|(id, _)| *id);
        let check = |id| tokenizer.check_id(id);
        let wrong = |e: TokenizerError| ApiError::field("logit_bias", format!("`logit_bias`: {e}"));
        ids.try_for_each(check).map_err(wrong)
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
        let entry = |(id, bias): (&String, &Value)| {
            let bias = bias.as_f64().filter(|b| b.abs() <= MAX_BIAS);
            let id = id.parse::<u32>().ok();
            id.zip(bias).map(|(id, bias)| (id, bias as f32))
        };
        let entries: Option<Vec<_>> = object.iter().map(entry).collect();
        entries
            .map(Self)
            .ok_or_else(|| message(format_args!("{FIELD} must be {expected}")))
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
