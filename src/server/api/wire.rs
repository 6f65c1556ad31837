//! The JSON of answers, whole and in chunks.

use serde_json::{Map, Value, json};

use realign_engine::request::TokenLogprob;
use realign_model::Tokenizer;

/// What stands for a log-probability that JSON cannot express, as OpenAI has it.
const LEAST_LOGPROB: f32 = -9999.0;

/// Which endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Text,
    /// Builds its own objects; see [`super::responses`].
    Response,
}

/// A token with its alternatives, as the engine reported it.
#[derive(Clone, Debug)]
pub(crate) struct Scored {
    pub(crate) token: TokenLogprob,
    pub(crate) top: Vec<TokenLogprob>,
}

/// One choice: a part of it in a stream, else the whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// Present if log-probabilities were asked for.
    pub(crate) scored: Option<Vec<Scored>>,
    /// Characters before this piece, for `text_offset`.
    pub(crate) offset: usize,
    pub(crate) reason: Option<Reason>,
    /// Calls of functions, or parts of them.
    pub(crate) calls: Vec<CallDelta>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Stop,
    Length,
    ToolCalls,
}

/// A call, or more of its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallDelta {
    /// Its place among the choice's calls.
    pub(crate) index: usize,
    /// Id and name, where the call begins.
    pub(crate) opens: Option<(String, String)>,
    pub(crate) arguments: String,
}

impl Piece {
    /// Whether there is nothing to tell a client.
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
            && self.scored.is_none()
            && self.reason.is_none()
            && self.calls.is_empty()
    }

    /// Adds what followed.
    pub(crate) fn extend(&mut self, next: Piece) {
        self.text.push_str(&next.text);
        self.reason = self.reason.or(next.reason);
        if let (Some(all), Some(new)) = (&mut self.scored, next.scored) {
            all.extend(new);
        }
        for call in next.calls {
            match self.calls.last_mut() {
                Some(last) if call.opens.is_none() => last.arguments.push_str(&call.arguments),
                _ => self.calls.push(call),
            }
        }
    }

    fn content(&self) -> Value {
        match self.text.is_empty() && !self.calls.is_empty() {
            true => Value::Null,
            false => json!(self.text),
        }
    }

    fn message(&self) -> Value {
        let mut message = json!({
            "role": "assistant",
            "content": self.content(),
            "refusal": null,
        });
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.iter().map(CallDelta::whole).collect();
        }
        message
    }

    fn delta(&self) -> Value {
        let mut delta = json!({});
        let says_nothing = self.reason.is_some() || !self.calls.is_empty();
        if !self.text.is_empty() || !says_nothing {
            delta["content"] = json!(self.text);
        }
        if !self.calls.is_empty() {
            delta["tool_calls"] = self.calls.iter().map(CallDelta::part).collect();
        }
        delta
    }
}

impl CallDelta {
    fn whole(&self) -> Value {
        let (id, name) = self.opens.clone().unwrap_or_default();
        json!({
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": self.arguments},
        })
    }

    fn part(&self) -> Value {
        let mut part = match self.opens {
            Some(_) => self.whole(),
            None => json!({"function": {"arguments": self.arguments}}),
        };
        part["index"] = self.index.into();
        part
    }
}

/// Tokens of the whole request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    /// Prompt tokens that the prefix cache held.
    pub(crate) cached: usize,
    pub(crate) completion: usize,
}

/// What all chunks of an answer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) shape: Shape,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

impl Envelope {
    /// The whole answer.
    pub(crate) fn whole(&self, choices: Vec<Value>, usage: Usage) -> Value {
        let object = match self.shape {
            Shape::Chat | Shape::Response => "chat.completion",
            Shape::Text => "text_completion",
        };
        let mut answer = self.head(object, choices);
        answer.insert("usage".into(), usage.json());
        Value::Object(answer)
    }

    /// A part of a streamed answer. `usage`: outer `None` if it was not asked for.
    pub(crate) fn chunk(&self, choices: Vec<Value>, usage: Option<Option<Usage>>) -> Value {
        let object = match self.shape {
            Shape::Chat | Shape::Response => "chat.completion.chunk",
            Shape::Text => "text_completion",
        };
        let mut answer = self.head(object, choices);
        if let Some(usage) = usage {
            let value = usage.map_or(Value::Null, Usage::json);
            answer.insert("usage".into(), value);
        }
        Value::Object(answer)
    }

    fn head(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut head = Map::new();
        head.insert("id".into(), json!(self.id));
        head.insert("object".into(), json!(object));
        head.insert("created".into(), json!(self.created));
        head.insert("model".into(), json!(self.model));
        head.insert("system_fingerprint".into(), json!(self.fingerprint));
        head.insert("choices".into(), Value::Array(choices));
        head
    }
}

impl Usage {
    /// As responses name the counts.
    pub(crate) fn of_response(self) -> Value {
        json!({
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + self.completion,
        })
    }

    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

impl Shape {
    /// The field that holds the prompt, and what ids begin with.
    pub(crate) fn names(self) -> (&'static str, &'static str) {
        match self {
            Shape::Chat => ("messages", "chatcmpl-"),
            Shape::Text => ("prompt", "cmpl-"),
            Shape::Response => ("input", "resp_"),
        }
    }

    /// The chunk with which a choice opens, if the endpoint has one.
    pub(crate) fn opening(self, index: usize) -> Option<Value> {
        match self {
            Shape::Chat | Shape::Response => Some(json!({
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": null,
                "finish_reason": null,
            })),
            Shape::Text => None,
        }
    }

    /// A choice of a whole answer.
    pub(crate) fn choice(self, index: usize, piece: &Piece, tokenizer: &Tokenizer) -> Value {
        match self {
            Shape::Chat | Shape::Response => json!({
                "index": index,
                "message": piece.message(),
                "logprobs": self.logprobs(piece, tokenizer),
                "finish_reason": piece.reason.map(reason),
            }),
            Shape::Text => self.text_choice(index, piece, tokenizer),
        }
    }

    /// A choice's part in a chunk.
    pub(crate) fn delta(self, index: usize, piece: &Piece, tokenizer: &Tokenizer) -> Value {
        match self {
            Shape::Chat | Shape::Response => json!({
                "index": index,
                "delta": piece.delta(),
                "logprobs": self.logprobs(piece, tokenizer),
                "finish_reason": piece.reason.map(reason),
            }),
            Shape::Text => self.text_choice(index, piece, tokenizer),
        }
    }

    fn text_choice(self, index: usize, piece: &Piece, tokenizer: &Tokenizer) -> Value {
        json!({
            "index": index,
            "text": piece.text,
            "logprobs": self.logprobs(piece, tokenizer),
            "finish_reason": piece.reason.map(reason),
        })
    }

    fn logprobs(self, piece: &Piece, tokenizer: &Tokenizer) -> Value {
        let Some(scored) = &piece.scored else {
            return Value::Null;
        };
        match self {
            Shape::Chat | Shape::Response => {
                let entry = |s: &Scored| {
                    let mut entry = token(&s.token, tokenizer);
                    let top: Vec<Value> = s.top.iter().map(|t| token(t, tokenizer)).collect();
                    entry["top_logprobs"] = Value::Array(top);
                    entry
                };
                json!({"content": scored.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
            }
            Shape::Text => text_logprobs(scored, piece.offset),
        }
    }
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Stop => "stop",
        Reason::Length => "length",
        Reason::ToolCalls => "tool_calls",
    }
}

fn token(token: &TokenLogprob, tokenizer: &Tokenizer) -> Value {
    json!({
        "token": token.text,
        "logprob": finite(token.logprob),
        "bytes": tokenizer.token_bytes(token.id),
    })
}

fn text_logprobs(scored: &[Scored], offset: usize) -> Value {
    let mut at = offset;
    let mut offsets = Vec::new();
    for s in scored {
        offsets.push(at);
        at += s.token.text.chars().count();
    }
    let top = |s: &Scored| {
        // The drawn token is always there, so there may be one more than was asked for.
        let all = s.top.iter().chain(std::iter::once(&s.token));
        let pairs = all.map(|t| (t.text.clone(), json!(finite(t.logprob))));
        Value::Object(pairs.collect())
    };
    json!({
        "tokens": scored.iter().map(|s| s.token.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": scored.iter().map(|s| finite(s.token.logprob)).collect::<Vec<_>>(),
        "top_logprobs": scored.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() {
        LEAST_LOGPROB
    } else {
        logprob.clamp(LEAST_LOGPROB, 0.0)
    }
}
