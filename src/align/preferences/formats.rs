//! One row of any supported format → a pair.
//!
//! | format | prompt | responses |
//! | --- | --- | --- |
//! | native | `prompt` (text or messages) or `messages`, `question`, or `instruction` with `input` | `chosen`, `rejected` |
//! | TRL | `prompt` (text or messages, the last turns suffice), or the start of both conversations | `chosen`, `rejected` as message lists |
//! | transcript | `prompt` as text: `Human: …\n\nAssistant: …`, also by lines or with other marks, or ChatML | `chosen`, `rejected` |
//! | Anthropic HH | inside the texts, `\n\nHuman: …\n\nAssistant: …` | `chosen`, `rejected` |
//! | ShareGPT | `conversations` of `{from, value}` | `chosen`, `rejected` as one message each |
//! | UltraFeedback | `instruction` or `prompt` | `completions` of `{response, overall_score or annotations}`: best against worst |
//! | scored | `prompt` or `instruction` | `responses` with `scores` of the same length |
//! | OpenAI | `input.messages` | `preferred_output`, `non_preferred_output` |
//! | PKU-SafeRLHF | `prompt` | `response_0`, `response_1`; `better_response_id`, else `safer_response_id` |
//!
//! The content of a message is text, or a list of parts that are all text. Messages may call functions and
//! return results; `tools` (or `functions`) lists the functions. A column `system` (or `system_prompt`,
//! `system_message`) is the conversation's system prompt. Columns that would change what a pair means and are
//! not read, such as `images` or `context`, make the line invalid.
//!
//! Labels come from `meta.labels` and `meta.category` (both responses), `meta.chosen_labels` and
//! `meta.rejected_labels` (one each), the same keys next to `chosen`, and from PKU-SafeRLHF's
//! safety flags (`safe`, `unsafe`), harm categories by their published names, and severity
//! (`severity-1` and up). If a pair has `score_chosen` and `score_rejected`, they must agree
//! with it.

mod columns;
mod error;
mod messages;
mod meta;
mod prompt;
mod scored;
mod transcript;

use serde_json::{Map, Value};

use super::{LineSource, Message, Pair, Role, pair_id};
pub(super) use columns::is_read;
pub(super) use error::LineError;
use messages::{check_text, check_trained, functions, message, messages};
use meta::{holdout, labels_of, shared_labels};
use prompt::Prompt;
use realign_core::json;

type Object = Map<String, Value>;

/// A row that is a pair.
pub(super) struct Parsed {
    pub(super) pair: Pair,
    /// The name of the format that it was read as.
    pub(super) format: &'static str,
}

/// Parses one line.
pub(super) fn parse_line(line: &str, source: LineSource) -> Result<Parsed, LineError> {
    let value: Value = json::parse(line.as_bytes())?;
    let Value::Object(object) = value else {
        return Err(LineError::NotAnObject);
    };
    columns::check(&object)?;
    let has = |key: &str| object.contains_key(key);
    let draft = if has("preferred_output") {
        openai(&object)?
    } else if columns::has_pair(&object) {
        scored::check(&object)?;
        preference(&object)?
    } else if has("response_0") {
        pku(&object)?
    } else if has("completions") || has("scores") {
        scored::draft(&object)?
    } else {
        return Err(no_pair(&object));
    };
    draft.finish(&object, source)
}

/// Why a row of no known format is refused.
fn no_pair(object: &Object) -> LineError {
    let has = |key: &&str| object.contains_key(*key);
    let single = ["completion", "response", "output", "answer", "text"];
    let talk = ["messages", "conversations"];
    let is_half = ["chosen", "rejected"].iter().any(has);
    if !is_half && single.iter().chain(&talk).any(has) {
        return match has(&"label") || has(&"kto_tag") {
            true => LineError::Unpaired,
            false => LineError::Supervised,
        };
    }
    LineError::NoResponse {
        missing: if has(&"chosen") { "rejected" } else { "chosen" },
        columns: object.keys().cloned().collect(),
    }
}

/// A pair before validation.
struct Draft {
    prompt: Vec<Message>,
    answers: [Message; 2],
    labels: [Vec<String>; 2],
    functions: Vec<Value>,
    format: &'static str,
}

impl Draft {
    /// Two texts that answer a prompt.
    fn of_texts(
        object: &Object,
        prompt: Prompt,
        responses: [String; 2],
        format: &'static str,
    ) -> Result<Draft, LineError> {
        prompt.agrees(object, &prompt.messages)?;
        let answers = responses.map(|text| {
            let transcript = prompt.transcript.as_ref();
            let text = transcript.map_or(&*text, |transcript| transcript.answer(&text));
            Message::new(Role::Assistant, text)
        });
        Ok(Draft {
            prompt: prompt.messages,
            answers,
            labels: [Vec::new(), Vec::new()],
            functions: functions(object)?,
            format,
        })
    }

    fn finish(self, object: &Object, source: LineSource) -> Result<Parsed, LineError> {
        let mut prompt = columns::with_system(object, self.prompt)?;
        match prompt.last() {
            None => return Err(LineError::EmptyPrompt),
            Some(last) if last.role == Role::Tool => {}
            Some(last) if last.role != Role::User => return Err(LineError::LastRole(last.role)),
            Some(last) if last.content.trim().is_empty() => return Err(LineError::BlankPrompt),
            Some(_) => {}
        }
        if !self.functions.is_empty()
            && let Some(first) = prompt.first_mut()
        {
            first.calling_mut().functions = self.functions;
        }
        let holdout = holdout(object)?;
        let shared = shared_labels(object)?;
        let [chosen_labels, rejected_labels] = self.labels.map(|mut own| {
            own.extend(shared.iter().cloned());
            own.sort_unstable();
            own.dedup();
            own
        });
        let [chosen, rejected] = [self.answers[0].judged(), self.answers[1].judged()];
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
        let calls = self.answers.iter().any(|answer| !answer.calls().is_empty());
        let pair = Pair {
            id,
            prompt,
            chosen,
            rejected,
            chosen_labels,
            rejected_labels,
            holdout,
            source,
            calling: calls.then(|| Box::new(self.answers)),
        };
        Ok(Parsed {
            pair,
            format: self.format,
        })
    }
}

/// Every format with `chosen` and `rejected`.
fn preference(object: &Object) -> Result<Draft, LineError> {
    let [chosen, rejected] = [field(object, "chosen")?, field(object, "rejected")?];
    for (key, value) in [("chosen", chosen), ("rejected", rejected)] {
        check_trained(key, value)?;
        check_text(key, value)?;
    }
    let labels = [
        labels_of(object, "chosen_labels")?,
        labels_of(object, "rejected_labels")?,
    ];
    let functions = functions(object)?;
    let Some(prompt) = prompt::read(object)? else {
        let (chosen, format) = conversation("chosen", chosen)?;
        let (rejected, _) = conversation("rejected", rejected)?;
        if chosen.before != rejected.before {
            return Err(LineError::DifferentPrompts);
        }
        return Ok(Draft {
            prompt: chosen.before,
            answers: [chosen.message, rejected.message],
            labels,
            functions,
            format,
        });
    };
    let [first, second] = [
        response("chosen", chosen, &prompt)?,
        response("rejected", rejected, &prompt)?,
    ];
    let given = &prompt.messages;
    // The prompt may be given as the last turns only, and the whole in front of each response.
    let whole = match first.before == second.before && first.before.ends_with(given) {
        true => first.before,
        false => {
            for (key, before) in [("chosen", &first.before), ("rejected", &second.before)] {
                if !before.is_empty() && before != given {
                    return Err(LineError::NotOneResponse(key.into()));
                }
            }
            given.clone()
        }
    };
    prompt.agrees(object, &whole)?;
    Ok(Draft {
        prompt: whole,
        answers: [first.message, second.message],
        labels,
        functions,
        format: match &prompt.transcript {
            Some(transcript) => transcript.format,
            None => form(object),
        },
    })
}

/// The name of the form of a row with `chosen`, `rejected` and a prompt.
fn form(object: &Object) -> &'static str {
    let is_list = |key: &str| object.get(key).is_some_and(Value::is_array);
    if object.contains_key("conversations") {
        "ShareGPT"
    } else if is_list("chosen") || is_list("rejected") {
        "TRL"
    } else {
        "native"
    }
}

/// OpenAI's preference fine-tuning: a conversation, and messages that answer it.
fn openai(object: &Object) -> Result<Draft, LineError> {
    let missing = || LineError::Missing("input.messages".into());
    let input = object.get("input").and_then(Value::as_object);
    let input = input.ok_or_else(missing)?;
    columns::check(input)?;
    let talk = input.get("messages").ok_or_else(missing)?;
    let answer = |key: &'static str| -> Result<Message, LineError> {
        let value = object.get(key).ok_or(LineError::Missing(key.into()))?;
        check_trained(key, value)?;
        let answer = last_message(key, value)?;
        match answer.before.is_empty() {
            true => Ok(answer.message),
            false => Err(LineError::NotOneResponse(key.into())),
        }
    };
    let inside = functions(input)?;
    Ok(Draft {
        prompt: messages("input.messages", talk)?,
        answers: [answer("preferred_output")?, answer("non_preferred_output")?],
        labels: [Vec::new(), Vec::new()],
        functions: if inside.is_empty() {
            functions(object)?
        } else {
            inside
        },
        format: "OpenAI",
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
    let prompt = prompt::read(object)?.ok_or(LineError::Missing("prompt".into()))?;
    let draft = Draft::of_texts(object, prompt, [chosen, rejected], "PKU-SafeRLHF")?;
    Ok(Draft {
        labels: [chosen_labels, rejected_labels],
        ..draft
    })
}

fn field<'a>(object: &'a Object, key: &str) -> Result<&'a Value, LineError> {
    object
        .get(key)
        .ok_or_else(|| LineError::Missing(key.into()))
}

fn text_field(object: &Object, key: &str) -> Result<String, LineError> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(LineError::NotText(key.into())),
        None => Err(LineError::Missing(key.into())),
    }
}

/// A response, and what its column has in front of it.
struct Answer {
    before: Vec<Message>,
    message: Message,
}

/// A response to an explicit prompt: text, a message, or a list of messages. What precedes its last
/// message, as in some TRL data sets, is the conversation.
fn response(key: &str, value: &Value, prompt: &Prompt) -> Result<Answer, LineError> {
    let mut answer = match value {
        Value::String(text) => match transcript::whole(key, text) {
            // A dialogue that begins with another prompt is a text that the model wrote.
            Some(mut turns) if turns[..turns.len() - 1].ends_with(&prompt.messages) => {
                let message = turns.pop().ok_or_else(|| LineError::Missing(key.into()))?;
                Answer {
                    before: turns,
                    message,
                }
            }
            _ => Answer {
                before: Vec::new(),
                message: Message::new(Role::Assistant, text.clone()),
            },
        },
        other => last_message(key, other)?,
    };
    if let Some(transcript) = &prompt.transcript {
        // What follows `Assistant:` is a turn of the transcript, and turns are trimmed.
        answer.message.content = transcript.answer(&answer.message.content).to_owned();
    }
    Ok(answer)
}

/// A message, or a list that ends with the assistant's.
fn last_message(key: &str, value: &Value) -> Result<Answer, LineError> {
    let mut list = match value {
        Value::String(text) => vec![Message::new(Role::Assistant, text.clone())],
        Value::Object(_) => vec![message(key, value)?],
        other => messages(key, other)?,
    };
    match list.pop() {
        Some(message) if message.role == Role::Assistant => Ok(Answer {
            before: list,
            message,
        }),
        _ => Err(LineError::NotOneResponse(key.into())),
    }
}

/// A whole conversation, split before its last message, which is the assistant's, and the format that it
/// has.
fn conversation(key: &str, value: &Value) -> Result<(Answer, &'static str), LineError> {
    let (mut list, format) = match value {
        Value::String(text) => transcript::turns(key, text)?,
        other => (messages(key, other)?, "TRL"),
    };
    match list.pop() {
        Some(message) if message.role == Role::Assistant => {
            let before = list;
            Ok((Answer { before, message }, format))
        }
        _ => Err(LineError::NoLastResponse(key.into())),
    }
}
