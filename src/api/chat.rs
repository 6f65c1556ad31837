//! `POST /v1/chat/completions`: from the body to prompt tokens.

use serde_json::Value;

use super::AppState;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::params::Params;
use crate::model::chat::ChatError;
use crate::model::{ChatMessage, ChatRole};

const REFUSED: [&str; 9] = [
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "logit_bias",
    "suffix",
    "audio",
    "prediction",
    "web_search_options",
];

/// A checked request for a chat completion.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) params: Params,
    messages: Vec<ChatMessage>,
}

impl ChatRequest {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let fields = Fields::root(body)?;
        fields.refuse(&REFUSED)?;
        refuse_formats(&fields)?;
        let mut params = Params::read(&fields)?;
        // The newer name wins, as `max_tokens` is deprecated.
        if let Some(most) = fields.count("max_completion_tokens", 1..=i64::MAX)? {
            params.max_tokens = Some(most);
        }
        params.sampling.top_logprobs = logprobs(&fields)?;
        Ok(Self {
            params,
            messages: messages(&fields)?,
        })
    }

    /// The prompt's tokens. Slow for long conversations: call it where blocking is allowed.
    pub(crate) fn encode(&self, state: &AppState) -> Result<Vec<u32>, ApiError> {
        state
            .chat
            .encode_chat(&state.tokenizer, &self.messages, true)
            .map_err(|error| chat_error(&error))
    }

    /// Most tokens to generate after a prompt of this length: if the request does not say, whatever
    /// is left of the context.
    pub(crate) fn max_tokens(&self, prompt: usize, max_model_len: usize) -> usize {
        let room = max_model_len.saturating_sub(prompt);
        // At least 1, so that the engine refuses a prompt that fills the context.
        self.params.max_tokens.unwrap_or(room.max(1))
    }
}

fn chat_error(error: &ChatError) -> ApiError {
    if error.is_client_fault() {
        ApiError::field("messages", error.to_string())
    } else {
        ApiError::Internal(error.to_string())
    }
}

fn refuse_formats(fields: &Fields<'_>) -> Result<(), ApiError> {
    if let Some(format) = fields.get("response_format") {
        let kind = Fields::nested(format, "response_format")?.string("type")?;
        if kind != "text" {
            return Err(ApiError::Unsupported {
                param: "response_format".into(),
                detail: " other than {\"type\": \"text\"}".into(),
            });
        }
    }
    match fields.get("modalities") {
        Some(Value::Array(kinds)) if kinds.iter().all(|kind| kind == "text") => Ok(()),
        None => Ok(()),
        Some(_) => Err(ApiError::Unsupported {
            param: "modalities".into(),
            detail: " other than [\"text\"]".into(),
        }),
    }
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let top = fields.count("top_logprobs", 0..=20)?;
    match (fields.boolean("logprobs")?.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::field(
            "top_logprobs",
            "`top_logprobs` is only allowed when `logprobs` is true",
        )),
    }
}

fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let value = fields.required("messages")?;
    let items = value
        .as_array()
        .ok_or_else(|| wrong_type("messages", "an array of messages", value))?;
    if items.is_empty() {
        return Err(ApiError::field(
            "messages",
            "`messages` must have at least one message",
        ));
    }
    let read = |(i, item)| message(item, &format!("messages[{i}]"));
    items.iter().enumerate().map(read).collect()
}

fn message(item: &Value, place: &str) -> Result<ChatMessage, ApiError> {
    let fields = Fields::nested(item, place)?;
    let role = match fields.string("role")? {
        "system" | "developer" => ChatRole::System,
        "user" => ChatRole::User,
        "assistant" => ChatRole::Assistant,
        other => {
            let path = fields.path("role");
            let shown: String = other.chars().take(64).collect();
            let allowed = "`system`, `developer`, `user`, `assistant`";
            let message = format!("`{path}` is {shown:?}; allowed: {allowed}");
            return Err(ApiError::field(path, message));
        }
    };
    fields.refuse(&["tool_calls", "function_call", "audio"])?;
    let content = match fields.required("content")? {
        Value::String(text) => text.clone(),
        Value::Array(parts) => text_parts(parts, &fields.path("content"))?,
        other => {
            let expected = "a string or an array of text parts";
            return Err(wrong_type(&fields.path("content"), expected, other));
        }
    };
    Ok(ChatMessage::new(role, content))
}

fn text_parts(parts: &[Value], place: &str) -> Result<String, ApiError> {
    let mut content = String::new();
    for (i, part) in parts.iter().enumerate() {
        let fields = Fields::nested(part, &format!("{place}[{i}]"))?;
        if fields.string("type")? != "text" {
            return Err(ApiError::Unsupported {
                param: fields.path("type"),
                detail: " other than `text`".into(),
            });
        }
        content.push_str(fields.string("text")?);
    }
    Ok(content)
}
