//! `POST /v1/responses`, without state: a response is answered and forgotten.

mod answer;
mod input;
mod stream;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::chat::{chat_error, encode};
use super::error::ApiError;
use super::fields::Fields;
use super::observe::Observation;
use super::params::Params;
use super::progress::{CallReading, choices};
use super::run::{Job, Prepared, submit, with_generation};
use super::tools::{Format, Layout, Tools};
use super::wire::{Reason, Shape};
use super::{AppState, blocking, body, compile, models};
use answer::{Answer, Frame};
use realign_model::ChatMessage;

/// Fields that ask for what this server does not keep or do.
const STATEFUL: [&str; 4] = [
    "previous_response_id",
    "conversation",
    "prompt",
    "background",
];

/// A checked request.
struct ResponseRequest {
    params: Params,
    tools: Tools,
    format: Format,
    messages: Vec<ChatMessage>,
    /// Fields that the response repeats.
    echoed: Value,
}

impl ResponseRequest {
    fn read(body: &Value) -> Result<Self, ApiError> {
        let fields = Fields::root(body)?;
        for name in STATEFUL {
            if fields.refuse(&[name]).is_err() {
                return Err(ApiError::Unsupported {
                    param: name.into(),
                    detail: " (responses are not kept: send the whole conversation in `input`)"
                        .into(),
                });
            }
        }
        if fields.get("truncation").is_some() && fields.string("truncation")? != "disabled" {
            return Err(ApiError::Unsupported {
                param: "truncation".into(),
                detail: " other than `disabled`".into(),
            });
        }
        if fields.count("top_logprobs", 0..=20)?.is_some_and(|n| n > 0) {
            return Err(ApiError::unsupported("top_logprobs"));
        }
        let mut params = Params::read(&fields)?;
        params.n = 1;
        params.max_tokens = fields.count("max_output_tokens", 1..=i64::MAX)?;
        Ok(Self {
            tools: Tools::read(&fields, Layout::Flat)?,
            format: format(&fields)?,
            messages: input::messages(&fields)?,
            echoed: echoed(&fields, &params),
            params,
        })
    }
}

fn format(fields: &Fields<'_>) -> Result<Format, ApiError> {
    let Some(text) = fields.get("text") else {
        return Ok(Format::Text);
    };
    match Fields::nested(text, "text")?.get("format") {
        Some(format) => Format::read(format, "text.format", Layout::Flat),
        None => Ok(Format::Text),
    }
}

/// What the response says again, with the defaults that were used.
fn echoed(fields: &Fields<'_>, params: &Params) -> Value {
    let or = |name: &str, default: Value| fields.get(name).cloned().unwrap_or(default);
    let text = match fields.get("text") {
        Some(text) if text.get("format").is_some() => text.clone(),
        _ => json!({"format": {"type": "text"}}),
    };
    json!({
        "background": false,
        "instructions": or("instructions", Value::Null),
        "max_output_tokens": params.max_tokens,
        "metadata": or("metadata", json!({})),
        "parallel_tool_calls": or("parallel_tool_calls", json!(true)),
        "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null},
        "store": false,
        "temperature": or("temperature", json!(1.0)),
        "text": text,
        "tool_choice": or("tool_choice", json!("auto")),
        "tools": or("tools", json!([])),
        "top_p": or("top_p", json!(1.0)),
        "truncation": "disabled",
        "user": or("user", Value::Null),
    })
}

pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let mut request = ResponseRequest::read(&body)?;
    let (tools, format) = (&request.tools, &request.format);
    request.params.sampling.grammar =
        compile::constraint(&state, tools, format, "text.format").await?;
    let echoed = std::mem::take(&mut request.echoed);
    let streamed = request.params.stream;
    let prepared = prepare(&state, request).await?;
    let generation = Arc::clone(&prepared.generation);
    observation.set_generation(&generation.id.0);
    let job = submit(&state, Shape::Response, prepared, observation)?;
    let frame = Frame::new(&job.envelope, echoed);
    let response = match streamed {
        true => stream::response(job, frame),
        false => Json(whole(job, &frame).await?).into_response(),
    };
    Ok(with_generation(response, &generation))
}

async fn prepare(state: &AppState, request: ResponseRequest) -> Result<Prepared, ApiError> {
    let state = state.clone();
    blocking(move || {
        let generation = models::resolve(&state, &request.params.model)?;
        request.params.check_bias(&state.tokenizer)?;
        let prompt = encode(&state, &request.messages, &request.tools.definitions())
            .map_err(|error| chat_error(&error, "input"))?;
        let room = state.engine.max_model_len().saturating_sub(prompt.len());
        let max_tokens = request.params.max_tokens.unwrap_or(room.max(1));
        Ok(Prepared {
            calls: CallReading::new(&request.tools, &state),
            params: request.params,
            prompts: vec![(prompt, max_tokens)],
            generation,
            echo: Vec::new(),
        })
    })
    .await
}

async fn whole(mut job: Job, frame: &Frame) -> Result<Value, ApiError> {
    let mut answer = Answer::default();
    let mut reason = Reason::Stop;
    // There is one choice: `n` is 1.
    for piece in choices(&mut job).await? {
        reason = piece.reason.unwrap_or(reason);
        answer.take(&piece);
    }
    let status = answer::status(reason);
    answer.end(status);
    Ok(frame.response(status, answer.output(), Some(job.progress.usage)))
}
