//! `POST /v1/chat/completions`: reads the body and encodes the conversation.

mod messages;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::AppState;
use super::constraints::ConstraintFields;
use super::error::ApiError;
use super::params::{Common, MAX_CHOICES, Params};
use super::request::{
    self, Count, Integer, Limit, List, NotKept, NotSearched, Refused, Unknown, unsupported,
};
use super::sent;
use super::template::TemplateFields;
use super::tools::{AnswerFormat, NestedTool, ResponseFormat, ToolFields, Tools};
pub(crate) use messages::{Call, Content, Message, Part, Role, conversation, link_results};
use realign_model::ChatMessage;
use realign_model::chat::{ChatError, Turn};

/// A chat completion's body.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ChatRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct Body {
    #[serde(rename = "..unsupported")]
    #[schemars(skip)]
    _unsupported: UnsupportedFields,
    #[serde(rename = "modalities")]
    #[schemars(skip)]
    _modalities: Option<TextOnly>,
    #[serde(rename = "..common")]
    #[schemars(flatten)]
    common: Common,
    /// Older name of `max_completion_tokens`; -1 sets no limit, as with llama.cpp.
    max_tokens: Option<Limit>,
    n: Option<Count<1, MAX_CHOICES>>,
    /// Default: what is left of the context.
    max_completion_tokens: Option<Count<1, { i64::MAX }>>,
    /// Only with `logprobs`.
    top_logprobs: Option<Count<0, 20>>,
    logprobs: Option<bool>,
    /// Of each token of the prompt, how likely it is, and this many of the most likely ones; not with
    /// `stream`.
    prompt_logprobs: Option<Count<0, 20>>,
    /// Whether to return the ids of the prompt's and the answer's tokens.
    return_token_ids: Option<bool>,
    /// Most tokens that a model which thinks may spend on thoughts; it is made to end them there.
    thinking_token_budget: Option<Count<0, { i64::MAX }>>,
    /// The same, as other servers name it.
    thinking_budget: Option<Count<0, { i64::MAX }>>,
    /// The same, as other servers name it.
    thinking_budget_tokens: Option<Integer<-1, { i64::MAX }>>,
    response_format: Option<ResponseFormat>,
    #[serde(rename = "..constraints")]
    #[schemars(flatten)]
    constraints: ConstraintFields,
    #[serde(rename = "..template")]
    #[schemars(flatten)]
    template: TemplateFields,
    #[serde(rename = "..tools")]
    #[schemars(flatten)]
    pub(super) tools: ToolFields,
    #[schemars(extend("minItems" = 1))]
    messages: List<Message>,
}

/// OpenAI's fields that this server does not support.
#[derive(Deserialize)]
struct UnsupportedFields {
    #[serde(rename = "functions")]
    _functions: Option<Refused>,
    #[serde(rename = "function_call")]
    _function_call: Option<Refused>,
    #[serde(rename = "suffix")]
    _suffix: Option<Refused>,
    #[serde(rename = "audio")]
    _audio: Option<Refused>,
    #[serde(rename = "prediction")]
    _prediction: Option<Refused>,
    #[serde(rename = "web_search_options")]
    _web_search_options: Option<Refused<NotSearched>>,
    #[serde(rename = "echo")]
    _echo: Option<Refused>,
    #[serde(rename = "store")]
    _store: Option<Refused<NotKept>>,
}

/// `modalities` with only text.
struct TextOnly;

impl<'de> Deserialize<'de> for TextOnly {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Array(kinds) if kinds.iter().all(|kind| kind == "text") => Ok(Self),
            _ => Err(unsupported(" other than [\"text\"]")),
        }
    }
}

/// A checked request for a chat completion.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) params: Params,
    pub(crate) tools: Tools,
    pub(crate) format: AnswerFormat,
    /// The field that `format` came in.
    pub(crate) format_field: &'static str,
    pub(crate) unknown: Unknown,
    pub(crate) template: TemplateFields,
    /// Alternatives to the prompt's tokens, if those are scored.
    pub(crate) prompt_logprobs: Option<usize>,
    pub(crate) messages: Vec<ChatMessage>,
}

impl ChatRequest {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let json = body;
        let (body, unknown): (Body, Unknown) = request::read_all(body)?;
        let mut params = body.common.check()?;
        params.max_tokens = request::same([
            (
                "max_completion_tokens",
                body.max_completion_tokens.map(|max| max.0),
            ),
            ("max_tokens", body.max_tokens.and_then(|max| max.0)),
        ])?;
        params.n = body.n.map_or(1, |n| n.0);
        params.sampling.top_logprobs = logprobs(body.logprobs, body.top_logprobs)?;
        params.token_ids = body.return_token_ids.unwrap_or(false);
        // llama.cpp's -1 sets no limit.
        let spelled = body.thinking_budget_tokens;
        let spelled = spelled.and_then(|budget| usize::try_from(budget.0).ok());
        params.thinking_budget = request::same([
            (
                "thinking_token_budget",
                body.thinking_token_budget.map(|budget| budget.0),
            ),
            (
                "thinking_budget",
                body.thinking_budget.map(|budget| budget.0),
            ),
            ("thinking_budget_tokens", spelled),
        ])?;
        let prompt_logprobs = body.prompt_logprobs.map(|top| top.0);
        if prompt_logprobs.is_some() && params.stream {
            return Err(ApiError::Unsupported {
                param: "prompt_logprobs".into(),
                detail: " together with `stream`".into(),
            });
        }
        let mut tools = Tools::check(body.tools)?;
        sent::functions::<NestedTool>(&mut tools, json.get("tools"));
        let (format, format_field) = body.constraints.check(body.response_format, &tools)?;
        Ok(Self {
            params,
            format,
            format_field,
            unknown,
            template: body.template,
            prompt_logprobs,
            tools,
            messages: conversation(body.messages, json.get("messages"))?,
        })
    }

    /// The text of the message that is continued, if one is that has a text.
    pub(crate) fn continued(&self) -> Option<&str> {
        let last = self.messages.last().filter(|_| self.template.continues());
        let text = last.map(|message| message.content.as_str());
        text.filter(|text| !text.trim().is_empty())
    }

    /// The request's unknown fields, without those that the chat template reads.
    ///
    /// # Errors
    /// If the operator has them refused.
    pub(crate) fn check_unknown(&mut self, state: &AppState) -> Result<Unknown, ApiError> {
        let mut unknown = std::mem::take(&mut self.unknown);
        unknown.without(|field| sent::is_shown(field, &state.chat, "].function"));
        unknown.check(state.unknown_fields)?;
        Ok(unknown)
    }

    /// The prompt's tokens. Slow for long conversations, so call it on a blocking thread.
    pub(crate) fn encode(&self, state: &AppState) -> Result<Vec<u32>, ApiError> {
        let turn = self.template.clone().turn(&state.chat)?;
        encode(state, &self.messages, &self.tools.definitions(), &turn)
            .map_err(|error| chat_error(&error, "messages"))
    }

    /// Maximum number of tokens to generate after a prompt of `prompt` tokens. Default: the rest of
    /// the context.
    pub(crate) fn max_tokens(&self, prompt: usize, max_model_len: usize) -> usize {
        let room = max_model_len.saturating_sub(prompt);
        // At least 1, so that the engine refuses a prompt that fills the context.
        self.params.max_tokens.unwrap_or(room.max(1))
    }
}

/// Encodes a conversation with the model's chat template, up to the assistant's turn.
pub(crate) fn encode(
    state: &AppState,
    messages: &[ChatMessage],
    tools: &[Value],
    turn: &Turn,
) -> Result<Vec<u32>, ChatError> {
    state
        .chat
        .encode_chat_with(&state.tokenizer, messages, tools, turn)
}

/// Maps the error of a conversation that cannot be encoded; `param` is the field that it came in.
pub(crate) fn chat_error(error: &ChatError, param: &str) -> ApiError {
    if error.is_client_fault() {
        ApiError::field(param, error.to_string())
    } else {
        ApiError::Internal(error.to_string())
    }
}

fn logprobs(wanted: Option<bool>, top: Option<Count<0, 20>>) -> Result<Option<usize>, ApiError> {
    let top = top.map(|top| top.0);
    if wanted.unwrap_or(false) {
        return Ok(Some(top.unwrap_or(0)));
    }
    if top.is_none_or(|top| top == 0) {
        return Ok(None);
    }
    Err(ApiError::field(
        "top_logprobs",
        "`top_logprobs` is only allowed when `logprobs` is true",
    ))
}
