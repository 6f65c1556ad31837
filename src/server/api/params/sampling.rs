//! Fields of sampling that vLLM, llama.cpp and others have and OpenAI has not.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::completions::TokenIds;
use super::super::error::ApiError;
use super::super::request::{Count, FIELD, Integer, message, unexpected};
use realign_engine::request::SamplingParams;

/// Maximum of the penalty for repetitions.
const MAX_REPETITION: f64 = 10.0;
/// Maximum number of stop tokens.
const MAX_STOP_TOKENS: usize = 1024;
/// Maximum number of forbidden words. Each is looked up in the whole vocabulary.
const MAX_BAD_WORDS: usize = 64;
/// Maximum length of a forbidden word, in bytes.
const MAX_BAD_WORD_BYTES: usize = 256;

/// The fields, as sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct PeerFields {
    /// Neither the end of the turn, nor a stop string or token, ends the answer before it has as
    /// many tokens.
    min_tokens: Option<Count<0, { i64::MAX }>>,
    /// Token ids at which the answer ends, also with `ignore_eos`.
    stop_token_ids: Option<StopTokens>,
    /// Whether the text includes the stop string, or the text of the stop token, that ended it.
    include_stop_str_in_output: Option<bool>,
    /// Divides the positive logits of tokens that are in the prompt or the answer, and multiplies
    /// negative ones; 1 is off.
    repetition_penalty: Option<RepetitionPenalty>,
    /// How many of the last tokens the penalties are for: -1, which is all, or 0, which switches them
    /// off. Other numbers are only allowed without a penalty.
    repeat_last_n: Option<Integer<{ i64::MIN }, { i64::MAX }>>,
    /// Whether the penalties are for line breaks, too. Only `true`, unless there is no penalty.
    penalize_nl: Option<bool>,
    /// Texts that the answer never contains.
    bad_words: Option<Words>,
    /// Whether control tokens are left out of the text. Default true.
    skip_special_tokens: Option<bool>,
    /// Keep only as many of the prompt's last tokens; -1 keeps what the context takes.
    truncate_prompt_tokens: Option<Integer<-1, { i64::MAX }>>,
}

/// What [`PeerFields`] ask for beyond [`SamplingParams`].
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerParams {
    pub(crate) bad_words: Vec<String>,
    truncation: Option<Truncation>,
}

/// How much of a prompt is kept.
#[derive(Clone, Copy, Debug)]
enum Truncation {
    Last(usize),
    Context,
}

impl PeerFields {
    /// Validates the fields and sets those that the engine knows.
    ///
    /// # Errors
    /// For a `truncate_prompt_tokens` of 0, which would leave no prompt, and for penalties of only the
    /// last tokens.
    pub(crate) fn check(self, sampling: &mut SamplingParams) -> Result<PeerParams, ApiError> {
        sampling.min_tokens = self.min_tokens.map_or(0, |min| min.0);
        sampling.stop_token_ids = self.stop_token_ids.map_or_else(Vec::new, |ids| ids.0);
        sampling.include_stop = self.include_stop_str_in_output.unwrap_or(false);
        sampling.repetition_penalty = self.repetition_penalty.map_or(1.0, |p| p.0);
        penalise_last(self.repeat_last_n.map_or(-1, |last| last.0), sampling)?;
        if self.penalize_nl == Some(false) && penalises(sampling) {
            return Err(ApiError::Unsupported {
                param: "penalize_nl".into(),
                detail: " other than `true` with a penalty".into(),
            });
        }
        sampling.show_control = !self.skip_special_tokens.unwrap_or(true);
        let truncation = match self.truncate_prompt_tokens {
            None => None,
            Some(Integer(0)) => {
                let message = "`truncate_prompt_tokens` is 0; allowed: 1 or more, and -1";
                return Err(ApiError::field("truncate_prompt_tokens", message));
            }
            Some(Integer(last)) => {
                Some(usize::try_from(last).map_or(Truncation::Context, Truncation::Last))
            }
        };
        Ok(PeerParams {
            bad_words: self.bad_words.map_or_else(Vec::new, |words| words.0),
            truncation,
        })
    }
}

/// Whether tokens are penalised for being there already.
fn penalises(sampling: &SamplingParams) -> bool {
    let penalties = (
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
    );
    penalties != (0.0, 0.0, 1.0)
}

/// Does what `repeat_last_n` asks for.
fn penalise_last(last: i64, sampling: &mut SamplingParams) -> Result<(), ApiError> {
    match last {
        -1 => {}
        0 => {
            sampling.presence_penalty = 0.0;
            sampling.frequency_penalty = 0.0;
            sampling.repetition_penalty = 1.0;
        }
        _ if !penalises(sampling) => {}
        _ => {
            return Err(ApiError::Unsupported {
                param: "repeat_last_n".into(),
                detail: " other than -1, which is all tokens, and 0, which is none, with a penalty"
                    .into(),
            });
        }
    }
    Ok(())
}

impl PeerParams {
    /// Whether prompts are to be truncated.
    pub(crate) fn truncates(&self) -> bool {
        self.truncation.is_some()
    }

    /// Drops the beginning of a prompt, if that was asked for. `room` is the number of tokens that
    /// the context takes before the answer.
    pub(crate) fn truncate(&self, prompt: &mut Vec<u32>, room: usize) {
        let keep = match self.truncation {
            None => return,
            Some(Truncation::Last(last)) => last,
            Some(Truncation::Context) => room.max(1),
        };
        prompt.drain(..prompt.len().saturating_sub(keep));
    }
}

/// Implements `JsonSchema` for an inlined type.
macro_rules! inline_schema {
    ($type:ty, $name:literal, $schema:expr) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

/// More than 0.
#[derive(Clone, Copy, Debug)]
struct RepetitionPenalty(f32);

impl<'de> Deserialize<'de> for RepetitionPenalty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let Some(number) = value.as_f64() else {
            return Err(D::Error::invalid_type(unexpected(&value), &"a number"));
        };
        // As the engine has it: it must not be rounded to 0.
        if number as f32 > 0.0 && number <= MAX_REPETITION {
            return Ok(Self(number as f32));
        }
        let allowed = format!("more than 0, up to {MAX_REPETITION}");
        let found = Unexpected::Float(number);
        Err(D::Error::invalid_value(found, &allowed.as_str()))
    }
}

inline_schema!(
    RepetitionPenalty,
    "RepetitionPenalty",
    json_schema!({"type": "number", "minimum": 1e-6, "maximum": MAX_REPETITION})
);

/// Ids of tokens at which an answer ends.
#[derive(Clone, Debug)]
struct StopTokens(Vec<u32>);

impl<'de> Deserialize<'de> for StopTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let TokenIds(ids) = TokenIds::deserialize(deserializer)?;
        if ids.len() > MAX_STOP_TOKENS {
            let allowed = format!("token ids; allowed: up to {MAX_STOP_TOKENS}");
            return Err(D::Error::invalid_length(ids.len(), &allowed.as_str()));
        }
        Ok(Self(ids))
    }
}

inline_schema!(
    StopTokens,
    "StopTokens",
    json_schema!({
        "type": "array",
        "maxItems": MAX_STOP_TOKENS,
        "items": {"type": "integer", "minimum": 0, "maximum": u32::MAX},
    })
);

/// Texts that an answer must not contain.
#[derive(Clone, Debug)]
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let expected = "an array of strings";
        let Value::Array(items) = &value else {
            return Err(D::Error::invalid_type(unexpected(&value), &expected));
        };
        if items.len() > MAX_BAD_WORDS {
            let allowed = format!("strings; allowed: up to {MAX_BAD_WORDS}");
            return Err(D::Error::invalid_length(items.len(), &allowed.as_str()));
        }
        let words = items.iter().map(|item| item.as_str().map(str::to_string));
        let words: Option<Vec<String>> = words.collect();
        let words =
            words.ok_or_else(|| message::<D::Error>(format_args!("{FIELD} must be {expected}")))?;
        let fits = |word: &String| (1..=MAX_BAD_WORD_BYTES).contains(&word.len());
        if !words.iter().all(fits) {
            return Err(message(format_args!(
                "each string of {FIELD} must have 1 to {MAX_BAD_WORD_BYTES} bytes"
            )));
        }
        Ok(Self(words))
    }
}

inline_schema!(
    Words,
    "Words",
    json_schema!({
        "type": "array",
        "maxItems": MAX_BAD_WORDS,
        // A character has up to four bytes.
        "items": {"type": "string", "minLength": 1, "maxLength": MAX_BAD_WORD_BYTES / 4},
    })
);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn penalties_for_the_last_tokens_are_done_or_refused() {
        let with = |presence: f32| SamplingParams {
            presence_penalty: presence,
            repetition_penalty: 1.0,
            ..SamplingParams::default()
        };
        for (last, presence, left) in [
            (-1, 0.5, Some(0.5)),
            (0, 0.5, Some(0.0)),
            (64, 0.0, Some(0.0)),
            (64, 0.5, None),
            (-2, 0.5, None),
        ] {
            let mut sampling = with(presence);
            let done = penalise_last(last, &mut sampling);
            let got = done.is_ok().then_some(sampling.presence_penalty);
            assert_eq!(got, left, "{last} with {presence}");
        }
        let refused = penalise_last(64, &mut with(0.5)).unwrap_err().to_string();
        assert!(refused.contains("repeat_last_n"), "{refused}");
        let read: Result<PeerFields, _> =
            super::super::super::request::read(&json!({"repeat_last_n": "all"}));
        assert!(read.is_err());
    }
}
