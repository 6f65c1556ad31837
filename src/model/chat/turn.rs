//! What follows a conversation, and the variables that a template is given besides it.

use serde_json::{Map, Value};

use super::{ChatError, ChatMessage, ChatRole};

/// What follows the conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Next {
    /// The assistant's turn is opened.
    #[default]
    Answer,
    /// Nothing.
    Nothing,
    /// The last message, which is the assistant's, is continued.
    Continuation,
}

/// How a conversation is rendered.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// What follows.
    pub next: Next,
    /// Further variables of the template.
    pub variables: Map<String, Value>,
}

impl Turn {
    /// The assistant's turn is opened, or nothing follows.
    pub fn new(opens: bool) -> Self {
        Self {
            next: if opens { Next::Answer } else { Next::Nothing },
            variables: Map::new(),
        }
    }

    pub(super) fn opens(&self) -> bool {
        self.next == Next::Answer
    }

    /// The mark of a continuation, if this is one.
    ///
    /// # Errors
    /// If the last message is not the assistant's.
    pub(super) fn mark(
        &self,
        messages: &[ChatMessage],
        texts: impl FnOnce() -> String,
    ) -> Result<Option<Mark>, ChatError> {
        if self.next != Next::Continuation {
            return Ok(None);
        }
        match messages.last() {
            Some(last) if last.role == ChatRole::Assistant => Ok(Some(Mark::new(&texts()))),
            _ => Err(refused("it is not the assistant's")),
        }
    }
}

fn refused(why: &str) -> ChatError {
    ChatError::Refused(format!("the last message cannot be continued: {why}"))
}

/// What stands behind the text of a message that is continued while it is rendered, so that its end is
/// found: the text may be empty, or occur again behind it. The white space at the mark's end tells
/// whether the template strips the message.
pub(super) struct Mark(String);

impl Mark {
    /// A mark that no text holds.
    pub(super) fn new(texts: &str) -> Self {
        let mut mark = "CONTINUE_FINAL_MESSAGE_TAG".to_owned();
        while texts.contains(&mark) {
            mark.push('_');
        }
        Self(mark)
    }

    /// Marks the end of a message's text: of its content, or of the last of its parts that has one.
    /// Returns the text.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn set(&self, message: &mut Map<String, Value>) -> Result<String, ChatError> {
        let text = match message.get_mut("content") {
            Some(Value::String(text)) => Some(text),
            Some(Value::Array(parts)) => {
                let mut texts = parts
                    .iter_mut()
                    .rev()
                    .filter_map(|part| part.get_mut("text"));
                match texts.next() {
                    Some(Value::String(text)) => Some(text),
                    _ => None,
                }
            }
            _ => None,
        };
        let text = text.ok_or_else(|| refused("it has no content"))?;
        let plain = text.clone();
        text.push_str(&self.0);
        text.push(' ');
        Ok(plain)
    }

    /// The rendered text up to the mark. `message` is what was marked.
    ///
    /// # Errors
    /// If the template leaves the message or a part of it out.
    pub(super) fn cut(&self, mut text: String, message: &str) -> Result<String, ChatError> {
        let at = text
            .rfind(&self.0)
            .filter(|_| text.contains(message.trim()))
            .ok_or_else(|| refused("the template changes its text"))?;
        let is_kept = text[at + self.0.len()..].starts_with(' ');
        text.truncate(at);
        if !is_kept {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_no_part_of_any_text() {
        let mark = Mark::new("CONTINUE_FINAL_MESSAGE_TAG and CONTINUE_FINAL_MESSAGE_TAG_");
        let mut message = Map::from_iter([("content".to_owned(), Value::from("b"))]);
        let text = mark.set(&mut message).unwrap();
        let rendered = format!("b{}<end>b", message["content"].as_str().unwrap());
        assert_eq!(mark.cut(rendered, &text).unwrap(), "bb");
        assert!(mark.cut("b<end>b".into(), &text).is_err());
    }
}
