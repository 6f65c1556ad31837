//! Arguments of earlier calls in the form that a template reads.
//!
//! Most templates take an object and write it as JSON; some iterate over it, some append it to a
//! string. A model's arguments may also be no object: cut, empty, malformed. What a template fails
//! on is rendered again in the two other forms before the conversation is refused.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{ChatError, ChatMessage};

/// The key under which a text stands where a template wants an object.
const TEXT_KEY: &str = "arguments";

/// Renders a conversation. If the template refuses it, tries it with all arguments as JSON text,
/// then with all as objects.
///
/// # Errors
/// The first refusal.
pub(super) fn in_any_form<T>(
    messages: &[ChatMessage],
    render: impl Fn(&[ChatMessage]) -> Result<T, ChatError>,
) -> Result<T, ChatError> {
    let refused = match render(messages) {
        Err(error @ ChatError::Refused(_)) if calls(messages).next().is_some() => error,
        done => return done,
    };
    for form in [as_text, as_object] {
        if let Some(messages) = rewritten(messages, form)
            && let Ok(rendered) = render(&messages)
        {
            return Ok(rendered);
        }
    }
    Err(refused)
}

fn calls(messages: &[ChatMessage]) -> impl Iterator<Item = &Value> {
    messages
        .iter()
        .filter_map(|m| m.tool_calls.as_ref())
        .flatten()
}

fn as_text(arguments: &Value) -> Cow<'_, Value> {
    match arguments {
        Value::String(_) => Cow::Borrowed(arguments),
        other => Cow::Owned(other.to_string().into()),
    }
}

fn as_object(arguments: &Value) -> Cow<'_, Value> {
    match arguments {
        Value::Object(_) => Cow::Borrowed(arguments),
        other => Cow::Owned(json!({ TEXT_KEY: other })),
    }
}

/// The conversation with all arguments in this form; `None` if they have it already.
fn rewritten(
    messages: &[ChatMessage],
    form: fn(&Value) -> Cow<'_, Value>,
) -> Option<Vec<ChatMessage>> {
    let differs = |call: &Value| matches!(form(&call["function"]["arguments"]), Cow::Owned(_));
    if !calls(messages).any(differs) {
        return None;
    }
    let mut messages = messages.to_vec();
    for call in messages
        .iter_mut()
        .filter_map(|m| m.tool_calls.as_mut())
        .flatten()
    {
        let changed = form(&call["function"]["arguments"]).into_owned();
        call["function"]["arguments"] = changed;
    }
    Some(messages)
}
