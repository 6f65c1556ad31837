//! `input` and `instructions` to a conversation.

use serde_json::Value;

use super::super::chat::{call, content, role};
use super::super::error::ApiError;
use super::super::fields::{Fields, wrong_type};
use realign_model::{ChatMessage, ChatRole};

/// The conversation: instructions first.
pub(super) fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let mut messages = Vec::new();
    if fields.get("instructions").is_some() {
        let instructions = fields.string("instructions")?;
        messages.push(ChatMessage::new(ChatRole::System, instructions));
    }
    match fields.required("input")? {
        Value::String(text) => messages.push(ChatMessage::user(text)),
        Value::Array(items) if items.is_empty() => {
            return Err(ApiError::field("input", "`input` must not be empty"));
        }
        Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                item(value, &format!("input[{i}]"), &mut messages)?;
            }
        }
        other => return Err(wrong_type("input", "a string or an array of items", other)),
    }
    merge_systems(&mut messages);
    Ok(messages)
}

fn item(value: &Value, place: &str, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
    let fields = Fields::nested(value, place)?;
    let kind = match fields.get("type") {
        Some(_) => fields.string("type")?,
        None => "message",
    };
    match kind {
        "message" => {
            let text = content(fields.required("content")?, &fields.path("content"))?;
            messages.push(ChatMessage::new(role(&fields)?, text));
        }
        "function_call" => {
            let call = call(&fields)?;
            match messages.last_mut() {
                // Calls of one turn belong to one message, behind what was said with them.
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
        "function_call_output" => {
            let output = content(fields.required("output")?, &fields.path("output"))?;
            let mut message = ChatMessage::new(ChatRole::Tool, output);
            message.tool_call_id = Some(fields.string("call_id")?.to_string());
            messages.push(message);
        }
        // Other models' thoughts, sent back with the conversation.
        "reasoning" => {}
        _ => {
            return Err(ApiError::Unsupported {
                param: fields.path("type"),
                detail: " other than `message`, `function_call`, `function_call_output`".into(),
            });
        }
    }
    Ok(())
}

/// Instructions and a leading system message become one: templates expect at most one.
fn merge_systems(messages: &mut Vec<ChatMessage>) {
    while let [first, second, ..] = messages.as_mut_slice() {
        if first.role != ChatRole::System || second.role != ChatRole::System {
            return;
        }
        first.content = format!("{}\n\n{}", first.content, second.content);
        messages.remove(1);
    }
}
