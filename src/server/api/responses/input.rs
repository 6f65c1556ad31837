//! Converts `input` and `instructions` into a conversation.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::super::chat::{Call, Content, Role, link_results};
use super::super::error::ApiError;
use super::super::request::{shortened, string_enum, tagged, unsupported, without_effect};
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
    } else |kind| unsupported(&format!(
        " of the value `{}` (done are `message`, `function_call`, `function_call_output`, `reasoning`)",
        shortened(kind)
    ))
}

tagged! {
    /// An item of a conversation.
    InputItem by "type": ItemKind or Message {
        [Message] => Message(MessageItem),
        [FunctionCall] => Call(CallItem),
        [FunctionCallOutput] => Output(CallOutput),
        [Reasoning] => Reasoning(ReasoningItem),
    }
}

/// A message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct MessageItem {
    content: Content,
    role: Role,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptOfMessage,
}

without_effect! {
    /// What clients keep of earlier messages and send back.
    KeptOfMessage { "id", "phase", "provider_data", "status" }
}

without_effect! {
    /// What clients keep of earlier calls and their results, and send back.
    KeptOfItem { "created_by", "id", "provider_data", "status" }
}

/// An earlier call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct CallItem {
    #[serde(rename = "..call")]
    #[schemars(flatten)]
    call: Call,
    #[schemars(with = "Option<String>")]
    call_id: Option<Value>,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptOfItem,
}

/// The result of a call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct CallOutput {
    /// A function may have returned nothing.
    output: Option<Content>,
    /// If it is missing, the results answer the calls before them in their order.
    call_id: Option<String>,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptOfItem,
}

/// What a model thought, sent back with the conversation. Encrypted thoughts cannot be read.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct ReasoningItem {
    content: Option<Vec<ThoughtsPart>>,
    /// Stands for the content where there is none.
    summary: Option<Vec<ThoughtsPart>>,
    #[serde(rename = "..kept")]
    #[schemars(flatten)]
    _kept: KeptOfThoughts,
}

without_effect! {
    /// What clients keep of earlier thoughts and send back.
    KeptOfThoughts { "encrypted_content", "id", "provider_data", "status" }
}

without_effect! {
    /// `reasoning_text` or `summary_text`.
    ThoughtsKind { "type" }
}

/// A part of thoughts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct ThoughtsPart {
    text: String,
    #[serde(rename = "..kind")]
    #[schemars(flatten)]
    _kind: ThoughtsKind,
}

impl ReasoningItem {
    fn text(self) -> String {
        let filled = |parts: &Vec<ThoughtsPart>| !parts.is_empty();
        let parts = self.content.filter(filled).or(self.summary);
        let texts = parts.into_iter().flatten().map(|part| part.text);
        texts.collect()
    }
}

/// The turns of the input.
pub(super) fn turns(input: Input) -> Result<Vec<ChatMessage>, ApiError> {
    let mut messages = Vec::new();
    let mut thoughts = String::new();
    match input {
        Input::Text(text) => messages.push(ChatMessage::user(text)),
        Input::Items(items) if items.is_empty() => {
            return Err(ApiError::field("input", "`input` must not be empty"));
        }
        Input::Items(items) => items
            .into_iter()
            .for_each(|item| add(item, &mut thoughts, &mut messages)),
    }
    if messages.is_empty() {
        let message = "`input` has no message: thoughts by themselves are no conversation";
        return Err(ApiError::field("input", message));
    }
    Ok(messages)
}

/// The conversation: instructions first.
pub(super) fn messages(instructions: Option<String>, turns: Vec<ChatMessage>) -> Vec<ChatMessage> {
    let instructions = instructions.map(|text| ChatMessage::new(ChatRole::System, text));
    let mut messages: Vec<ChatMessage> = instructions.into_iter().chain(turns).collect();
    merge_systems(&mut messages);
    link_results(&mut messages);
    messages
}

/// Adds an item. Thoughts belong to the message or the calls of the model that follow them.
fn add(item: InputItem, thoughts: &mut String, messages: &mut Vec<ChatMessage>) {
    if let InputItem::Reasoning(_, item) = item {
        thoughts.push_str(&item.text());
        return;
    }
    add_turn(item, messages);
    let thought = std::mem::take(thoughts);
    let last = messages.last_mut();
    if let Some(last) = last.filter(|last| last.role == ChatRole::Assistant && !thought.is_empty())
    {
        // Calls may have joined a message that has thoughts of its own.
        let all = last.reasoning_content.get_or_insert_default();
        all.push_str(&thought);
    }
}

fn add_turn(item: InputItem, messages: &mut Vec<ChatMessage>) {
    match item {
        InputItem::Message(_, message) => {
            let role = message.role.into();
            messages.push(ChatMessage::new(role, message.content.text()));
        }
        InputItem::Call(_, item) => {
            let call = item.call.for_template(item.call_id);
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
            let text = output.output.map_or_else(String::new, Content::text);
            let mut message = ChatMessage::new(ChatRole::Tool, text);
            message.tool_call_id = output.call_id;
            messages.push(message);
        }
        InputItem::Reasoning(..) => {}
    }
}

/// Merges instructions and leading system messages, as templates expect at most one.
fn merge_systems(messages: &mut Vec<ChatMessage>) {
    let leading = messages.iter().take_while(|m| m.role == ChatRole::System);
    let leading = leading.count();
    if leading > 1 {
        let texts: Vec<String> = messages.drain(1..leading).map(|m| m.content).collect();
        let first = &mut messages[0].content;
        *first = format!("{first}\n\n{}", texts.join("\n\n"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::request;
    use super::*;

    #[test]
    fn leading_system_messages_are_one() {
        let texts = |count: usize| {
            let item = json!({"role": "system", "content": "b"});
            let mut items = vec![item; count];
            items.push(json!({"role": "user", "content": "Hi"}));
            items.push(json!({"role": "system", "content": "late"}));
            let (read, _) = request::read_field(&items.into(), "input").unwrap();
            let turns = turns(read).unwrap();
            let texts = messages(Some("a".into()), turns).into_iter();
            texts.map(|m| m.content).collect::<Vec<_>>()
        };
        assert_eq!(texts(0), ["a", "Hi", "late"]);
        assert_eq!(texts(2), ["a\n\nb\n\nb", "Hi", "late"]);
        // As many as a body takes: each is looked at once.
        let many = texts(60_000);
        assert_eq!((many.len(), many[0].len()), (3, 1 + 3 * 60_000));
    }

    #[test]
    fn thoughts_go_to_the_turn_that_follows_them() {
        let said = |role: &str, text: &str| json!({"role": role, "content": text});
        let part = |kind: &str, text: &str| json!({"type": kind, "text": text});
        let input = json!([
            said("user", "Hi"),
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [part("reasoning_text", "Hm.")]},
            said("assistant", "Yes."),
            said("user", "Why?"),
            {"type": "reasoning", "summary": [part("summary_text", "In short.")], "encrypted_content": "x"},
            {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            // Nothing of the model follows.
            {"type": "reasoning", "content": [part("reasoning_text", "Lost.")]},
            said("user", "So?"),
        ]);
        let (read, _) = request::read_field(&input, "input").unwrap();
        let turns = turns(read).unwrap();
        let thoughts: Vec<Option<&str>> = turns
            .iter()
            .map(|turn| turn.reasoning_content.as_deref())
            .collect();
        let (first, second) = (Some("Hm."), Some("In short."));
        assert_eq!(thoughts, [None, first, None, second, None, None]);
        let alone = json!([{"type": "reasoning", "content": [part("reasoning_text", "Hm.")]}]);
        let (read, _) = request::read_field(&alone, "input").unwrap();
        assert!(super::turns(read).is_err());
    }
}
