//! Anthropic's messages as those of chat completions.

use serde_json::{Value, json};

use super::super::super::error::ApiError;
use super::super::super::request::wrong_type;
use super::super::{string, text_of, unsupported};
use super::Message;

/// Marks the result of a call that failed: chat templates have no field for it.
const FAILED: &str = "Error: ";

/// A message as one or, with results of calls, several.
pub(super) fn translate(
    place: &str,
    message: &Message,
    into: &mut Vec<Value>,
) -> Result<(), ApiError> {
    let Value::Array(blocks) = &message.content else {
        let text = text_of(&format!("{place}.content"), &message.content)?;
        into.push(json!({"role": message.role, "content": text}));
        return Ok(());
    };
    let (mut text, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
    for (index, block) in blocks.iter().enumerate() {
        let place = format!("{place}.content[{index}]");
        match block["type"].as_str().unwrap_or("no type") {
            "text" => text.push_str(string(&place, block, "text")?),
            "thinking" => thoughts.push_str(string(&place, block, "thinking")?),
            "redacted_thinking" => {}
            "tool_use" => calls.push(call(&place, block)?),
            "tool_result" => {
                let mut result = text_of(&format!("{place}.content"), &block["content"])?;
                if block["is_error"] == true {
                    result.insert_str(0, FAILED);
                }
                into.push(json!({"role": "tool", "tool_call_id": block["tool_use_id"], "content": result}));
            }
            other => return Err(unsupported(&place, other)),
        }
    }
    let only_results = text.is_empty() && blocks.iter().any(|block| block["type"] == "tool_result");
    if !only_results {
        let mut translated = json!({"role": message.role, "content": text});
        if !thoughts.is_empty() {
            translated["reasoning_content"] = thoughts.into();
        }
        if !calls.is_empty() {
            translated["tool_calls"] = calls.into();
        }
        into.push(translated);
    }
    Ok(())
}

/// An earlier call of a function. One without `input` had no arguments.
fn call(place: &str, block: &Value) -> Result<Value, ApiError> {
    let name = string(place, block, "name")?;
    let input = match &block["input"] {
        Value::Null => "{}".to_owned(),
        input @ Value::Object(_) => input.to_string(),
        other => return Err(wrong_type(&format!("{place}.input"), "an object", other)),
    };
    Ok(
        json!({"id": block["id"], "type": "function", "function": {"name": name, "arguments": input}}),
    )
}
