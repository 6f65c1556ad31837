//! `POST /v1/chat/completions`: reads the body and encodes the conversation.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::AppState;
use super::error::ApiError;
use super::params::{Common, MAX_CHOICES, Params};
use super::request::{
    self, Count, JsonText, List, ListItem, Refused, string_enum, tagged, unsupported,
};
use super::tools::{AnswerFormat, ResponseFormat, ToolFields, Tools};
use realign_model::chat::ChatError;
use realign_model::{ChatMessage, ChatRole};

/// A chat completion's body.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ChatRequest")]
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
    /// Older name of `max_completion_tokens`.
    max_tokens: Option<Count<1, { i64::MAX }>>,
    n: Option<Count<1, MAX_CHOICES>>,
    /// Default: what is left of the context.
    max_completion_tokens: Option<Count<1, { i64::MAX }>>,
    /// Only with `logprobs`.
    top_logprobs: Option<Count<0, 20>>,
    logprobs: Option<bool>,
    response_format: Option<ResponseFormat>,
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
    _web_search_options: Option<Refused>,
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
    pub(crate) messages: Vec<ChatMessage>,
}

impl ChatRequest {
    pub(crate) fn read(body: &Value) -> Result<Self, ApiError> {
        let body: Body = request::read(body)?;
        let mut params = body.common.check()?;
        // The newer name takes precedence, as `max_tokens` is deprecated.
        let max_tokens = body.max_completion_tokens.or(body.max_tokens);
        params.max_tokens = max_tokens.map(|max| max.0);
        params.n = body.n.map_or(1, |n| n.0);
        params.sampling.top_logprobs = logprobs(body.logprobs, body.top_logprobs)?;
        Ok(Self {
            params,
            format: body
                .response_format
                .map_or(AnswerFormat::Text, AnswerFormat::from),
            tools: Tools::check(body.tools)?,
            messages: conversation(body.messages)?,
        })
    }

    /// The prompt's tokens. Slow for long conversations, so call it on a blocking thread.
    pub(crate) fn encode(&self, state: &AppState) -> Result<Vec<u32>, ApiError> {
        encode(state, &self.messages, &self.tools.definitions())
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
) -> Result<Vec<u32>, ChatError> {
    state
        .chat
        .encode_chat_with(&state.tokenizer, messages, tools, true)
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

string_enum! {
    /// Who wrote a message.
    Role {
        System = "system",
        Developer = "developer",
        User = "user",
        Assistant = "assistant",
        Tool = "tool",
    }
}

impl From<Role> for ChatRole {
    fn from(role: Role) -> Self {
        match role {
            Role::System | Role::Developer => ChatRole::System,
            Role::User => ChatRole::User,
            Role::Assistant => ChatRole::Assistant,
            Role::Tool => ChatRole::Tool,
        }
    }
}

tagged! {
    /// A message of a conversation.
    Message by "role": Role {
        [System, Developer, User] => Plain(PlainMessage),
        [Assistant] => Assistant(AssistantMessage),
        [Tool] => Tool(ToolMessage),
    }
}

impl ListItem for Message {
    const EXPECTED: &'static str = "an array of messages";
}

/// Fields of a message that this server does not support.
#[derive(Clone, Debug, Deserialize)]
struct UnsupportedInMessage {
    #[serde(rename = "function_call")]
    _function_call: Option<Refused>,
    #[serde(rename = "audio")]
    _audio: Option<Refused>,
}

/// A message of the system, the developer or the user.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct PlainMessage {
    #[serde(rename = "..unsupported")]
    #[schemars(skip)]
    _unsupported: UnsupportedInMessage,
    content: Content,
    #[serde(rename = "name")]
    #[schemars(with = "Option<String>")]
    _name: Option<IgnoredAny>,
}

/// A message of the model: text, calls, or both.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline, extend("anyOf" = [{"required": ["content"]}, {"required": ["tool_calls"]}]))]
pub(crate) struct AssistantMessage {
    #[serde(rename = "..unsupported")]
    #[schemars(skip)]
    _unsupported: UnsupportedInMessage,
    tool_calls: Option<List<ToolCall>>,
    content: Option<Content>,
}

/// The result of a call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct ToolMessage {
    #[serde(rename = "..unsupported")]
    #[schemars(skip)]
    _unsupported: UnsupportedInMessage,
    content: Content,
    tool_call_id: String,
}

/// An earlier call of a function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct ToolCall {
    #[serde(rename = "id")]
    #[schemars(with = "String")]
    _id: Option<IgnoredAny>,
    #[serde(rename = "type")]
    #[schemars(with = "String", extend("const" = "function"))]
    _type: Option<IgnoredAny>,
    function: Call,
}

impl ListItem for ToolCall {
    const EXPECTED: &'static str = "an array of calls";
}

/// The function that was called, and its arguments.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct Call {
    name: String,
    arguments: JsonText,
}

impl Call {
    /// The call in the format of chat templates.
    pub(crate) fn for_template(self) -> Value {
        json!({
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments.0},
        })
    }
}

/// Converts `messages` into a conversation.
///
/// # Errors
/// If there is no message, or an assistant message has neither content nor calls.
pub(crate) fn conversation(messages: List<Message>) -> Result<Vec<ChatMessage>, ApiError> {
    if messages.0.is_empty() {
        return Err(ApiError::field(
            "messages",
            "`messages` must have at least one message",
        ));
    }
    let message = |(i, message)| chat_message(message, i);
    messages.0.into_iter().enumerate().map(message).collect()
}

fn chat_message(message: Message, index: usize) -> Result<ChatMessage, ApiError> {
    match message {
        Message::Plain(role, plain) => Ok(ChatMessage::new(role.into(), plain.content.text())),
        Message::Assistant(role, answered) => {
            let calls = answered.tool_calls.map_or_else(Vec::new, |calls| calls.0);
            let content = match answered.content {
                Some(content) => content.text(),
                // An assistant message that only calls functions has no text.
                None if !calls.is_empty() => String::new(),
                None => {
                    let path = format!("messages[{index}].content");
                    let message = format!("the field `{path}` is required");
                    return Err(ApiError::field(path, message));
                }
            };
            let mut message = ChatMessage::new(role.into(), content);
            if !calls.is_empty() {
                let calls = calls.into_iter().map(|call| call.function.for_template());
                message.tool_calls = Some(calls.collect());
            }
            Ok(message)
        }
        Message::Tool(role, returned) => {
            let mut message = ChatMessage::new(role.into(), returned.content.text());
            message.tool_call_id = Some(returned.tool_call_id);
            Ok(message)
        }
    }
}

/// Text, as a string or as an array of parts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename = "one of", expecting = "a string or an array of text parts")]
#[schemars(rename = "Content", untagged)]
pub(crate) enum Content {
    #[serde(rename = "string")]
    Text(String),
    #[serde(rename = "array")]
    Parts(Vec<Part>),
}

impl Content {
    /// The text of all parts.
    pub(crate) fn text(self) -> String {
        match self {
            Content::Text(text) => text,
            Content::Parts(parts) => parts.into_iter().map(Part::text).collect(),
        }
    }
}

string_enum! {
    /// The kinds of text part.
    PartKind {
        Text = "text",
        InputText = "input_text",
        OutputText = "output_text",
        Refusal = "refusal",
    } else |_| unsupported(" other than text")
}

tagged! {
    /// A part of a text.
    Part by "type": PartKind {
        [Text, InputText, OutputText] => Text(TextPart),
        [Refusal] => Refusal(RefusalPart),
    }
}

impl Part {
    fn text(self) -> String {
        match self {
            Part::Text(_, part) => part.text,
            Part::Refusal(_, part) => part.refusal,
        }
    }
}

/// Text.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct TextPart {
    text: String,
}

/// A text that refuses.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct RefusalPart {
    refusal: String,
}
