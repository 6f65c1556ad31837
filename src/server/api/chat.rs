//! `POST /v1/chat/completions`: from the body to prompt tokens.

use serde_json::{Value, json};

use super::AppState;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::params::Params;
use super::tools::{Format, Layout, Tools};
use realign_model::chat::ChatError;
use realign_model::{ChatMessage, ChatRole};

const REFUSED: [&str; 6] = [
    "functions",
    "function_call",
    "suffix",
    "audio",
    "prediction",
    "web_search_options",
];

/// A checked request for a chat completion.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) params: Params,
    pub(crate) tools: Tools,
    pub(crate) format: Format,
    pub(crate) messages: Vec<ChatMessage>,
}

impl ChatRequest {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let fields = Fields::root(body)?;
        fields.refuse(&REFUSED)?;
        refuse_modalities(&fields)?;
        let mut params = Params::read(&fields)?;
        // The newer name wins, as `max_tokens` is deprecated.
        if let Some(most) = fields.count("max_completion_tokens", 1..=i64::MAX)? {
            params.max_tokens = Some(most);
        }
        params.sampling.top_logprobs = logprobs(&fields)?;
        let format = match fields.get("response_format") {
            Some(format) => Format::read(format, "response_format", Layout::Nested)?,
            None => Format::Text,
        };
        Ok(Self {
            params,
            tools: Tools::read(&fields, Layout::Nested)?,
            format,
            messages: messages(&fields)?,
        })
    }

    /// The prompt's tokens. Slow for long conversations: call it where blocking is allowed.
    pub(crate) fn encode(&self, state: &AppState) -> Result<Vec<u32>, ApiError> {
        encode(state, &self.messages, &self.tools.definitions())
            .map_err(|error| chat_error(&error, "messages"))
    }

    /// Most tokens to generate after a prompt of this length: if the request does not say, whatever
    /// is left of the context.
    pub(crate) fn max_tokens(&self, prompt: usize, max_model_len: usize) -> usize {
        let room = max_model_len.saturating_sub(prompt);
        // At least 1, so that the engine refuses a prompt that fills the context.
        self.params.max_tokens.unwrap_or(room.max(1))
    }
}

/// A conversation as the model's tokens, up to the assistant's turn.
pub(crate) fn encode(
    state: &AppState,
    messages: &[ChatMessage],
    tools: &[Value],
) -> Result<Vec<u32>, ChatError> {
    state
        .chat
        .encode_chat_with(&state.tokenizer, messages, tools, true)
}

/// What a conversation that cannot be laid out means for the field that it came in.
pub(crate) fn chat_error(error: &ChatError, param: &str) -> ApiError {
    if error.is_client_fault() {
        ApiError::field(param, error.to_string())
    } else {
        ApiError::Internal(error.to_string())
    }
}

fn refuse_modalities(fields: &Fields<'_>) -> Result<(), ApiError> {
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

/// `messages`, which must be there.
pub(crate) fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
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
    let role = role(&fields)?;
    fields.refuse(&["function_call", "audio"])?;
    let calls = match role {
        ChatRole::Assistant => calls(&fields)?,
        ChatRole::System | ChatRole::User | ChatRole::Tool => None,
    };
    let content = match fields.get("content") {
        // An assistant that only called functions said nothing.
        None if calls.is_some() => String::new(),
        _ => content(fields.required("content")?, &fields.path("content"))?,
    };
    let mut message = ChatMessage::new(role, content);
    message.tool_calls = calls;
    if role == ChatRole::Tool {
        message.tool_call_id = Some(fields.string("tool_call_id")?.to_string());
    }
    Ok(message)
}

/// The role of a message.
pub(crate) fn role(fields: &Fields<'_>) -> Result<ChatRole, ApiError> {
    match fields.string("role")? {
        "system" | "developer" => Ok(ChatRole::System),
        "user" => Ok(ChatRole::User),
        "assistant" => Ok(ChatRole::Assistant),
        "tool" => Ok(ChatRole::Tool),
        other => {
            let path = fields.path("role");
            let shown: String = other.chars().take(64).collect();
            let allowed = "`system`, `developer`, `user`, `assistant`, `tool`";
            let message = format!("`{path}` is {shown:?}; allowed: {allowed}");
            Err(ApiError::field(path, message))
        }
    }
}

/// An assistant's earlier calls.
fn calls(fields: &Fields<'_>) -> Result<Option<Vec<Value>>, ApiError> {
    let path = fields.path("tool_calls");
    let items = match fields.get("tool_calls") {
        None => return Ok(None),
        Some(Value::Array(items)) if items.is_empty() => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type(&path, "an array of calls", other)),
    };
    let read = |(i, item): (usize, &Value)| {
        let outer = Fields::nested(item, &format!("{path}[{i}]"))?;
        let function = outer.required("function")?;
        call(&Fields::nested(function, &outer.path("function"))?)
    };
    items
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<_, _>>()
        .map(Some)
}

/// A call of `name` with `arguments` (JSON text), as chat templates read it.
pub(crate) fn call(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let name = fields.string("name")?;
    let arguments = fields.string("arguments")?;
    let parsed: Option<Value> = serde_json::from_str(arguments).ok();
    let Some(arguments) = parsed.filter(Value::is_object) else {
        let path = fields.path("arguments");
        let message = format!("`{path}` must be the text of a JSON object");
        return Err(ApiError::field(path, message));
    };
    Ok(json!({"type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// Text, as a string or in parts.
pub(crate) fn content(value: &Value, place: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => text_parts(parts, place),
        other => {
            let expected = "a string or an array of text parts";
            Err(wrong_type(place, expected, other))
        }
    }
}

fn text_parts(parts: &[Value], place: &str) -> Result<String, ApiError> {
    let mut content = String::new();
    for (i, part) in parts.iter().enumerate() {
        let fields = Fields::nested(part, &format!("{place}[{i}]"))?;
        let text = match fields.string("type")? {
            "text" | "input_text" | "output_text" => "text",
            "refusal" => "refusal",
            _ => {
                return Err(ApiError::Unsupported {
                    param: fields.path("type"),
                    detail: " other than text".into(),
                });
            }
        };
        content.push_str(fields.string(text)?);
    }
    Ok(content)
}
