//! Answers in Anthropic's form, whole and streamed.

use std::convert::Infallible;

use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};

use super::super::super::streaming::KEEP_ALIVE;
use super::super::{events, is_last};
use super::error_body;

/// A whole answer.
pub(super) fn message(answer: &Value) -> Value {
    let choice = &answer["choices"][0];
    let said = &choice["message"];
    let mut content = Vec::new();
    if let Some(thoughts) = said["reasoning_content"].as_str() {
        content.push(json!({"type": "thinking", "thinking": thoughts, "signature": ""}));
    }
    if let Some(text) = said["content"].as_str().filter(|text| !text.is_empty()) {
        content.push(json!({"type": "text", "text": text}));
    }
    for call in said["tool_calls"].as_array().into_iter().flatten() {
        let function = &call["function"];
        content.push(
            json!({"type": "tool_use", "id": call["id"], "name": function["name"],
            "input": input(&function["arguments"])}),
        );
    }
    let mut message = head(answer);
    let calls = content.iter().any(|block| block["type"] == "tool_use");
    message["content"] = content.into();
    (message["stop_reason"], message["stop_sequence"]) = stop(choice, calls);
    message["usage"] = usage(&answer["usage"]);
    message
}

/// A call's arguments as an object; a text that was cut off is an empty one.
fn input(arguments: &Value) -> Value {
    let text = arguments.as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_else(|_| json!({}))
}

fn head(answer: &Value) -> Value {
    let id = answer["id"].as_str().unwrap_or_default();
    let id = format!("msg_{}", id.trim_start_matches("chatcmpl-"));
    json!({"id": id, "type": "message", "role": "assistant", "model": answer["model"], "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": usage(&answer["usage"])})
}

fn usage(usage: &Value) -> Value {
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let cached = count(&usage["prompt_tokens_details"]["cached_tokens"]);
    json!({"input_tokens": count(&usage["prompt_tokens"]).saturating_sub(cached),
        "output_tokens": count(&usage["completion_tokens"]),
        "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0})
}

/// `stop_reason`, and the stop sequence that ended the text, if one did. `calls`: the answer has calls,
/// which OpenAI's `finish_reason` does not say where the request named the function.
fn stop(choice: &Value, calls: bool) -> (Value, Value) {
    // A token that ended it is given by its id.
    let sequence = choice["stop_reason"].as_str();
    match (choice["finish_reason"].as_str(), sequence) {
        (Some("length"), _) => ("max_tokens".into(), Value::Null),
        (Some(_), _) if calls => ("tool_use".into(), Value::Null),
        (Some(_), Some(sequence)) => ("stop_sequence".into(), sequence.into()),
        (Some(_), None) => ("end_turn".into(), Value::Null),
        (None, _) => (Value::Null, Value::Null),
    }
}

/// The state of a translated stream.
#[derive(Default)]
struct Blocks {
    began: bool,
    /// Number of blocks so far, and the kind of the open one.
    count: usize,
    open: Option<&'static str>,
    /// Whether there was a call.
    calls: bool,
    stopped: (Value, Value),
    /// What the check of the finished answer found; no field of Anthropic's.
    schema_notice: Value,
}

impl Blocks {
    /// The events for one chunk.
    fn chunk(&mut self, chunk: &Value) -> Vec<Value> {
        if let Some(error) = chunk.get("error") {
            let message = error["message"].as_str().unwrap_or_default();
            let status = match error["code"].as_str() {
                Some("unavailable") => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return vec![error_body(status, message)];
        }
        let mut events = Vec::new();
        if !self.began {
            self.began = true;
            events.push(json!({"type": "message_start", "message": head(chunk)}));
        }
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        for (key, kind) in [("reasoning_content", "thinking"), ("content", "text")] {
            if let Some(text) = delta[key].as_str().filter(|text| !text.is_empty()) {
                if self.open != Some(kind) {
                    let start = match kind {
                        "thinking" => json!({"type": kind, "thinking": "", "signature": ""}),
                        _ => json!({"type": kind, "text": ""}),
                    };
                    self.start(kind, &start, &mut events);
                }
                self.delta(
                    &json!({"type": format!("{kind}_delta"), kind: text}),
                    &mut events,
                );
            }
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if call["id"].is_string() {
                let start = json!({"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}});
                self.start("tool_use", &start, &mut events);
                self.calls = true;
            }
            if let Some(part) = function["arguments"]
                .as_str()
                .filter(|part| !part.is_empty())
            {
                self.delta(
                    &json!({"type": "input_json_delta", "partial_json": part}),
                    &mut events,
                );
            }
        }
        if choice["finish_reason"].is_string() {
            self.stopped = stop(choice, self.calls);
            self.schema_notice = choice["schema_notice"].clone();
        }
        if is_last(chunk) {
            let (reason, sequence) = self.stopped.clone();
            self.stop(&mut events);
            let mut last = json!({"type": "message_delta", "usage": usage(&chunk["usage"]),
                "delta": {"stop_reason": reason, "stop_sequence": sequence}});
            if self.schema_notice.is_string() {
                last["schema_notice"] = self.schema_notice.take();
            }
            events.push(last);
            events.push(json!({"type": "message_stop"}));
        }
        events
    }

    fn start(&mut self, kind: &'static str, block: &Value, events: &mut Vec<Value>) {
        self.stop(events);
        self.open = Some(kind);
        let index = self.count;
        events.push(json!({"type": "content_block_start", "index": index, "content_block": block}));
    }

    fn delta(&self, delta: &Value, events: &mut Vec<Value>) {
        events.push(json!({"type": "content_block_delta", "index": self.count, "delta": delta}));
    }

    fn stop(&mut self, events: &mut Vec<Value>) {
        if self.open.take().is_some() {
            events.push(json!({"type": "content_block_stop", "index": self.count}));
            self.count += 1;
        }
    }
}

pub(super) fn stream_of(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let mut blocks = Blocks::default();
    let translated = events::of(body).flat_map(move |chunk| stream::iter(blocks.chunk(&chunk)));
    let sent = translated.map(|event| {
        let name = event["type"].as_str().unwrap_or_default().to_owned();
        Ok::<Event, Infallible>(Event::default().event(name).data(event.to_string()))
    });
    let mut response = Sse::new(sent)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    let own = response.headers().clone();
    parts.headers.extend(own);
    *response.headers_mut() = parts.headers;
    response.extensions_mut().extend(parts.extensions);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_opens_and_closes_its_blocks() {
        let mut blocks = Blocks::default();
        let delta = |delta: Value| {
            json!({"id": "chatcmpl-1", "model": "m", "choices": [{"delta": delta}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 0}})
        };
        let chunks = [
            delta(json!({"role": "assistant", "content": ""})),
            delta(json!({"reasoning_content": "Hm"})),
            delta(json!({"content": "A"})),
            delta(json!({"content": "B"})),
            delta(
                json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}),
            ),
            delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})),
            // As OpenAI says it where the request named the function.
            json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 2}}}),
        ];
        let events: Vec<Value> = chunks
            .iter()
            .flat_map(|chunk| blocks.chunk(chunk))
            .collect();
        let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
        assert_eq!(
            kinds,
            [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "content_block_start",
                "content_block_delta",
                "content_block_delta",
                "content_block_stop",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]
        );
        let end = &events[events.len() - 2];
        assert_eq!(end["delta"]["stop_reason"], "tool_use");
        assert_eq!(events[0]["message"]["usage"]["input_tokens"], 5);
        assert_eq!(
            (
                &end["usage"]["input_tokens"],
                &end["usage"]["output_tokens"]
            ),
            (&json!(3), &json!(3))
        );
    }

    #[test]
    fn what_ended_the_text_is_named() {
        let none = Value::Null;
        for (choice, calls, reason, sequence) in [
            (
                json!({"finish_reason": "stop", "stop_reason": "\n\n"}),
                false,
                "stop_sequence",
                json!("\n\n"),
            ),
            (
                json!({"finish_reason": "stop", "stop_reason": 7}),
                false,
                "end_turn",
                none.clone(),
            ),
            (
                json!({"finish_reason": "stop"}),
                false,
                "end_turn",
                none.clone(),
            ),
            (
                json!({"finish_reason": "length"}),
                true,
                "max_tokens",
                none.clone(),
            ),
            (
                json!({"finish_reason": "tool_calls"}),
                true,
                "tool_use",
                none.clone(),
            ),
            (json!({"finish_reason": "stop"}), true, "tool_use", none),
        ] {
            assert_eq!(stop(&choice, calls), (reason.into(), sequence), "{choice}");
        }
        let call = json!({"id": "c", "function": {"name": "f", "arguments": "{}"}});
        let named = message(
            &json!({"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "stop"}]}),
        );
        assert_eq!(named["stop_reason"], "tool_use", "{named}");
        let mut blocks = Blocks::default();
        let error = blocks.chunk(&json!({"error": {"message": "m", "code": "unavailable"}}));
        assert_eq!(error[0]["error"]["type"], "overloaded_error");
    }
}
