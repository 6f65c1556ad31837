//! Answers in Ollama's form: one line, or a stream of lines.

use std::convert::Infallible;
use std::time::Instant;

use axum::body::{Body as HttpBody, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};

use super::super::{events, is_last};
use super::Form;
use realign_core::clock::{unix_seconds, utc};

/// The one line of a whole answer.
pub(super) fn line(answer: &Value, form: Form, started: Instant) -> Value {
    let choice = &answer["choices"][0];
    let calls = choice["message"]["tool_calls"].as_array();
    let mut line = part(answer, &choice["message"], form);
    add_calls(&mut line, calls.map_or(&[], Vec::as_slice), form);
    add_logprobs(&mut line, choice);
    end(
        &mut line,
        &choice["finish_reason"],
        &answer["usage"],
        started,
    );
    line
}

/// The one line of an answer to a request that says nothing.
pub(super) fn empty(model: &str, form: Form) -> Value {
    let mut line = part(&json!({ "model": model }), &Value::Null, form);
    line["done"] = true.into();
    line["done_reason"] = "load".into();
    line
}

/// A line with the text of a message or of a delta.
fn part(answer: &Value, said: &Value, form: Form) -> Value {
    let text = said["content"].as_str().unwrap_or_default();
    let mut line =
        json!({"model": answer["model"], "created_at": utc(unix_seconds()), "done": false});
    match form {
        Form::Chat => {
            line["message"] = json!({"role": "assistant", "content": text});
            if let Some(thoughts) = said["reasoning_content"].as_str() {
                line["message"]["thinking"] = thoughts.into();
            }
        }
        Form::Generate => {
            line["response"] = text.into();
            if let Some(thoughts) = said["reasoning_content"].as_str() {
                line["thinking"] = thoughts.into();
            }
        }
    }
    line
}

fn add_calls(line: &mut Value, calls: &[Value], form: Form) {
    if calls.is_empty() || form == Form::Generate {
        return;
    }
    let call = |call: &Value| {
        let function = &call["function"];
        let arguments = function["arguments"].as_str().unwrap_or_default();
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
        json!({"function": {"name": function["name"], "arguments": arguments}})
    };
    line["message"]["tool_calls"] = calls.iter().map(call).collect();
}

fn add_logprobs(line: &mut Value, choice: &Value) {
    let logprobs = &choice["logprobs"]["content"];
    if logprobs.is_array() {
        line["logprobs"] = logprobs.clone();
    }
}

/// Makes a line the last one.
fn end(line: &mut Value, reason: &Value, usage: &Value, started: Instant) {
    let nanoseconds =
        |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    line["done"] = true.into();
    line["done_reason"] = match reason.as_str() {
        Some("length") => "length".into(),
        _ => "stop".into(),
    };
    let total = nanoseconds(started.elapsed());
    line["total_duration"] = total.into();
    line["load_duration"] = 0.into();
    line["prompt_eval_count"] = usage["prompt_tokens"].as_u64().unwrap_or(0).into();
    line["prompt_eval_duration"] = 0.into();
    line["eval_count"] = usage["completion_tokens"].as_u64().unwrap_or(0).into();
    line["eval_duration"] = total.into();
}

/// A translated stream: a call is passed on when it is complete.
#[derive(Default)]
struct Lines {
    calls: Vec<Value>,
    reason: Value,
    /// What the check of the finished answer found; no field of Ollama's.
    schema_notice: Value,
}

impl Lines {
    fn chunk(&mut self, chunk: &Value, form: Form, started: Instant) -> Option<Value> {
        if let Some(error) = chunk.get("error") {
            return Some(json!({"error": error["message"]}));
        }
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if call["id"].is_string() {
                self.calls.push(call.clone());
            } else if let Some(last) = self.calls.last_mut() {
                let so_far = last["function"]["arguments"].as_str().unwrap_or_default();
                let more = function["arguments"].as_str().unwrap_or_default();
                let all = format!("{so_far}{more}");
                last["function"]["arguments"] = all.into();
            }
        }
        if choice["finish_reason"].is_string() {
            self.reason = choice["finish_reason"].clone();
            self.schema_notice = choice["schema_notice"].clone();
        }
        if is_last(chunk) {
            let mut line = part(chunk, &Value::Null, form);
            add_calls(&mut line, &self.calls, form);
            end(&mut line, &self.reason, &chunk["usage"], started);
            if self.schema_notice.is_string() {
                line["schema_notice"] = self.schema_notice.take();
            }
            return Some(line);
        }
        let says = |key: &str| delta[key].as_str().is_some_and(|text| !text.is_empty());
        let scored = choice["logprobs"]["content"].as_array();
        let sent = says("content")
            || says("reasoning_content")
            || scored.is_some_and(|tokens| !tokens.is_empty());
        sent.then(|| {
            let mut line = part(chunk, delta, form);
            add_logprobs(&mut line, choice);
            line
        })
    }
}

pub(super) fn stream_of(response: Response, form: Form, started: Instant) -> Response {
    let (mut parts, body) = response.into_parts();
    let mut lines = Lines::default();
    let translated =
        events::of(body).flat_map(move |chunk| stream::iter(lines.chunk(&chunk, form, started)));
    let sent = translated.map(|line| Ok::<Bytes, Infallible>(Bytes::from(format!("{line}\n"))));
    let kind = HeaderValue::from_static("application/x-ndjson");
    parts.headers.insert(header::CONTENT_TYPE, kind);
    parts
        .headers
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    Response::from_parts(parts, HttpBody::from_stream(sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_ends_with_its_calls_and_counts() {
        let mut lines = Lines::default();
        let started = Instant::now();
        let delta = |delta: Value| json!({"model": "m", "choices": [{"delta": delta}]});
        let chunks = [
            delta(json!({"role": "assistant", "content": ""})),
            delta(json!({"content": "A"})),
            delta(
                json!({"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{\"a\""}}]}),
            ),
            delta(json!({"tool_calls": [{"function": {"arguments": ":1}"}}]})),
            json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}),
            json!({"model": "m", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}),
        ];
        let sent: Vec<Value> = chunks
            .iter()
            .filter_map(|chunk| lines.chunk(chunk, Form::Chat, started))
            .collect();
        assert_eq!(sent.len(), 2, "{sent:?}");
        assert_eq!(
            (&sent[0]["message"]["content"], &sent[0]["done"]),
            (&json!("A"), &json!(false))
        );
        let last = &sent[1];
        assert_eq!(
            last["message"]["tool_calls"][0]["function"]["arguments"]["a"],
            1
        );
        assert_eq!(
            (&last["done_reason"], &last["eval_count"]),
            (&json!("stop"), &json!(3))
        );
    }
}
