//! Messages, and what templates read of them.

use minijinja::Value as TemplateValue;
use serde_json::{Map, Value};

use super::tools::map_strings;

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// Instructions of the application.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a function that the model called.
    Tool,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// Who wrote it.
    pub role: ChatRole,
    /// Its text.
    pub content: String,
    /// The model's calls, each `{"type": "function", "function": {"name", "arguments"}}` with the
    /// arguments as an object, which is how templates read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<Value>>,
    /// Of a result: the call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// What the model thought before its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The message as a client wrote it: templates read its fields in its order, those included that
    /// are unknown here. The fields above win where they differ.
    #[serde(skip)]
    pub sent: Option<Map<String, Value>>,
}

impl ChatMessage {
    /// A message of the given role.
    pub fn new(role: ChatRole, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            tool_calls: None,
            tool_call_id: None,
            reasoning_content: None,
            sent: None,
        }
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(ChatRole::User, content)
    }
}

impl ChatMessage {
    /// The same message with every text that a client wrote changed.
    pub(super) fn guarded(&self, change: &dyn Fn(&str) -> String) -> Self {
        let calls = self.tool_calls.as_ref();
        Self {
            role: self.role,
            content: change(&self.content),
            tool_calls: calls.map(|calls| calls.iter().map(|c| map_strings(c, change)).collect()),
            tool_call_id: self.tool_call_id.as_deref().map(change),
            reasoning_content: self.reasoning_content.as_deref().map(change),
            sent: self.sent.as_ref().map(|sent| {
                let texts = sent.iter().map(|(key, value)| match key.as_str() {
                    "role" => (key.clone(), value.clone()),
                    _ => (change(key), map_strings(value, change)),
                });
                texts.collect()
            }),
        }
    }
}

/// What a template does with messages that others do not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Form {
    /// The roles whose content may be a list of parts, in the order of [`ChatRole`].
    pub(super) parts: [bool; 4],
    /// It has the role `developer`.
    pub(super) developer: bool,
}

/// Names of what a model thought; the first one is what most templates read.
const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl ChatMessage {
    /// The message as JSON: what a client wrote, as far as it stands, otherwise this one's fields.
    pub(super) fn json(&self, form: Form) -> Map<String, Value> {
        let Some(sent) = &self.sent else {
            return match serde_json::to_value(self) {
                Ok(Value::Object(fields)) => fields,
                _ => Map::new(),
            };
        };
        let mut fields = sent.clone();
        let role = match sent.get("role").and_then(Value::as_str) {
            Some("developer") if form.developer => "developer",
            _ => self.role.name(),
        };
        fields.insert("role".into(), role.into());
        match sent.get("content") {
            Some(Value::Array(_)) if form.parts[self.role as usize] => {}
            // Only calls can stand for a text: templates read an empty one otherwise.
            None | Some(Value::Null) if self.content.is_empty() && self.tool_calls.is_some() => {}
            _ => {
                fields.insert("content".into(), self.content.clone().into());
            }
        }
        match &self.tool_calls {
            Some(calls) => fields.insert("tool_calls".into(), calls.clone().into()),
            None => fields.shift_remove("tool_calls"),
        };
        if let Some(id) = &self.tool_call_id {
            fields.insert("tool_call_id".into(), id.clone().into());
        }
        fields
    }
}

impl ChatRole {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A message as `transformers` gives it to a template: without fields that are null, and with what the
/// model thought under both of its names.
pub(super) fn for_template(message: &Map<String, Value>) -> TemplateValue {
    let given = message.iter().filter(|(_, value)| !value.is_null());
    let is_thought = |key: &str| message.get(key).filter(|value| !value.is_null());
    let Some(thought) = THOUGHTS.iter().find_map(|key| is_thought(key)) else {
        return given
            .map(|(key, value)| (key.clone(), converted(value)))
            .collect();
    };
    // `reasoning_content` keeps its place where it has one.
    let own = is_thought("thinking").unwrap_or(thought);
    let first = ("thinking", own);
    let others = given.filter(|(key, _)| *key != "thinking" && *key != THOUGHTS[0]);
    let others = others.map(|(key, value)| (key.as_str(), value));
    let mut fields: Vec<(&str, &Value)> = std::iter::once(first).chain(others).collect();
    let place = message.keys().filter(|key| *key != "thinking");
    let place = place
        .take_while(|key| *key != THOUGHTS[0])
        .filter(|key| is_thought(key).is_some());
    let place = match is_thought(THOUGHTS[0]) {
        Some(_) => place.count() + 1,
        None => fields.len(),
    };
    fields.insert(place, (THOUGHTS[0], thought));
    fields
        .into_iter()
        .map(|(key, value)| (key, converted(value)))
        .collect()
}

fn converted(value: &Value) -> TemplateValue {
    match value {
        Value::String(text) => TemplateValue::from(text.as_str()),
        other => TemplateValue::from_serialize(other),
    }
}
