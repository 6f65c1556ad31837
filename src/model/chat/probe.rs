//! What a template does, found out by rendering short conversations when it is loaded.

use realign_core::thoughts;
use serde_json::{Value, json};

use super::message::Form;
use super::{ChatError, ChatMessage, ChatRole, ChatTemplate, Tokenizer, Turn};

/// The text of a part with which a template is tried out.
const PART: &str = "a-part-to-find-again";

impl ChatTemplate {
    pub(super) fn accepts_system(&self) -> Result<bool, ChatError> {
        let messages = [
            ChatMessage::new(ChatRole::System, "be brief"),
            ChatMessage::user("hello"),
        ];
        let rendered = self.render_or_refuse(&messages, true)?;
        Ok(rendered.is_some_and(|text| text.contains("be brief")))
    }

    /// What the template does with parts and with developers.
    pub(super) fn found_form(&self) -> Result<Form, ChatError> {
        let text = |role: &str| json!({"role": role, "content": "hello"});
        let parts = |role: &str| json!({"role": role, "content": [{"type": "text", "text": PART}]});
        let function = json!({"name": "f", "arguments": {}});
        let calls = json!([{"id": "abcdefghi", "type": "function", "function": function}]);
        let called = json!({"role": "assistant", "content": "", "tool_calls": calls});
        let mut result = parts("tool");
        result["tool_call_id"] = "abcdefghi".into();
        Ok(Form {
            parts: [
                self.takes_parts([parts("system"), text("user")])?,
                self.takes_parts([parts("user")])?,
                self.takes_parts([text("user"), parts("assistant")])?,
                self.takes_parts([text("user"), called, result])?,
            ],
            developer: self.mentions("developer"),
        })
    }

    /// Whether the template takes parts as text. One that does not fails on them, leaves them out, or
    /// writes them as Python or JSON.
    fn takes_parts<const N: usize>(&self, messages: [Value; N]) -> Result<bool, ChatError> {
        let messages = messages.iter().filter_map(Value::as_object).cloned();
        match self.render_json(messages.collect(), None, &Turn::new(true), None) {
            Ok(text) => {
                let is_dumped = text.contains("'type'") || text.contains("\"type\"");
                Ok(text.contains(PART) && !is_dumped)
            }
            Err(error @ ChatError::Exceeded(_)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Whether the template opens the model's thoughts at the end of a prompt.
    pub(super) fn found_opened_thoughts(&self) -> Result<bool, ChatError> {
        let rendered = self.render_or_refuse(&[ChatMessage::user("hello")], true)?;
        Ok(rendered.is_some_and(|text| thoughts::opened_by(&text)))
    }

    /// Whether a function is shown with all its fields. Where a template has no functions, they are
    /// described as they are.
    pub(super) fn found_whole_functions(&self) -> Result<bool, ChatError> {
        if !self.tools.native {
            return Ok(true);
        }
        let messages = [json!({"role": "user", "content": "hello"})];
        let messages = messages.iter().filter_map(Value::as_object).cloned();
        let parameters = json!({"type": "object", "properties": {}});
        let function =
            json!({"name": "f", "description": "d", "parameters": parameters, PART: true});
        let tools = [json!({"type": "function", "function": function})];
        match self.render_json(messages.collect(), Some(&tools), &Turn::new(true), None) {
            Ok(shown) => Ok(shown.contains(PART)),
            Err(error @ ChatError::Exceeded(_)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// A rendering; `None` if the template does not accept the messages.
    fn render_or_refuse(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<Option<String>, ChatError> {
        match self.render(messages, add_generation_prompt) {
            Ok(text) => Ok(Some(text)),
            Err(error @ ChatError::Exceeded(_)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Renders a short exchange and reads which control token follows the answer.
    pub(super) fn written_end_of_turn(
        &self,
        tokenizer: &Tokenizer,
    ) -> Result<Option<u32>, ChatError> {
        let answer = "an-answer-to-find-again";
        let exchange = [
            ChatMessage::user("hello"),
            ChatMessage::new(ChatRole::Assistant, answer),
        ];
        let text = self.render_or_refuse(&exchange, false)?;
        let Some((_, after)) = text.as_deref().and_then(|text| text.split_once(answer)) else {
            return Ok(None);
        };
        let after = after.trim_start();
        let ends = tokenizer
            .control_tokens()
            .filter(|(_, literal)| after.starts_with(literal));
        let longest = ends.max_by_key(|(_, literal)| literal.len());
        Ok(longest.map(|(id, _)| id))
    }
}
