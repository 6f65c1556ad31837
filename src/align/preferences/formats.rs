//! One JSON line of any supported format → a pair.
//!
//! | format | prompt | responses |
//! | --- | --- | --- |
//! | native | `prompt` (text or messages) or `messages` | `chosen`, `rejected` |
//! | TRL | `prompt` (text or messages, the last turns suffice), or the start of both conversations | `chosen`, `rejected` as message lists |
//! | Anthropic HH | inside the texts, `\n\nHuman: …\n\nAssistant: …`, or in `prompt`, up to its last `Assistant:` | `chosen`, `rejected` |
//! | ShareGPT | `conversations` of `{from, value}` | `chosen`, `rejected` as one message each |
//! | UltraFeedback | `instruction` or `prompt` | `completions` of `{response, overall_score or annotations}`: best against worst |
//! | scored | `prompt` or `instruction` | `responses` with `scores` of the same length |
//! | PKU-SafeRLHF | `prompt` | `response_0`, `response_1`; `better_response_id`, else `safer_response_id` |
//!
//! The content of a message is text, or a list of parts that are all text.
//!
//! Labels come from `meta.labels` and `meta.category` (both responses), `meta.chosen_labels` and
//! `meta.rejected_labels` (one each), the same keys next to `chosen`, and from PKU-SafeRLHF's
//! safety flags (`safe`, `unsafe`), harm categories by their published names, and severity
//! (`severity-1` and up). If a pair has `score_chosen` and `score_rejected`, they must agree
//! with it.

mod error;
mod scored;
mod transcript;

use serde_json::{Map, Value};

use super::{LineSource, Message, Pair, Role, pair_id};
pub(super) use error::LineError;

type Object = Map<String, Value>;

/// Parses one line.
pub(super) fn parse_line(line: &str, source: LineSource) -> Result<Pair, LineError> {
    let value: Value = serde_json::from_str(line)?;
    let Value::Object(object) = value else {
        return Err(LineError::NotAnObject);
    };
    let draft = if object.contains_key("response_0") {
        pku(&object)?
    } else if object.contains_key("completions") || object.contains_key("scores") {
        scored::draft(&object)?
    } else {
        scored::check(&object)?;
        preference(&object)?
    };
    draft.finish(&object, source)
}

/// A pair before validation.
struct Draft {
    prompt: Vec<Message>,
    responses: [String; 2],
    labels: [Vec<String>; 2],
}

impl Draft {
    fn finish(self, object: &Object, source: LineSource) -> Result<Pair, LineError> {
        let Draft {
            prompt,
            responses: [chosen, rejected],
            labels,
        } = self;
        let holdout = holdout(object)?;
        let shared = shared_labels(object)?;
        let [chosen_labels, rejected_labels] = labels.map(|mut own| {
            own.extend(shared.iter().cloned());
            own.sort_unstable();
            own.dedup();
            own
        });
        match prompt.last() {
            None => return Err(LineError::EmptyPrompt),
            Some(last) if last.role != Role::User => return Err(LineError::LastRole(last.role)),
            Some(last) if last.content.trim().is_empty() => return Err(LineError::BlankPrompt),
            Some(_) => {}
        }
        for (name, text) in [("chosen", &chosen), ("rejected", &rejected)] {
            if text.trim().is_empty() {
                return Err(LineError::BlankResponse(name));
            }
        }
        if chosen == rejected {
            return Err(LineError::Same);
        }
        let id = pair_id(
            &prompt,
            [(&chosen, &chosen_labels), (&rejected, &rejected_labels)],
        );
        Ok(Pair {
            id,
            prompt,
            chosen,
            rejected,
            chosen_labels,
            rejected_labels,
            holdout,
            source,
        })
    }
}

/// Every format with `chosen` and `rejected`.
fn preference(object: &Object) -> Result<Draft, LineError> {
    let [chosen, rejected] = [field(object, "chosen")?, field(object, "rejected")?];
    let labels = [
        labels_of(object, "chosen_labels")?,
        labels_of(object, "rejected_labels")?,
    ];
    let prompt = ["prompt", "messages", "conversations"]
        .into_iter()
        .find_map(|key| {
            object
                .get(key)
                .filter(|value| !value.is_null())
                .map(|value| (key, value))
        });
    let Some((key, prompt)) = prompt else {
        let [(prompt, chosen), (other, rejected)] = [
            conversation("chosen", chosen)?,
            conversation("rejected", rejected)?,
        ];
        if prompt != other {
            return Err(LineError::DifferentPrompts);
        }
        return Ok(Draft {
            prompt,
            responses: [chosen, rejected],
            labels,
        });
    };
    let turns = prompt
        .as_str()
        .and_then(|text| transcript::prompt(key, text));
    let is_transcript = turns.is_some();
    let prompt = match (turns, prompt) {
        (Some(turns), _) => turns,
        (None, Value::String(text)) => vec![Message {
            role: Role::User,
            content: text.clone(),
        }],
        (None, other) => messages(key, other)?,
    };
    let mut responses = [response("chosen", chosen)?, response("rejected", rejected)?];
    if is_transcript {
        // What follows `Assistant:` is a turn of the transcript, and turns are trimmed.
        for (_, text) in &mut responses {
            *text = text.trim().to_owned();
        }
    }
    let [(before, _), (other, _)] = &responses;
    // The prompt may be given as the last turns only, and the whole in front of each response.
    let prompt = match before == other && before.ends_with(&prompt) {
        true => before.clone(),
        false => {
            for (key, before) in [("chosen", before), ("rejected", other)] {
                if !before.is_empty() && *before != prompt {
                    return Err(LineError::NotOneResponse(key.into()));
                }
            }
            prompt
        }
    };
    Ok(Draft {
        prompt,
        responses: responses.map(|(_, text)| text),
        labels,
    })
}

/// PKU-SafeRLHF: the response preferred for helpfulness, or for safety if there is no other.
fn pku(object: &Object) -> Result<Draft, LineError> {
    let key = ["better_response_id", "safer_response_id"]
        .into_iter()
        .find(|key| object.contains_key(*key))
        .ok_or(LineError::NoPreferred)?;
    let better = match object.get(key).and_then(Value::as_u64) {
        Some(id @ (0 | 1)) => id as usize,
        _ => return Err(LineError::NotAnIndex(key.into())),
    };
    let response = |i: usize| -> Result<(String, Vec<String>), LineError> {
        let text = text_field(object, &format!("response_{i}"))?;
        let mut labels = Vec::new();
        if let Some(safe) = object
            .get(&format!("is_response_{i}_safe"))
            .and_then(Value::as_bool)
        {
            labels.push(if safe { "safe" } else { "unsafe" }.to_owned());
        }
        if let Some(Value::Object(harms)) = object.get(&format!("response_{i}_harm_category")) {
            let present = harms
                .iter()
                .filter(|(_, value)| **value == Value::Bool(true));
            labels.extend(present.map(|(name, _)| name.clone()));
        }
        let severity = object.get(&format!("response_{i}_severity_level"));
        if let Some(level) = severity.and_then(Value::as_u64).filter(|level| *level > 0) {
            labels.push(format!("severity-{level}"));
        }
        Ok((text, labels))
    };
    let (chosen, chosen_labels) = response(better)?;
    let (rejected, rejected_labels) = response(1 - better)?;
    Ok(Draft {
        prompt: vec![Message {
            role: Role::User,
            content: text_field(object, "prompt")?,
        }],
        responses: [chosen, rejected],
        labels: [chosen_labels, rejected_labels],
    })
}

fn field<'a>(object: &'a Object, key: &str) -> Result<&'a Value, LineError> {
    object
        .get(key)
        .ok_or_else(|| LineError::NoResponse(key.into()))
}

fn text_field(object: &Object, key: &str) -> Result<String, LineError> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(LineError::NotText(key.into())),
        None => Err(LineError::Missing(key.into())),
    }
}

/// A response to an explicit prompt: text, a message, or a list of messages. The list ends with one
/// assistant message; what precedes it, as in some TRL data sets, is returned first.
fn response(key: &str, value: &Value) -> Result<(Vec<Message>, String), LineError> {
    let mut list = match value {
        Value::String(text) => return Ok((Vec::new(), text.clone())),
        Value::Object(_) => vec![message(key, value)?],
        other => messages(key, other)?,
    };
    match list.pop() {
        Some(last) if last.role == Role::Assistant => Ok((list, last.content)),
        _ => Err(LineError::NotOneResponse(key.into())),
    }
}

/// A whole conversation, split into the messages before its last assistant message and the text of
/// that message.
fn conversation(key: &str, value: &Value) -> Result<(Vec<Message>, String), LineError> {
    let mut list = match value {
        Value::String(text) => transcript::turns(key, text)?,
        other => messages(key, other)?,
    };
    match list.pop() {
        Some(last) if last.role == Role::Assistant => Ok((list, last.content)),
        _ => Err(LineError::NoLastResponse(key.into())),
    }
}

fn messages(key: &str, value: &Value) -> Result<Vec<Message>, LineError> {
    let Value::Array(items) = value else {
        return Err(LineError::NotMessages(key.into()));
    };
    items.iter().map(|item| message(key, item)).collect()
}

/// `{role, content}`, or ShareGPT's `{from, value}`.
fn message(key: &str, value: &Value) -> Result<Message, LineError> {
    let get = |name: &str, other: &str| value.get(name).or_else(|| value.get(other));
    let role = get("role", "from").and_then(Value::as_str);
    let (Some(role), Some(content)) = (role, get("content", "value")) else {
        return Err(LineError::Message(key.into()));
    };
    let role = match role {
        "system" => Role::System,
        "user" | "human" => Role::User,
        "assistant" | "gpt" => Role::Assistant,
        other => {
            return Err(LineError::Role {
                key: key.into(),
                role: other.chars().take(40).collect(),
            });
        }
    };
    let content = text(content).ok_or_else(|| LineError::Message(key.into()))?;
    Ok(Message { role, content })
}

/// A message's content: text, or a list of parts that are all text.
fn text(content: &Value) -> Option<String> {
    let Value::Array(parts) = content else {
        return content.as_str().map(str::to_owned);
    };
    let part = |part: &Value| {
        let is_text = part.get("type").is_some_and(|kind| kind == "text");
        part.get("text")?
            .as_str()
            .filter(|_| is_text)
            .map(str::to_owned)
    };
    parts.iter().map(part).collect()
}

fn holdout(object: &Object) -> Result<Option<bool>, LineError> {
    match object.get("meta").and_then(|meta| meta.get("holdout")) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(held)) => Ok(Some(*held)),
        Some(_) => Err(LineError::Holdout),
    }
}

fn shared_labels(object: &Object) -> Result<Vec<String>, LineError> {
    let mut labels = labels_of(object, "labels")?;
    labels.extend(labels_of(object, "category")?);
    Ok(labels)
}

/// Labels under a key of the line or of its `meta`: text or a list of texts.
fn labels_of(object: &Object, key: &str) -> Result<Vec<String>, LineError> {
    let inside = object.get("meta").and_then(|meta| meta.get(key));
    let mut labels = Vec::new();
    for value in [object.get(key), inside].into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(label) => labels.push(label.clone()),
            Value::Array(items) => {
                let texts: Option<Vec<String>> = items
                    .iter()
                    .map(|item| item.as_str().map(str::to_owned))
                    .collect();
                labels.extend(texts.ok_or_else(|| LineError::NotTexts(key.into()))?);
            }
            _ => return Err(LineError::NotLabels(key.into())),
        }
    }
    Ok(labels)
}
