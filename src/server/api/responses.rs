//! `POST /v1/responses`, stateless: responses are not stored.

mod answer;
mod input;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::answers::completions::Reason;
use super::answers::responses::{self as answers, Echoed, Reasoning};
use super::chat::{chat_error, encode};
use super::error::ApiError;
use super::observe::Observation;
use super::params::{Common, MAX_CHOICES, Params};
use super::progress::{CallOptions, choices};
use super::request::{self, Count, NotStored, Refused, string_enum, unsupported};
use super::run::{ActiveRequest, PreparedRequest, submit, with_generation};
use super::tools::{AnswerFormat, FlatNamed, FlatTool, TextFormat, ToolFields, Tools};
use super::wire::Endpoint;
use super::{AppState, blocking, body, compile, models};
use answer::{Answer, ResponseBase};
use input::Input;
use realign_model::ChatMessage;

/// A response's body.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ResponseRequest")]
pub(crate) struct Body {
    #[serde(rename = "..stateful")]
    #[schemars(skip)]
    _stateful: StatefulFields,
    #[serde(rename = "truncation")]
    #[schemars(skip)]
    _truncation: Option<Truncation>,
    #[serde(rename = "top_logprobs")]
    #[schemars(skip)]
    top_logprobs: Option<Count<0, 20>>,
    #[serde(rename = "..common")]
    #[schemars(flatten)]
    common: Common,
    // Validated, but without effect.
    #[serde(rename = "max_tokens")]
    #[schemars(skip)]
    _max_tokens: Option<Count<1, { i64::MAX }>>,
    #[serde(rename = "n")]
    #[schemars(skip)]
    _n: Option<Count<1, MAX_CHOICES>>,
    /// Default: what is left of the context.
    max_output_tokens: Option<Count<1, { i64::MAX }>>,
    #[serde(rename = "..tools")]
    #[schemars(flatten)]
    tools: ToolFields<FlatTool, FlatNamed>,
    text: Option<TextOptions>,
    /// Inserted before the input as a system message.
    instructions: Option<String>,
    input: Input,
    /// Repeated in the response.
    #[serde(rename = "metadata")]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    _metadata: Option<IgnoredAny>,
}

/// Fields that require stored or background responses, which this server does not support.
#[derive(Deserialize)]
struct StatefulFields {
    #[serde(rename = "previous_response_id")]
    _previous_response_id: Option<Refused<NotStored>>,
    #[serde(rename = "conversation")]
    _conversation: Option<Refused<NotStored>>,
    #[serde(rename = "prompt")]
    _prompt: Option<Refused<NotStored>>,
    #[serde(rename = "background")]
    _background: Option<Refused<NotStored>>,
}

string_enum! {
    /// Handling of inputs that are too long: they are never truncated.
    Truncation { Disabled = "disabled" } else |_| unsupported(" other than `disabled`")
}

/// `text`.
#[derive(Deserialize, JsonSchema)]
#[schemars(inline)]
struct TextOptions {
    format: Option<TextFormat>,
}

/// A checked request.
struct ResponseRequest {
    params: Params,
    tools: Tools,
    format: AnswerFormat,
    messages: Vec<ChatMessage>,
    /// Request fields that the response repeats.
    echoed: Echoed,
}

impl ResponseRequest {
    fn read(sent: &Value) -> Result<Self, ApiError> {
        let body: Body = request::read(sent)?;
        if body.top_logprobs.is_some_and(|top| top.0 > 0) {
            return Err(ApiError::unsupported("top_logprobs"));
        }
        let mut params = body.common.check()?;
        params.max_tokens = body.max_output_tokens.map(|max| max.0);
        let format = body.text.and_then(|text| text.format);
        Ok(Self {
            tools: Tools::check(body.tools)?,
            format: format.map_or(AnswerFormat::Text, AnswerFormat::from),
            messages: input::messages(body.instructions, body.input)?,
            echoed: echoed(sent, params.max_tokens),
            params,
        })
    }
}

/// The request fields that the response repeats, with the defaults that were used.
fn echoed(sent: &Value, max_output_tokens: Option<usize>) -> Echoed {
    let field = |name: &str| sent.get(name).filter(|value| !value.is_null());
    let or = |name: &str, default: Value| field(name).cloned().unwrap_or(default);
    let text = match field("text") {
        Some(text) if text.get("format").is_some() => text.clone(),
        _ => json!({"format": {"type": "text"}}),
    };
    Echoed {
        background: false,
        instructions: or("instructions", Value::Null),
        max_output_tokens,
        metadata: or("metadata", json!({})),
        parallel_tool_calls: or("parallel_tool_calls", json!(true)),
        previous_response_id: None,
        reasoning: Reasoning::default(),
        store: false,
        temperature: or("temperature", json!(1.0)),
        text,
        tool_choice: or("tool_choice", json!("auto")),
        tools: or("tools", json!([])),
        top_p: or("top_p", json!(1.0)),
        truncation: "disabled",
        user: or("user", Value::Null),
    }
}

pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let mut request = ResponseRequest::read(&body)?;
    drop(body);
    let (tools, format) = (&request.tools, &request.format);
    request.params.sampling.grammar =
        compile::constraint(&state, tools, format, "text.format").await?;
    let streamed = request.params.stream;
    let (prepared, echoed) = prepare(&state, request).await?;
    let generation = Arc::clone(&prepared.generation);
    observation.set_generation(&generation.id.0);
    let active = submit(&state, Endpoint::Response, prepared, observation)?;
    let base = ResponseBase::new(&active.envelope, echoed);
    let response = if streamed {
        stream::response(active, base)
    } else {
        Json(whole(active, &base).await?).into_response()
    };
    Ok(with_generation(&state, response, &generation))
}

async fn prepare(
    state: &AppState,
    request: ResponseRequest,
) -> Result<(PreparedRequest, Echoed), ApiError> {
    let state = state.clone();
    blocking(move || {
        let generation = models::lease(&state, &request.params.model)?;
        request.params.check_bias(&state.tokenizer)?;
        let prompt = encode(&state, &request.messages, &request.tools.definitions())
            .map_err(|error| chat_error(&error, "input"))?;
        let room = state.engine.max_model_len().saturating_sub(prompt.len());
        let max_tokens = request.params.max_tokens.unwrap_or(room.max(1));
        let prepared = PreparedRequest {
            calls: CallOptions::new(&request.tools, &state),
            params: request.params,
            prompts: vec![(prompt, max_tokens)],
            generation,
            echo: Vec::new(),
        };
        Ok((prepared, request.echoed))
    })
    .await
}

async fn whole(
    mut active: ActiveRequest,
    base: &ResponseBase,
) -> Result<answers::Response, ApiError> {
    let mut answer = Answer::default();
    let mut reason = Reason::Stop;
    // There is one choice: `n` is 1.
    for output in choices(&mut active).await? {
        reason = output.reason.unwrap_or(reason);
        answer.take(&output);
    }
    let status = answer::status(reason);
    answer.end(status);
    Ok(base.response(status, answer.output(), Some(active.progress.usage)))
}
