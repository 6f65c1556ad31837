//! `POST /v1/completions`: from the body to prompt tokens.

use serde_json::Value;

use super::AppState;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::params::Params;
use realign_model::Tokenizer;
use realign_model::tokenizer::TokenizerError;

/// Tokens generated at most if the request does not say, as OpenAI has it.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Most sequences that one request may ask for.
const MAX_SEQUENCES: usize = 128;
const EXPECTED: &str = "a string, an array of strings, an array of token ids, or an array of such";

/// One prompt.
#[derive(Debug)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A checked request for completions.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) params: Params,
    prompts: Vec<Prompt>,
    echo: bool,
}

impl CompletionRequest {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let fields = Fields::root(body)?;
        fields.refuse(&["suffix"])?;
        let mut params = Params::read(&fields)?;
        let best_of = fields.count("best_of", 1..=i64::MAX)?;
        if best_of.is_some_and(|best| best != params.n) {
            return Err(ApiError::Unsupported {
                param: "best_of".into(),
                detail: " other than `n`".into(),
            });
        }
        params.sampling.top_logprobs = fields.count("logprobs", 0..=5)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        if echo && params.sampling.top_logprobs.is_some() {
            return Err(ApiError::Unsupported {
                param: "echo".into(),
                detail: " together with `logprobs`".into(),
            });
        }
        let prompts = prompts(&fields, "prompt")?;
        if prompts.len() * params.n > MAX_SEQUENCES {
            let message = format!(
                "{} prompts times n = {} are too many sequences; allowed: up to {MAX_SEQUENCES}",
                prompts.len(),
                params.n
            );
            return Err(ApiError::field("prompt", message));
        }
        Ok(Self {
            params,
            prompts,
            echo,
        })
    }

    /// Each prompt's tokens. Slow for long prompts: call it where blocking is allowed.
    pub(crate) fn encode(&self, state: &AppState) -> Result<Vec<Vec<u32>>, ApiError> {
        let encode = |prompt: &Prompt| prompt.encode(&state.tokenizer, "prompt");
        self.prompts.iter().map(encode).collect()
    }

    /// The text of each prompt, if it is to stand before the answer.
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

    /// Most tokens to generate after a prompt of this length.
    pub(crate) fn max_tokens(&self, prompt: usize, max_model_len: usize) -> usize {
        let room = max_model_len.saturating_sub(prompt);
        let default = room.clamp(1, DEFAULT_MAX_TOKENS);
        self.params.max_tokens.unwrap_or(default)
    }
}

impl Prompt {
    /// Its tokens; `param` is the field that it came in.
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
pub(crate) fn prompts(fields: &Fields<'_>, name: &str) -> Result<Vec<Prompt>, ApiError> {
    let item = |(i, item): (usize, &Value)| match item {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(inner) => Ok(Prompt::Ids(ids(inner, &format!("{name}[{i}]"))?)),
        other => Err(wrong_type(
            &format!("{name}[{i}]"),
            "a string or an array of token ids",
            other,
        )),
    };
    match fields.required(name)? {
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

/// Token ids.
pub(crate) fn ids(items: &[Value], place: &str) -> Result<Vec<u32>, ApiError> {
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
    items
        .iter()
        .map(id)
        .collect::<Option<Vec<u32>>>()
        .ok_or_else(|| ApiError::field(place, format!("`{place}` must hold token ids only")))
}
