//! Converts `input` and `instructions` into a conversation.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::chat::{Call, Content, Role};
use super::super::error::ApiError;
use super::super::request::{TagOnly, string_enum, tagged, unsupported};
use realign_model::{ChatMessage, ChatRole};

/// The input to answer.
#[derive(Deserialize, JsonSchema)]
#[serde(rename = "one of", expecting = "a string or an array of items")]
#[schemars(inline, untagged)]
pub(super) enum Input {
    #[serde(rename = "string")]
    Text(String),
    #[serde(rename = "array")]
    Items(#[schemars(length(min = 1))] Vec<InputItem>),
}

string_enum! {
    /// The kinds of input item.
    ItemKind {
        Message = "message",
        FunctionCall = "function_call",
        FunctionCallOutput = "function_call_output",
        Reasoning = "reasoning",
    } else |_| unsupported(" other than `message`, `function_call`, `function_call_output`")
}

tagged! {
    /// An item of a conversation.
    InputItem by "type": ItemKind or Message {
        [Message] => Message(MessageItem),
        [FunctionCall] => Call(CallItem),
        [FunctionCallOutput] => Output(CallOutput),
        // Reasoning of other models, sent back with the conversation; ignored.
        [Reasoning] => Reasoning(TagOnly),
    }
}

/// A message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct MessageItem {
    content: Content,
    role: Role,
}

/// An earlier call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct CallItem {
    #[serde(rename = "..call")]
    #[schemars(flatten)]
    call: Call,
    #[serde(rename = "call_id")]
    #[schemars(with = "String")]
    _call_id: Option<IgnoredAny>,
}

/// The result of a call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct CallOutput {
    output: Content,
    call_id: String,
}

/// The conversation: instructions first.
pub(super) fn messages(
    instructions: Option<String>,
    input: Input,
) -> Result<Vec<ChatMessage>, ApiError> {
    let mut messages = Vec::new();
    if let Some(instructions) = instructions {
        messages.push(ChatMessage::new(ChatRole::System, instructions));
    }
    match input {
        Input::Text(text) => messages.push(ChatMessage::user(text)),
        Input::Items(items) if items.is_empty() => {
            return Err(ApiError::field("input", "`input` must not be empty"));
        }
        Input::Items(items) => items.into_iter().for_each(|item| add(item, &mut messages)),
    }
    merge_systems(&mut messages);
    Ok(messages)
}

fn add(item: InputItem, messages: &mut Vec<ChatMessage>) {
    match item {
        InputItem::Message(_, message) => {
            let role = message.role.into();
            messages.push(ChatMessage::new(role, message.content.text()));
        }
        InputItem::Call(_, item) => {
            let call = item.call.for_template();
            match messages.last_mut() {
                // Calls of one turn belong to one message, after its text.
                Some(last) if last.role == ChatRole::Assistant => {
                    last.tool_calls.get_or_insert_default().push(call);
                }
                _ => {
                    let mut message = ChatMessage::new(ChatRole::Assistant, "");
                    message.tool_calls = Some(vec![call]);
                    messages.push(message);
                }
            }
        }
        InputItem::Output(_, output) => {
            let mut message = ChatMessage::new(ChatRole::Tool, output.output.text());
            message.tool_call_id = Some(output.call_id);
            messages.push(message);
        }
        InputItem::Reasoning(_, TagOnly {}) => {}
    }
}

/// Merges instructions and a leading system message, as templates expect at most one.
fn merge_systems(messages: &mut Vec<ChatMessage>) {
    while let [first, second, ..] = messages.as_mut_slice() {
        if first.role != ChatRole::System || second.role != ChatRole::System {
            return;
        }
        first.content = format!("{}\n\n{}", first.content, second.content);
        messages.remove(1);
    }
}
