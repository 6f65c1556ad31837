//! Anthropic's messages as those of chat completions.

use serde_json::{Value, json};

use super::super::super::error::ApiError;
use super::super::super::request::wrong_type;
use super::body::{Block, Content, Message, Texts, UseBlock};

/// Marks the result of a call that failed: chat templates have no field for it.
const FAILED: &str = "Error: ";

/// Whether a message that is the last one is to be continued: it is the assistant's, and ends with text.
pub(super) fn continues(message: &Message) -> bool {
    let ends_with_text = match &message.content {
        Some(Content::Text(text)) => !text.is_empty(),
        Some(Content::Blocks(blocks)) => {
            matches!(blocks.last(), Some(Block::Text(_, block)) if !block.text.is_empty())
        }
        None => false,
    };
    message.role == "assistant" && ends_with_text
}

/// A message as one or, with results of calls, several.
pub(super) fn translate(
    place: &str,
    message: Message,
    into: &mut Vec<Value>,
) -> Result<(), ApiError> {
    let blocks = match message.content {
        Some(Content::Blocks(blocks)) => blocks,
        Some(Content::Text(text)) => {
            into.push(json!({"role": message.role, "content": text}));
            return Ok(());
        }
        None => {
            into.push(json!({"role": message.role, "content": ""}));
            return Ok(());
        }
    };
    let (mut text, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
    let mut has_results = false;
    for (index, block) in blocks.into_iter().enumerate() {
        let place = format!("{place}.content[{index}]");
        check_role(&place, &block, &message.role)?;
        match block {
            Block::Text(_, block) => text.push_str(&block.text),
            Block::Thinking(_, block) => thoughts.push_str(&block.thinking),
            Block::Redacted(..) => {}
            Block::Use(_, block) => calls.push(call(&place, block)?),
            Block::Result(_, block) => {
                let mut result = block.content.map_or_else(String::new, Texts::text);
                if block.is_error == Some(true) {
                    result.insert_str(0, FAILED);
                }
                has_results = true;
                into.push(
                    json!({"role": "tool", "tool_call_id": block.tool_use_id, "content": result}),
                );
            }
        }
    }
    if text.is_empty() && has_results {
        return Ok(());
    }
    let mut translated = json!({"role": message.role, "content": text});
    if !thoughts.is_empty() {
        translated["reasoning_content"] = thoughts.into();
    }
    if !calls.is_empty() {
        translated["tool_calls"] = calls.into();
    }
    into.push(translated);
    Ok(())
}

/// Refuses a block that only messages of the other role have: what it would mean here is not clear.
fn check_role(place: &str, block: &Block, role: &str) -> Result<(), ApiError> {
    let (kind, of) = match block {
        Block::Text(..) => return Ok(()),
        Block::Thinking(..) => ("thinking", "assistant"),
        Block::Redacted(..) => ("redacted_thinking", "assistant"),
        Block::Use(..) => ("tool_use", "assistant"),
        Block::Result(..) => ("tool_result", "user"),
    };
    if role == of {
        return Ok(());
    }
    let param = format!("{place}.type");
    let why = format!("`{param}` is `{kind}`, which only messages with the role `{of}` have");
    Err(ApiError::field(param, why))
}

/// An earlier call of a function.
fn call(place: &str, block: UseBlock) -> Result<Value, ApiError> {
    let arguments = match &block.input {
        None => "{}".to_owned(),
        Some(input @ Value::Object(_)) => input.to_string(),
        Some(other) => return Err(wrong_type(&format!("{place}.input"), "an object", other)),
    };
    let function = json!({"name": block.name, "arguments": arguments});
    Ok(json!({"id": block.id, "type": "function", "function": function}))
}
