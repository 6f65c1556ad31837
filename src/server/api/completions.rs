//! `POST /v1/completions`: reads the body and encodes the prompts.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::AppState;
use super::constraints::ConstraintFields;
use super::error::ApiError;
use super::params::{Common, MAX_CHOICES, Params};
use super::request::{
    self, Count, FIELD, NotFilledIn, Refused, Unknown, message, unexpected, wrong_type,
};
use super::tools::{AnswerFormat, ResponseFormat, Tools};
use realign_model::Tokenizer;
use realign_model::tokenizer::TokenizerError;

/// Default of `max_tokens`, as with OpenAI.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Maximum number of sequences in one request.
const MAX_SEQUENCES: usize = 128;
const EXPECTED: &str = "a string, an array of strings, an array of token ids, or an array of such";

/// One prompt.
#[derive(Debug)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A completion's body.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "CompletionRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct Body {
    #[serde(rename = "suffix")]
    #[schemars(skip)]
    _suffix: Option<Refused<NotFilledIn>>,
    #[serde(rename = "..common")]
    #[schemars(flatten)]
    common: Common,
    /// Default 16; 0 only with `echo` or `prompt_logprobs`.
    max_tokens: Option<Count<0, { i64::MAX }>>,
    n: Option<Count<1, MAX_CHOICES>>,
    /// Only the value of `n`.
    best_of: Option<Count<1, { i64::MAX }>>,
    /// OpenAI takes up to 5.
    logprobs: Option<Count<0, 20>>,
    /// Repeat the prompt before the answer, with `logprobs` also its tokens' log-probabilities.
    echo: Option<bool>,
    /// Given, control tokens that a text spells out are control tokens, as for prompts of a client's own
    /// template; true also puts begin-of-text first. Not given, they are text.
    add_special_tokens: Option<bool>,
    /// Of each token of the prompt, how likely it is, and this many of the most likely ones.
    prompt_logprobs: Option<Count<0, 20>>,
    /// Whether to return the ids of the prompts' and the answers' tokens.
    return_token_ids: Option<bool>,
    response_format: Option<ResponseFormat>,
    #[serde(rename = "..constraints")]
    #[schemars(flatten)]
    constraints: ConstraintFields,
    pub(super) prompt: Texts,
}

/// A checked request for completions.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) params: Params,
    pub(crate) format: AnswerFormat,
    /// The field that `format` came in.
    pub(crate) format_field: &'static str,
    pub(crate) unknown: Unknown,
    prompts: Vec<Prompt>,
    /// Whether control literals are control tokens, and then whether begin-of-text comes first.
    special: Option<bool>,
    echo: bool,
    /// Alternatives to the prompt's tokens in vLLM's form.
    pub(crate) prompt_logprobs: Option<usize>,
}

impl CompletionRequest {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let (body, unknown): (Body, Unknown) = request::read_all(body)?;
        let mut params = body.common.check()?;
        params.max_tokens = body.max_tokens.map(|max| max.0);
        params.n = body.n.map_or(1, |n| n.0);
        if body.best_of.is_some_and(|best| best.0 != params.n) {
            return Err(ApiError::Unsupported {
                param: "best_of".into(),
                detail: " other than `n` (every choice is returned; ask for `n` and pick one)"
                    .into(),
            });
        }
        params.sampling.top_logprobs = body.logprobs.map(|top| top.0);
        params.token_ids = body.return_token_ids.unwrap_or(false);
        let echo = body.echo.unwrap_or(false);
        let prompt_logprobs = body.prompt_logprobs.map(|top| top.0);
        if params.max_tokens == Some(0) && !echo && prompt_logprobs.is_none() {
            let message = "`max_tokens` is 0: allowed only with `echo` or `prompt_logprobs`";
            return Err(ApiError::field("max_tokens", message));
        }
        let scores_prompt =
            prompt_logprobs.is_some() || (echo && params.sampling.top_logprobs.is_some());
        if scores_prompt && params.stream {
            let param = if prompt_logprobs.is_some() {
                "prompt_logprobs"
            } else {
                "echo"
            };
            return Err(ApiError::Unsupported {
                param: param.into(),
                detail: " with log-probabilities of the prompt together with `stream`".into(),
            });
        }
        if echo && params.truncates() {
            return Err(ApiError::Unsupported {
                param: "truncate_prompt_tokens".into(),
                detail: " together with `echo`".into(),
            });
        }
        let prompts = body.prompt.prompts("prompt")?;
        if prompts.len() * params.n > MAX_SEQUENCES {
            let message = format!(
                "{} prompts times n = {} are too many sequences; allowed: up to {MAX_SEQUENCES}",
                prompts.len(),
                params.n
            );
            return Err(ApiError::field("prompt", message));
        }
        let tools = Tools::default();
        let (format, format_field) = body.constraints.check(body.response_format, &tools)?;
        Ok(Self {
            params,
            format,
            format_field,
            unknown,
            prompts,
            special: body.add_special_tokens,
            echo,
            prompt_logprobs,
        })
    }

    /// Each prompt's tokens. Slow for long prompts, so call it on a blocking thread.
    pub(crate) fn encode(&self, state: &AppState) -> Result<Vec<Vec<u32>>, ApiError> {
        let encode = |prompt: &Prompt| match (prompt, self.special) {
            (Prompt::Text(text), Some(begin)) => state
                .tokenizer
                .encode_templated(text, begin)
                .map_err(|error| ApiError::field("prompt", error.to_string())),
            _ => prompt.encode(&state.tokenizer, "prompt"),
        };
        self.prompts.iter().map(encode).collect()
    }

    /// How many alternatives to each of the prompt's tokens are wanted; `None` if the prompt is not
    /// scored.
    pub(crate) fn scores_prompt(&self) -> Option<usize> {
        let echoed = self.params.sampling.top_logprobs.filter(|_| self.echo);
        self.prompt_logprobs.max(echoed)
    }

    /// The text of each prompt if it is to be repeated before the answer, otherwise nothing.
    pub(crate) fn echo(
        &self,
        tokenizer: &Tokenizer,
        encoded: &[Vec<u32>],
    ) -> Result<Vec<String>, ApiError> {
        if !self.echo {
            return Ok(Vec::new());
        }
        let text = |(prompt, ids): (&Prompt, &Vec<u32>)| match prompt {
            Prompt::Text(text) => Ok(text.clone()),
            Prompt::Ids(_) => tokenizer
                .decode(ids)
                .map_err(|e| ApiError::field("prompt", e.to_string())),
        };
        self.prompts.iter().zip(encoded).map(text).collect()
    }

    /// Maximum number of tokens to generate after a prompt of `prompt` tokens.
    pub(crate) fn max_tokens(&self, prompt: usize, max_model_len: usize) -> usize {
        let room = max_model_len.saturating_sub(prompt);
        let default = room.clamp(1, DEFAULT_MAX_TOKENS);
        self.params.max_tokens.unwrap_or(default)
    }
}

impl Prompt {
    /// The prompt's token ids; `param` is the field that it came in.
    pub(crate) fn encode(&self, tokenizer: &Tokenizer, param: &str) -> Result<Vec<u32>, ApiError> {
        let refused = |error: TokenizerError| ApiError::field(param, error.to_string());
        match self {
            Prompt::Text(text) => tokenizer.encode_prompt(text).map_err(refused),
            Prompt::Ids(ids) => {
                for id in ids {
                    tokenizer.check_id(*id).map_err(refused)?;
                }
                Ok(ids.clone())
            }
        }
    }
}

/// `prompt` or `input`: texts or token ids, one or several.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Texts(Value);

impl Texts {
    /// The prompts; `name` is the field that they came in.
    ///
    /// # Errors
    /// If the value has none of the forms in the schema.
    pub(crate) fn prompts(&self, name: &str) -> Result<Vec<Prompt>, ApiError> {
        let item = |(i, item): (usize, &Value)| match item {
            Value::String(text) => Ok(Prompt::Text(text.clone())),
            Value::Array(inner) => Ok(Prompt::Ids(ids(inner, &format!("{name}[{i}]"))?)),
            other => Err(wrong_type(
                &format!("{name}[{i}]"),
                "a string or an array of token ids",
                other,
            )),
        };
        match &self.0 {
            Value::String(text) => Ok(vec![Prompt::Text(text.clone())]),
            Value::Array(items) if items.is_empty() => {
                Err(ApiError::field(name, format!("`{name}` must not be empty")))
            }
            Value::Array(items) if items.iter().all(Value::is_number) => {
                Ok(vec![Prompt::Ids(ids(items, name)?)])
            }
            Value::Array(items) => items.iter().enumerate().map(item).collect(),
            other => Err(wrong_type(name, EXPECTED, other)),
        }
    }
}

impl JsonSchema for Texts {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Texts".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = json_schema!({"type": "string", "minLength": 1});
        let mut ids = TokenIds::json_schema(generator);
        ids.insert("minItems".into(), 1.into());
        json_schema!({"anyOf": [
            text,
            {"type": "array", "items": text, "minItems": 1},
            ids,
            {"type": "array", "items": ids, "minItems": 1},
        ]})
    }
}

/// An array of token ids.
#[derive(Clone, Debug)]
pub(crate) struct TokenIds(pub(crate) Vec<u32>);

impl<'de> Deserialize<'de> for TokenIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let Value::Array(items) = &value else {
            let expected = "an array of token ids";
            return Err(D::Error::invalid_type(unexpected(&value), &expected));
        };
        token_ids(items)
            .map(Self)
            .ok_or_else(|| message(format_args!("{FIELD} {ONLY_IDS}")))
    }
}

impl JsonSchema for TokenIds {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "TokenIds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let id = json_schema!({"type": "integer", "minimum": 0, "maximum": u32::MAX});
        json_schema!({"type": "array", "items": id})
    }
}

const ONLY_IDS: &str = "must hold token ids only";

fn ids(items: &[Value], path: &str) -> Result<Vec<u32>, ApiError> {
    token_ids(items).ok_or_else(|| ApiError::field(path, format!("`{path}` {ONLY_IDS}")))
}

fn token_ids(items: &[Value]) -> Option<Vec<u32>> {
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
    items.iter().map(id).collect()
}
