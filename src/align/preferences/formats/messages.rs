//! Messages of a conversation, in OpenAI's and in ShareGPT's form.

use serde_json::{Map, Value, json};

use super::{LineError, Message, Object, Role, columns::says_something};
use realign_core::json::parse;

/// Fields of a message without which it means something else.
const UNREAD: [&str; 19] = [
    "image",
    "images",
    "audio",
    "video",
    "videos",
    "files",
    "attachments",
    "documents",
    "context",
    "system",
    "prefix",
    "partial",
    "refusal",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "thinking",
    "thinking_blocks",
    "thoughts",
];

/// Fields with which trainers leave a message out. Responses are always trained on, and nothing else is.
const TRAINED: [&str; 5] = ["weight", "train", "training", "train_on_turn", "trainable"];

/// Refuses a response that is not to be trained on. `value` is a message, or messages that end with it.
pub(super) fn check_trained(key: &str, value: &Value) -> Result<(), LineError> {
    let response = match value {
        Value::Array(items) => items.last(),
        other => Some(other),
    };
    let is_off = |value: &Value| *value == Value::Bool(false) || value.as_f64() == Some(0.0);
    let fields = response.and_then(Value::as_object);
    let off = |field: &&&str| fields.is_some_and(|f| f.get(**field).is_some_and(is_off));
    match TRAINED.iter().find(off) {
        Some(&field) => Err(LineError::Field {
            key: key.into(),
            field,
        }),
        None => Ok(()),
    }
}

/// Refuses a text that shows a list of messages, as tables and `str` write it: it would be trained on as
/// it stands.
pub(super) fn check_text(key: &str, value: &Value) -> Result<(), LineError> {
    let Value::String(text) = value else {
        return Ok(());
    };
    let text = text.trim();
    let names = |field: &str| {
        ['\'', '"']
            .iter()
            .any(|mark| text.contains(&format!("{mark}{field}{mark}:")))
    };
    let shows = text.starts_with("[{") && text.ends_with("}]");
    match shows && (names("role") && names("content") || names("from") && names("value")) {
        true => Err(LineError::Shown(key.into())),
        false => Ok(()),
    }
}

/// A list of messages; `key` is the column that it is in.
pub(super) fn messages(key: &str, value: &Value) -> Result<Vec<Message>, LineError> {
    let Value::Array(items) = value else {
        return Err(LineError::NotMessages(key.into()));
    };
    items.iter().map(|item| message(key, item)).collect()
}

/// `{role, content}`, or ShareGPT's `{from, value}`.
pub(super) fn message(key: &str, value: &Value) -> Result<Message, LineError> {
    let malformed = || LineError::Message(key.into());
    let object = value.as_object().ok_or_else(malformed)?;
    let get = |name: &str, other: &str| object.get(name).or_else(|| object.get(other));
    let role = get("role", "from")
        .and_then(Value::as_str)
        .ok_or_else(malformed)?;
    let given = |field: &&&str| object.get(**field).is_some_and(says_something);
    if let Some(&field) = UNREAD.iter().find(given) {
        let key = key.into();
        return Err(LineError::Field { key, field });
    }
    let content = get("content", "value").filter(|content| !content.is_null());
    if matches!(role, "function_call" | "tool_call") {
        let called = content.ok_or_else(malformed)?;
        let mut message = Message::new(Role::Assistant, "");
        message.calling_mut().calls = calls(key, called)?;
        return Ok(message);
    }
    let role = role_of(key, role)?;
    let calls = called(key, object)?;
    let text = match content {
        Some(content) => text(key, content)?,
        // A model that calls says nothing else, and a function may return nothing.
        None if !calls.is_empty() || role == Role::Tool => String::new(),
        None => return Err(malformed()),
    };
    let mut message = Message::new(role, text);
    if !calls.is_empty() {
        message.calling_mut().calls = calls;
    }
    if let Some(Value::String(id)) = object.get("tool_call_id") {
        message.calling_mut().answers = Some(id.clone());
    }
    Ok(message)
}

fn role_of(key: &str, role: &str) -> Result<Role, LineError> {
    match role {
        "system" | "developer" => Ok(Role::System),
        "user" | "human" | "prompter" => Ok(Role::User),
        "assistant" | "gpt" | "model" | "bot" | "chatbot" => Ok(Role::Assistant),
        "tool" | "function" | "observation" | "ipython" | "tool_response" => Ok(Role::Tool),
        other => Err(LineError::Role {
            key: key.into(),
            role: other.chars().take(40).collect(),
        }),
    }
}

/// The calls of a message: `tool_calls`, or the older `function_call`.
fn called(key: &str, message: &Object) -> Result<Vec<Value>, LineError> {
    let given = |field: &str| message.get(field).filter(|value| says_something(value));
    match (given("tool_calls"), given("function_call")) {
        (Some(list), None) => calls(key, list),
        (None, Some(call)) => calls(key, call),
        (None, None) => Ok(Vec::new()),
        (Some(_), Some(_)) => Err(LineError::Calls(key.into())),
    }
}

/// One call or a list of them, or the JSON text of either, in the form that templates read.
fn calls(key: &str, value: &Value) -> Result<Vec<Value>, LineError> {
    let malformed = || LineError::Calls(key.into());
    match parsed(value) {
        Value::Array(items) => items
            .iter()
            .map(|item| call(item).ok_or_else(malformed))
            .collect(),
        one => Ok(vec![call(&one).ok_or_else(malformed)?]),
    }
}

/// The JSON in a text, where there is some.
fn parsed(value: &Value) -> Value {
    let text = value.as_str();
    let inner = text.and_then(|text| parse(text.as_bytes()).ok());
    inner.unwrap_or_else(|| value.clone())
}

fn call(value: &Value) -> Option<Value> {
    let function = value.get("function").unwrap_or(value);
    let name = function.get("name")?.as_str()?;
    let arguments = match function.get("arguments") {
        None | Some(Value::Null) => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        // A text that holds no object is kept as it is: a model may have written it.
        Some(given) => Some(parsed(given))
            .filter(Value::is_object)
            .unwrap_or_else(|| given.clone()),
    };
    let mut call = Map::new();
    if let Some(id @ Value::String(_)) = value.get("id") {
        call.insert("id".into(), id.clone());
    }
    call.insert("type".into(), "function".into());
    call.insert(
        "function".into(),
        json!({"name": name, "arguments": arguments}),
    );
    Some(Value::Object(call))
}

/// A message's content: text, or a list of parts that are all text.
fn text(key: &str, content: &Value) -> Result<String, LineError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(LineError::Message(key.into())),
    };
    let part = |part: &Value| {
        if let Value::String(text) = part {
            return Ok(text.clone());
        }
        let kind = part.get("type").and_then(Value::as_str);
        let text = match kind {
            Some("text" | "input_text" | "output_text") | None => part.get("text"),
            Some("refusal") => part.get("refusal"),
            Some(other) => {
                return Err(LineError::Part {
                    key: key.into(),
                    kind: other.chars().take(40).collect(),
                });
            }
        };
        let text = text.and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| LineError::Message(key.into()))
    };
    parts.iter().map(part).collect()
}

/// The functions of a `tools` or `functions` column: a list, or its JSON text.
pub(super) fn functions(object: &Object) -> Result<Vec<Value>, LineError> {
    let given = |key: &&&str| object.get(**key).is_some_and(says_something);
    let Some(&key) = ["tools", "functions"].iter().find(given) else {
        return Ok(Vec::new());
    };
    let malformed = || LineError::Functions(key);
    let list = object.get(key).map(parsed);
    let Some(Value::Array(items)) = list else {
        return Err(malformed());
    };
    let function = |item: &Value| {
        let function = item.get("function").unwrap_or(item);
        function.get("name")?.as_str()?;
        Some(json!({"type": "function", "function": function}))
    };
    items
        .iter()
        .map(|item| function(item).ok_or_else(malformed))
        .collect()
}
