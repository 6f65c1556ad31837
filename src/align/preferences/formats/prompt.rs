//! The prompt of a row: one of several columns, as messages, text or a transcript.

use serde_json::Value;

use super::messages::{check_text, messages};
use super::transcript::{self, Transcript};
use super::{LineError, Message, Object, Role, columns};

/// What a row is asked.
pub(super) struct Prompt {
    pub(super) messages: Vec<Message>,
    /// The dialogue that it was given as.
    pub(super) transcript: Option<Transcript>,
    /// The column.
    key: &'static str,
}

/// The prompt of a row; `None` if no column holds one.
pub(super) fn read(object: &Object) -> Result<Option<Prompt>, LineError> {
    let Some(key) = columns::prompt_of(object) else {
        return Ok(None);
    };
    let Some(value) = object.get(key) else {
        return Ok(None);
    };
    check_text(key, value)?;
    match value {
        Value::String(text) => {
            let text = columns::with_input(object, key, text)?;
            let mut transcript = transcript::prompt(key, &text)?;
            let earlier = columns::history(object);
            let messages = match &mut transcript {
                Some(_) if !earlier.is_empty() => return Err(LineError::Column("history")),
                Some(transcript) => std::mem::take(&mut transcript.turns),
                None => {
                    let asked = Message::new(Role::User, text);
                    earlier.into_iter().chain([asked]).collect()
                }
            };
            Ok(Some(Prompt {
                messages,
                transcript,
                key,
            }))
        }
        other => {
            columns::without_input(object, key)?;
            if !columns::history(object).is_empty() {
                return Err(LineError::Column("history"));
            }
            Ok(Some(Prompt {
                messages: messages(key, other)?,
                transcript: None,
                key,
            }))
        }
    }
}

impl Prompt {
    /// Refuses a row with a second prompt. `whole` is the conversation that was made of the first one. The
    /// same with an answer at its end, as UltraFeedback's `messages`, and its last question by itself are
    /// no second ones.
    pub(super) fn agrees(&self, object: &Object, whole: &[Message]) -> Result<(), LineError> {
        for other in columns::PROMPTS
            .into_iter()
            .filter(|other| *other != self.key)
        {
            let second = object.get(other).filter(|v| columns::says_something(v));
            let agrees = match second {
                None => true,
                same if same == object.get(self.key) => true,
                Some(Value::String(text)) => {
                    let last = whole.iter().rev().find(|m| m.role == Role::User);
                    last.is_some_and(|last| last.content.trim() == text.trim())
                }
                Some(second) => {
                    let mut list = messages(other, second)?;
                    list.pop_if(|last| last.role == Role::Assistant);
                    list == whole
                }
            };
            if !agrees {
                return Err(LineError::TwoPrompts(self.key, other));
            }
        }
        Ok(())
    }
}
