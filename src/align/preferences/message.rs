//! Messages of conversations.

use serde::Serialize;
use serde_json::Value;

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// System prompt, written by the operator.
    System,
    /// The human user.
    User,
    /// The language model.
    Assistant,
    /// The result of a function that the model called.
    Tool,
}

impl Role {
    /// The name chat templates use.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Message {
    /// Author of the message.
    pub(crate) role: Role,
    /// Text of the message.
    pub(crate) content: String,
    /// What belongs to functions, if there is anything.
    #[serde(flatten)]
    pub(crate) calling: Option<Box<Calling>>,
}

/// What a message has besides its text where functions are called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Calling {
    /// On a conversation's first message: the functions that the model may call, each as OpenAI's
    /// `{"type": "function", "function": {…}}`.
    #[serde(rename = "tools", skip_serializing_if = "Vec::is_empty")]
    pub(crate) functions: Vec<Value>,
    /// The model's calls, each `{"type": "function", "function": {"name", "arguments"}}`.
    #[serde(rename = "tool_calls", skip_serializing_if = "Vec::is_empty")]
    pub(crate) calls: Vec<Value>,
    /// Of a result: the id of the call that it answers.
    #[serde(rename = "tool_call_id", skip_serializing_if = "Option::is_none")]
    pub(crate) answers: Option<String>,
}

impl Message {
    /// A message that is only text.
    pub(crate) fn new(role: Role, content: impl Into<String>) -> Message {
        Message {
            role,
            content: content.into(),
            calling: None,
        }
    }

    /// What belongs to functions, to be changed.
    pub(crate) fn calling_mut(&mut self) -> &mut Calling {
        self.calling.get_or_insert_default()
    }

    /// The same message without the functions that are noted on it.
    pub(crate) fn without_functions(mut self) -> Message {
        if let Some(calling) = &mut self.calling {
            calling.functions.clear();
            if **calling == Calling::default() {
                self.calling = None;
            }
        }
        self
    }

    /// The calls in it.
    pub(crate) fn calls(&self) -> &[Value] {
        self.calling.as_ref().map_or(&[], |calling| &calling.calls)
    }

    /// Its text and its calls, as policies judge them: each call on a line of its own, as JSON with
    /// `name` and `arguments` between `<tool_call>` tags.
    pub(crate) fn judged(&self) -> String {
        let mut text = self.content.clone();
        for call in self.calls() {
            if !text.is_empty() {
                text.push('\n');
            }
            let function = call.get("function").unwrap_or(call);
            text.push_str(&format!("<tool_call>\n{function}\n</tool_call>"));
        }
        text
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let calling = self
            .calling
            .as_ref()
            .map_or(0, |calling| calling.text().len());
        self.content.len() + calling + size_of::<Message>()
    }
}

impl Calling {
    /// As JSON, which begins with `{`.
    pub(super) fn text(&self) -> String {
        // Its maps have texts as keys, so that this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The functions that the model may call in a conversation, wherever they are noted.
pub(crate) fn functions(messages: &[Message]) -> Vec<Value> {
    let calling = messages
        .iter()
        .filter_map(|message| message.calling.as_ref());
    calling
        .flat_map(|calling| calling.functions.iter().cloned())
        .collect()
}
