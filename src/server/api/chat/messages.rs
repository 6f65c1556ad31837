//! The messages of a conversation, as clients send them.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::request::{
    Arguments, List, ListItem, Refused, string_enum, tagged, unsupported, without_effect,
};
use super::super::sent;
use realign_model::{ChatMessage, ChatRole};

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
/// If there is no message, or one says two different things in fields for the same.
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
    let messages = messages.0.into_iter().enumerate();
    let messages: Result<_, ApiError> = messages
        .map(|(i, message)| chat_message(i, message))
        .collect();
    let mut messages: Vec<ChatMessage> = messages?;
    link_results(&mut messages);
    sent::messages(&mut messages, sent);
    Ok(messages)
}

fn chat_message(index: usize, message: Message) -> Result<ChatMessage, ApiError> {
    Ok(match message {
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
            message.reasoning_content = one_thought(
                index,
                [
                    ("reasoning_content", answered.reasoning_content),
                    ("reasoning", answered.reasoning),
                    ("thinking", answered.thinking),
                ],
            )?;
            message
        }
        Message::Tool(role, returned) => {
            let content = returned.content.map_or_else(String::new, Content::text);
            let mut message = ChatMessage::new(role.into(), content);
            message.tool_call_id = returned.tool_call_id;
            message
        }
    })
}

/// What was thought, of fields that mean the same.
fn one_thought(
    index: usize,
    fields: [(&'static str, Option<String>); 3],
) -> Result<Option<String>, ApiError> {
    let said = |(name, text): (&'static str, Option<String>)| {
        Some((name, text.filter(|text| !text.is_empty())?))
    };
    let mut given = fields.into_iter().filter_map(said);
    let Some((first, thought)) = given.next() else {
        return Ok(None);
    };
    match given.find(|(_, other)| *other != thought) {
        None => Ok(Some(thought)),
        Some((second, _)) => {
            let path = format!("messages[{index}].{second}");
            let message = format!(
                "`{path}` and `messages[{index}].{first}` both say what was thought, and differ; send one of them"
            );
            Err(ApiError::field(path, message))
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
