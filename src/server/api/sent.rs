//! Messages and functions in the client's own form, which is what a chat template reads: keys in their
//! order, and fields that this server does not know.

use serde_json::{Map, Value, json};

use super::request::Field;
use super::tools::{ToolForm, Tools};
use realign_model::{ChatMessage, ChatTemplate};

/// Whether a field that is unknown here reaches the model all the same: a chat template reads fields of
/// messages by their names, and many show the definitions of functions as they are. `functions` is the
/// end of their places in `tools`.
pub(crate) fn is_shown(field: &Field, template: &ChatTemplate, functions: &str) -> bool {
    let place = field.place.as_str();
    let of_function = place.starts_with("tools[") && place.ends_with(functions);
    let of_message = place.starts_with("messages[");
    of_function && template.shows_functions_whole()
        || (of_function || of_message) && template.reads(&field.name)
}

/// Gives each message the form in which it was sent. `sent` is the body's `messages`.
pub(crate) fn messages(messages: &mut [ChatMessage], sent: Option<&Value>) {
    let sent = sent
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    if sent.len() != messages.len() {
        return;
    }
    for (message, sent) in messages.iter_mut().zip(sent) {
        message.sent = sent.as_object().map(|sent| form(message, sent));
    }
}

/// A message as it was sent, but for older forms of a field, which its newer form stands for.
fn form(message: &mut ChatMessage, sent: &Map<String, Value>) -> Map<String, Value> {
    let mut fields = sent.clone();
    fields.shift_remove("function_call");
    fields.shift_remove("refusal");
    if let Some(Value::Array(parts)) = fields.get_mut("content") {
        parts.iter_mut().for_each(as_text_part);
    }
    let calls = message.tool_calls.iter_mut().flatten();
    let sent = sent.get("tool_calls").and_then(Value::as_array);
    for (call, sent) in calls.zip(sent.into_iter().flatten()) {
        *call = called(call, sent);
    }
    fields
}

/// The kinds of text that have other names elsewhere are text.
fn as_text_part(part: &mut Value) {
    if part["type"] == "text" {
        return;
    }
    let text = ["text", "refusal"].iter().find_map(|key| part.get(key));
    *part = json!({"type": "text", "text": text.cloned().unwrap_or_default()});
}

/// A call as it was sent, with its arguments as templates read them.
fn called(read: &Value, sent: &Value) -> Value {
    let mut call = sent.clone();
    let (Some(fields), Some(function)) = (call.as_object_mut(), sent["function"].as_object())
    else {
        return read.clone();
    };
    if !fields.get("id").is_some_and(Value::is_string) {
        fields.shift_remove("id");
    }
    let mut function = function.clone();
    function.insert("arguments".into(), read["function"]["arguments"].clone());
    fields.insert("function".into(), function.into());
    call
}

/// Gives each function the form in which it was sent. `sent` is the body's `tools`.
pub(crate) fn functions<T: ToolForm>(tools: &mut Tools, sent: Option<&Value>) {
    let sent = sent
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    if sent.len() != tools.len() {
        return;
    }
    for (tool, sent) in tools.iter_mut().zip(sent) {
        let Some(mut definition) = sent.as_object().map(T::definition) else {
            continue;
        };
        // A schema may come as its text.
        if definition["function"]["parameters"].is_string() {
            let read = tool.definition["function"]["parameters"].clone();
            definition["function"]["parameters"] = read;
        }
        tool.definition = definition;
    }
}

#[cfg(test)]
mod tests {
    use super::super::chat::ChatRequest;
    use super::*;

    #[test]
    fn templates_read_what_the_client_sent() {
        let body = json!({
            "model": "m",
            "tools": [{
                "function": {"parameters": {"b": 1, "a": {}}, "x": null, "name": "f"},
                "type": "function",
            }],
            "messages": [
                {"name": "ada", "content": [{"type": "input_text", "text": "Hi"}], "role": "user", "mood": [1]},
                {"role": "assistant", "refusal": "No.", "tool_calls": [
                    {"function": {"arguments": "{\"z\": 1, \"a\": 2}", "name": "f"}, "index": 0, "id": "c"},
                ]},
                {"content": null, "role": "tool"},
            ],
        });
        let read = ChatRequest::read(&body).unwrap();
        let definitions = Value::from(read.tools.definitions());
        assert_eq!(definitions.to_string(), body["tools"].to_string());
        let sent: Vec<Value> = read.messages.iter().map(|m| json!(m.sent)).collect();
        assert_eq!(
            sent[0].to_string(),
            r#"{"name":"ada","content":[{"type":"text","text":"Hi"}],"role":"user","mood":[1]}"#
        );
        assert_eq!(read.messages[1].content, "No.");
        assert_eq!(
            Value::from(read.messages[1].tool_calls.clone().unwrap()).to_string(),
            r#"[{"function":{"arguments":{"z":1,"a":2},"name":"f"},"index":0,"id":"c"}]"#
        );
        assert_eq!(read.messages[2].tool_call_id.as_deref(), Some("c"));
    }
}
