//! `POST /v1/chat/completions`: reads the body and encodes the conversation.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::AppState;
use super::constraints::ConstraintFields;
use super::error::ApiError;
use super::params::{Common, MAX_CHOICES, Params};
use super::request::{
    self, Arguments, Count, Integer, List, ListItem, NotKept, Refused, Unknown, string_enum,
    tagged, unsupported, without_effect,
};
use super::sent;
use super::template::TemplateFields;
use super::tools::{AnswerFormat, NestedTool, ResponseFormat, ToolFields, Tools};
use realign_model::chat::{ChatError, Turn};
use realign_model::{ChatMessage, ChatRole};

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
    /// Older name of `max_completion_tokens`.
    max_tokens: Option<Count<1, { i64::MAX }>>,
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
    _web_search_options: Option<Refused>,
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
        // The newer name takes precedence, as `max_tokens` is deprecated.
        let max_tokens = body.max_completion_tokens.or(body.max_tokens);
        params.max_tokens = max_tokens.map(|max| max.0);
        params.n = body.n.map_or(1, |n| n.0);
        params.sampling.top_logprobs = logprobs(body.logprobs, body.top_logprobs)?;
        params.token_ids = body.return_token_ids.unwrap_or(false);
        // llama.cpp's -1 sets no limit.
        let spelled = body.thinking_budget_tokens;
        let spelled = spelled.and_then(|budget| usize::try_from(budget.0).ok());
        let budget = body.thinking_token_budget.or(body.thinking_budget);
        params.thinking_budget = budget.map(|budget| budget.0).or(spelled);
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

string_enum! {
    /// Who wrote a message.
    Role {
        System = "system",
        Developer = "developer",
        User = "user",
        Assistant = "assistant",
        Tool = "tool",
        Function = "function",
    }
}

impl From<Role> for ChatRole {
    fn from(role: Role) -> Self {
        match role {
            Role::System | Role::Developer => ChatRole::System,
            Role::User => ChatRole::User,
            Role::Assistant => ChatRole::Assistant,
            Role::Tool | Role::Function => ChatRole::Tool,
        }
    }
}

tagged! {
    /// A message of a conversation.
    Message by "role": Role {
        [System, Developer, User] => Plain(PlainMessage),
        [Assistant] => Assistant(AssistantMessage),
        [Tool, Function] => Tool(ToolMessage),
    }
}

impl ListItem for Message {
    const EXPECTED: &'static str = "an array of messages";
}

/// Fields of a message that this server does not support.
#[derive(Clone, Debug, Deserialize)]
struct UnsupportedInMessage {
    #[serde(rename = "audio")]
    _audio: Option<Refused>,
    #[serde(rename = "images")]
    _images: Option<Refused>,
}

without_effect! {
    /// What clients keep of earlier answers beside their texts and calls, and send back.
    KeptFields {
        "annotations", "cache_control", "created_at", "extra_content", "id", "index", "logprobs",
        "metadata", "parsed", "phase", "providerOptions", "provider_specific_fields",
        "reasoning_details", "status", "thinking_blocks", "thought_signature", "timestamp", "type",
    }
}

/// Fields of messages that only the model writes.
#[derive(Clone, Debug, Deserialize)]
struct OnlyOfAssistants {
    #[serde(rename = "tool_calls")]
    _tool_calls: Option<Refused>,
    #[serde(rename = "function_call")]
    _function_call: Option<Refused>,
    #[serde(rename = "refusal")]
    _refusal: Option<Refused>,
}

/// A message of the system, the developer or the user.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct PlainMessage {
    #[serde(rename = "..unsupported")]
    #[schemars(skip)]
    _unsupported: UnsupportedInMessage,
    #[serde(rename = "..others")]
    #[schemars(skip)]
    _others: OnlyOfAssistants,
    content: Content,
    /// Given to chat templates that read it.
    #[serde(rename = "name")]
    #[schemars(with = "Option<String>")]
    _name: Option<IgnoredAny>,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptFields,
}

/// A message of the model: text, calls, both, or nothing, where an answer was cut at once.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct AssistantMessage {
    #[serde(rename = "..unsupported")]
    #[schemars(skip)]
    _unsupported: UnsupportedInMessage,
    tool_calls: Option<List<ToolCall>>,
    /// Older form of `tool_calls`, with one call.
    function_call: Option<Call>,
    content: Option<Content>,
    /// A text that refuses; follows the content.
    refusal: Option<String>,
    /// What the model thought before its answer. Templates leave it out, or keep it of the last turns.
    reasoning_content: Option<String>,
    /// The same, as some servers name it.
    reasoning: Option<String>,
    /// The same, as some servers name it.
    thinking: Option<String>,
    /// Given to chat templates that read it.
    #[serde(rename = "name")]
    #[schemars(with = "Option<String>")]
    _name: Option<IgnoredAny>,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptFields,
}

/// The result of a call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct ToolMessage {
    #[serde(rename = "..unsupported")]
    #[schemars(skip)]
    _unsupported: UnsupportedInMessage,
    #[serde(rename = "..others")]
    #[schemars(skip)]
    _others: OnlyOfAssistants,
    /// A function may have returned nothing.
    content: Option<Content>,
    /// If it is missing, the results answer the calls before them in their order.
    tool_call_id: Option<String>,
    /// Given to chat templates that read it.
    #[serde(rename = "name")]
    #[schemars(with = "Option<String>")]
    _name: Option<IgnoredAny>,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptFields,
}

without_effect! {
    /// What clients keep of earlier calls and send back.
    KeptOfCall {
        "cache_control", "extra_content", "index", "provider_specific_fields", "thought_signature",
    }
}

/// An earlier call of a function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct ToolCall {
    #[schemars(with = "Option<String>")]
    id: Option<Value>,
    #[serde(rename = "type")]
    #[schemars(with = "String", extend("const" = "function"))]
    _type: Option<IgnoredAny>,
    function: Call,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptOfCall,
}

impl ListItem for ToolCall {
    const EXPECTED: &'static str = "an array of calls";
}

/// The function that was called, and its arguments.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct Call {
    name: String,
    arguments: Option<Arguments>,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptOfFunction,
}

without_effect! {
    /// What clients keep of the functions that were called.
    KeptOfFunction { "parsed_arguments", "provider_specific_fields", "thought_signature" }
}

impl Call {
    /// A call that this server's model made.
    pub(crate) fn made(name: &str, arguments: &str) -> Self {
        Self {
            name: name.to_owned(),
            arguments: Some(Arguments::of(arguments)),
            _kept: KeptOfFunction,
        }
    }

    /// The call in the format of chat templates.
    pub(crate) fn for_template(self, id: Option<Value>) -> Value {
        let arguments = self.arguments.map(Arguments::for_template);
        let arguments = arguments.unwrap_or_else(|| json!({}));
        let mut call = json!({});
        if let Some(id) = id.filter(Value::is_string) {
            call["id"] = id;
        }
        call["type"] = "function".into();
        call["function"] = json!({"name": self.name, "arguments": arguments});
        call
    }
}

/// Converts `messages` into a conversation. `sent` is their JSON, which templates read.
///
/// # Errors
/// If there is no message.
pub(crate) fn conversation(
    messages: List<Message>,
    sent: Option<&Value>,
) -> Result<Vec<ChatMessage>, ApiError> {
    if messages.0.is_empty() {
        return Err(ApiError::field(
            "messages",
            "`messages` must have at least one message",
        ));
    }
    let mut messages: Vec<ChatMessage> = messages.0.into_iter().map(chat_message).collect();
    link_results(&mut messages);
    sent::messages(&mut messages, sent);
    Ok(messages)
}

fn chat_message(message: Message) -> ChatMessage {
    match message {
        Message::Plain(role, plain) => ChatMessage::new(role.into(), plain.content.text()),
        Message::Assistant(role, answered) => {
            let mut content = answered.content.map_or_else(String::new, Content::text);
            if let Some(refusal) = answered.refusal {
                content.push_str(&refusal);
            }
            let mut message = ChatMessage::new(role.into(), content);
            let calls = answered.tool_calls.map_or_else(Vec::new, |calls| calls.0);
            let calls = calls.into_iter().map(|c| c.function.for_template(c.id));
            let older = answered.function_call.map(|call| call.for_template(None));
            let calls: Vec<Value> = calls.chain(older).collect();
            message.tool_calls = (!calls.is_empty()).then_some(calls);
            let thought = answered.reasoning_content.or(answered.reasoning);
            let thought = thought.or(answered.thinking);
            message.reasoning_content = thought.filter(|text| !text.is_empty());
            message
        }
        Message::Tool(role, returned) => {
            let content = returned.content.map_or_else(String::new, Content::text);
            let mut message = ChatMessage::new(role.into(), content);
            message.tool_call_id = returned.tool_call_id;
            message
        }
    }
}

/// Gives results without an id the ids of the calls before them, in their order.
pub(crate) fn link_results(messages: &mut [ChatMessage]) {
    // Many results are no reason to shift many ids.
    let mut ids = VecDeque::new();
    for message in messages {
        if message.role != ChatRole::Tool {
            let calls = message.tool_calls.iter().flatten();
            ids = calls
                .map(|c| c["id"].as_str().map(str::to_string))
                .collect();
        } else if let Some(next) = ids.pop_front() {
            message.tool_call_id = message.tool_call_id.take().or(next);
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
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptOfPart,
}

without_effect! {
    /// What clients keep of the parts of earlier answers.
    KeptOfPart {
        "annotations", "cache_control", "extra_content", "id", "index", "logprobs",
        "provider_specific_fields", "thought_signature",
    }
}

/// A text that refuses.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct RefusalPart {
    refusal: String,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptOfPart,
}
