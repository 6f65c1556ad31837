//! Functions that a model may call, put into conversations.
//!
//! Templates that know tools lay them out themselves. For all others the functions are described
//! in the system's message, and calls and their results become plain messages, in the form that
//! Qwen's and Hermes' templates have made common.

use serde_json::{Value, json};

use super::{ChatMessage, ChatRole, ChatTemplate};

/// How a model writes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStyle {
    /// `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`, any number of them, text before.
    Tagged,
    /// The whole answer is `{"name": …, "parameters": {…}}` (Llama 3).
    Bare,
}

/// What a template's source says about tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ToolSupport {
    pub(super) style: CallStyle,
    /// The template lays tools out itself.
    pub(super) native: bool,
}

/// What can be told from a template's text. A template that writes calls in a way that is not
/// known here is treated as one without tools.
pub(super) fn support(source: &str) -> ToolSupport {
    let tagged = source.contains("<tool_call>");
    let bare = source.contains("\"parameters\": ") || source.contains("\"parameters\":");
    match source.contains("tools") && source.contains("tool_calls") {
        true if tagged => ToolSupport {
            style: CallStyle::Tagged,
            native: true,
        },
        true if bare => ToolSupport {
            style: CallStyle::Bare,
            native: true,
        },
        _ => ToolSupport {
            style: CallStyle::Tagged,
            native: false,
        },
    }
}

impl ChatTemplate {
    /// How the model is to write calls.
    pub fn call_style(&self) -> CallStyle {
        self.tools.style
    }

    /// The conversation as a template without tools can lay it out.
    pub(super) fn plain(&self, messages: &[ChatMessage], tools: &[Value]) -> Vec<ChatMessage> {
        let mut plain: Vec<ChatMessage> = Vec::with_capacity(messages.len() + 1);
        let mut after_result = false;
        for message in messages {
            let is_result = message.role == ChatRole::Tool;
            let content = match message.role {
                ChatRole::Tool => {
                    format!("<tool_response>\n{}\n</tool_response>", message.content)
                }
                _ => with_calls(message),
            };
            match plain.last_mut() {
                // Results of one turn make one message: many templates want roles to alternate.
                Some(last) if is_result && after_result => {
                    last.content.push('\n');
                    last.content.push_str(&content);
                }
                _ => {
                    let role = match message.role {
                        ChatRole::Tool => ChatRole::User,
                        other => other,
                    };
                    let is_as_sent = !is_result && message.tool_calls.is_none();
                    plain.push(ChatMessage {
                        reasoning_content: message.reasoning_content.clone(),
                        sent: message.sent.clone().filter(|_| is_as_sent),
                        ..ChatMessage::new(role, content)
                    });
                }
            }
            after_result = is_result;
        }
        if !tools.is_empty() {
            self.describe(&mut plain, &description(tools));
        }
        plain
    }

    /// Adds the description to the system's message, or to the first one if the template takes no
    /// system message.
    fn describe(&self, messages: &mut Vec<ChatMessage>, description: &str) {
        match messages.first_mut() {
            Some(first) if first.role == ChatRole::System || !self.takes_system => {
                first.content = format!("{description}\n\n{}", first.content);
                // Content in parts would stand for the text.
                first.sent = None;
            }
            _ => messages.insert(0, ChatMessage::new(ChatRole::System, description)),
        }
    }
}

fn with_calls(message: &ChatMessage) -> String {
    let mut content = message.content.clone();
    for call in message.tool_calls.iter().flatten() {
        if !content.is_empty() {
            content.push('\n');
        }
        let function = &call["function"];
        let call = json!({"name": function["name"], "arguments": function["arguments"]});
        content.push_str(&format!("<tool_call>\n{call}\n</tool_call>"));
    }
    content
}

fn description(tools: &[Value]) -> String {
    let lines: Vec<String> = tools.iter().map(|t| t["function"].to_string()).collect();
    format!(
        "You can call these functions; each line describes one as JSON:\n{}\n\
         To call one, write its name and its arguments as JSON between tags:\n\
         <tool_call>\n{{\"name\": \"NAME\", \"arguments\": {{}}}}\n</tool_call>",
        lines.join("\n")
    )
}

/// Applies `change` to every string of a JSON value, keys included.
pub(super) fn map_strings(value: &Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(items) => items.iter().map(|v| map_strings(v, change)).collect(),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, value)| (change(key), map_strings(value, change)))
                .collect(),
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
