//! Columns besides those of a format: such as have a meaning for every format, and such as would change
//! a pair's meaning if they were passed over.

use serde_json::Value;

use super::{LineError, Message, Object, Role};

/// Columns that hold the prompt, the first that is given counts. Without one of them, `input` does.
pub(super) const PROMPTS: [&str; 6] = [
    "prompt",
    "messages",
    "conversations",
    "question",
    "query",
    "instruction",
];
/// Columns that hold a system prompt.
const SYSTEMS: [&str; 3] = ["system", "system_prompt", "system_message"];
/// Columns without which a pair means something else.
const UNREAD: [&str; 21] = [
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
    "history",
    "chat_history",
    "conversation",
    "dialogue",
    "context",
    "contexts",
    "documents",
    "document",
    "passage",
    "few_shot",
    "tool_calls",
    "function_call",
    "chat_template_kwargs",
    "prefix",
    "preamble",
];

/// Other columns that every format reads.
const ALWAYS: [&str; 12] = [
    "chosen",
    "rejected",
    "meta",
    "holdout",
    "labels",
    "category",
    "chosen_labels",
    "rejected_labels",
    "preferred_output",
    "non_preferred_output",
    "tools",
    "functions",
];
/// Columns of the formats that make a pair of scored or compared responses.
const COMPARED: [&str; 9] = [
    "response_0",
    "response_1",
    "is_response_0_safe",
    "is_response_1_safe",
    "better_response_id",
    "safer_response_id",
    "completions",
    "responses",
    "scores",
];
/// Columns that are compared with each other, where there are `chosen` and `rejected`.
pub(super) const SCORES: [(&str, &str); 5] = [
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
];

/// Earlier turns, as pairs of texts.
const HISTORY: &str = "history";

/// The turns of a `history` of `[user, assistant]` texts; none if it has another form.
pub(super) fn history(object: &Object) -> Vec<Message> {
    let pair = |item: &Value| match item.as_array().map(Vec::as_slice) {
        Some([Value::String(user), Value::String(assistant)]) => Some([
            Message::new(Role::User, user),
            Message::new(Role::Assistant, assistant),
        ]),
        _ => None,
    };
    let items = object.get(HISTORY).and_then(Value::as_array);
    let pairs: Option<Vec<_>> = items.into_iter().flatten().map(pair).collect();
    pairs.into_iter().flatten().flatten().collect()
}

/// Whether a row names a chosen and a rejected response.
pub(super) fn has_pair(object: &Object) -> bool {
    object.contains_key("chosen") && object.contains_key("rejected")
}

/// The column that holds the prompt.
pub(super) fn prompt_of(object: &Object) -> Option<&'static str> {
    let given = |key: &&str| object.get(*key).is_some_and(|value| !value.is_null());
    let first = PROMPTS.into_iter().find(given);
    let input = || object.get("input").filter(|value| says_something(value));
    first.or_else(|| {
        input()
            .is_some_and(|value| value.is_string() || value.is_array())
            .then_some("input")
    })
}

/// Whether a row's column is read.
pub(in crate::preferences) fn is_read(object: &Object, name: &str) -> bool {
    let prompt = prompt_of(object);
    let is_harm = name.starts_with("response_")
        && (name.ends_with("_harm_category") || name.ends_with("_severity_level"));
    match name {
        "input" if object.contains_key("preferred_output") => true,
        "input" => matches!(prompt, Some("input" | "instruction")),
        _ if PROMPTS.contains(&name) => prompt == Some(name),
        HISTORY => !history(object).is_empty(),
        _ if COMPARED.contains(&name) || is_harm => !has_pair(object),
        _ if SCORES.iter().any(|(a, b)| [*a, *b].contains(&name)) => has_pair(object),
        _ => SYSTEMS.contains(&name) || ALWAYS.contains(&name),
    }
}

/// Whether a value is there and not empty.
pub(super) fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

/// Refuses a line with a column that changes its meaning and is not read.
pub(super) fn check(object: &Object) -> Result<(), LineError> {
    let given = |key: &&&str| object.get(**key).is_some_and(says_something);
    let is_read = |key: &str| key == HISTORY && !history(object).is_empty();
    match UNREAD.iter().filter(given).find(|key| !is_read(key)) {
        Some(key) => Err(LineError::Column(key)),
        None => split(object).and_then(|()| spelled(object)),
    }
}

/// Refuses a row that says that it is not for training, in a column that is not read.
fn split(object: &Object) -> Result<(), LineError> {
    let split = object.get("split").and_then(Value::as_str);
    let split = split.filter(|name| !name.trim().is_empty() && !object.contains_key("holdout"));
    match split {
        Some(name) if !name.trim().to_lowercase().starts_with("train") => {
            Err(LineError::Split(name.chars().take(40).collect()))
        }
        _ => Ok(()),
    }
}

/// Refuses a column that changes a line's meaning, and whose name is written in another way.
fn spelled(object: &Object) -> Result<(), LineError> {
    let plain = |name: &str| -> String {
        let letters = name.chars().filter(|c| c.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect()
    };
    let known: Vec<&'static str> = SYSTEMS.into_iter().chain(UNREAD).collect();
    let given = object.iter().filter(|(_, value)| says_something(value));
    let names = given.map(|(name, _)| name.as_str());
    for name in names.filter(|name| !known.contains(name)) {
        let own = plain(name);
        if let Some(meant) = known.iter().find(|known| plain(known) == own) {
            let given = name.chars().take(40).collect();
            return Err(LineError::Spelled { given, meant });
        }
    }
    Ok(())
}

/// The conversation with the system prompt of a column in front.
pub(super) fn with_system(
    object: &Object,
    prompt: Vec<Message>,
) -> Result<Vec<Message>, LineError> {
    let given = |key: &&str| object.get(*key).is_some_and(says_something);
    let mut keys = SYSTEMS.into_iter().filter(given);
    let Some(key) = keys.next() else {
        return Ok(prompt);
    };
    if let Some(other) = keys.find(|other| object.get(*other) != object.get(key)) {
        return Err(LineError::TwoPrompts(key, other));
    }
    let Some(Value::String(text)) = object.get(key) else {
        return Err(LineError::System(key));
    };
    let own: Vec<&Message> = prompt.iter().filter(|m| m.role == Role::System).collect();
    match own.as_slice() {
        [] => {
            let system = Message::new(Role::System, text.trim());
            Ok(std::iter::once(system).chain(prompt).collect())
        }
        [only] if only.content.trim() == text.trim() => Ok(prompt),
        _ => Err(LineError::TwoSystems(key)),
    }
}

/// A prompt's text with the `input` that an instruction works on.
pub(super) fn with_input(object: &Object, key: &str, text: &str) -> Result<String, LineError> {
    match object.get("input") {
        Some(Value::String(input)) if key == "instruction" && !input.trim().is_empty() => {
            Ok(format!("{text}\n\n{input}"))
        }
        _ => without_input(object, key).map(|()| text.to_owned()),
    }
}

/// Refuses a row with an `input` that is no part of its prompt.
pub(super) fn without_input(object: &Object, key: &str) -> Result<(), LineError> {
    let input = object.get("input").filter(|value| says_something(value));
    match input {
        Some(_) if key != "input" => Err(LineError::Column("input")),
        _ => Ok(()),
    }
}
