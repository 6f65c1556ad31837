//! `POST /v1/responses`. Responses are kept only where `[responses]` says so.

mod answer;
mod input;
mod store;
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
use super::compile::Said;
use super::error::ApiError;
use super::observe::Observation;
use super::params::{Common, Params};
use super::progress::{CallOptions, choices};
use super::request::{
    self, Count, NotInBackground, NotStored, Refused, Unknown, string_enum, unsupported,
};
use super::run::{ActiveRequest, PreparedRequest, submit, with_generation, with_max_tokens};
use super::template::{Effort, TemplateFields};
use super::thinking::{self, Thinking};
use super::tools::{AnswerFormat, FlatNamed, FlatTool, TextFormat, ToolFields, Tools};
use super::wire::Endpoint;
use super::{AppState, blocking, body, compile, models};
use answer::{Answer, Kept, ResponseBase};
use input::Input;
use realign_model::ChatMessage;
pub(crate) use store::ResponseStore;

/// A response's body.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ResponseRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct Body {
    #[serde(rename = "..stateful")]
    #[schemars(skip)]
    _stateful: StatefulFields,
    #[serde(rename = "..ignored")]
    #[schemars(flatten)]
    _ignored: IgnoredFields,
    #[serde(rename = "truncation")]
    #[schemars(skip)]
    _truncation: Option<Truncation>,
    /// This many alternatives to each token of the text, with their log-probabilities.
    top_logprobs: Option<Count<0, 20>>,
    /// `message.output_text.logprobs` for the log-probabilities of the text's tokens; there is nothing
    /// more to include.
    include: Option<Vec<Included>>,
    /// The response to continue; needs `responses.store`.
    previous_response_id: Option<String>,
    /// Whether the response may be continued later, where the server keeps any. Default true.
    store: Option<bool>,
    #[serde(rename = "..common")]
    #[schemars(flatten)]
    common: Common,
    // The name in chat completions.
    #[schemars(skip)]
    max_tokens: Option<Count<1, { i64::MAX }>>,
    // There is one choice.
    #[serde(rename = "n")]
    #[schemars(skip)]
    _n: Option<Count<1, 1>>,
    /// Default: what is left of the context.
    max_output_tokens: Option<Count<1, { i64::MAX }>>,
    #[serde(rename = "..tools")]
    #[schemars(flatten)]
    tools: ToolFields<FlatTool, FlatNamed>,
    text: Option<TextOptions>,
    reasoning: Option<ReasoningOptions>,
    /// Most tokens that a model which thinks may spend on thoughts; it is made to end them there.
    thinking_token_budget: Option<Count<0, { i64::MAX }>>,
    /// Inserted before the input as a system message.
    instructions: Option<String>,
    input: Input,
    /// Repeated in the response.
    #[serde(rename = "metadata")]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    _metadata: Option<IgnoredAny>,
}

/// Fields that require stored conversations or background responses, which this server does not support.
#[derive(Deserialize)]
struct StatefulFields {
    #[serde(rename = "conversation")]
    _conversation: Option<Refused<NotStored>>,
    #[serde(rename = "prompt")]
    _prompt: Option<Refused<NotStored>>,
    #[serde(rename = "background")]
    _background: Option<Refused<NotInBackground>>,
}

/// Fields that change no answer. Where the response repeats one, it shows what was done.
#[derive(Deserialize, JsonSchema)]
struct IgnoredFields {
    /// Without effect: it limits built-in tools, and there are none.
    #[serde(rename = "max_tool_calls")]
    #[schemars(with = "Option<Value>")]
    _max_tool_calls: Option<IgnoredAny>,
}

/// How much the model thinks.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct ReasoningOptions {
    /// As `reasoning_effort` of chat completions.
    effort: Option<Effort>,
    /// Without effect: the response has the thoughts themselves.
    #[serde(rename = "summary")]
    #[schemars(with = "Option<String>")]
    _summary: Option<IgnoredAny>,
    /// Older name of `summary`.
    #[serde(rename = "generate_summary")]
    #[schemars(with = "Option<String>")]
    _generate_summary: Option<IgnoredAny>,
}

string_enum! {
    /// What a response may include. Here there are log-probabilities; thoughts are never encrypted, and
    /// there are neither images nor built-in tools.
    Included {
        Logprobs = "message.output_text.logprobs",
        Thoughts = "reasoning.encrypted_content",
        InputImages = "message.input_image.image_url",
        Files = "file_search_call.results",
        Pages = "web_search_call.results",
        Sources = "web_search_call.action.sources",
        Screens = "computer_call_output.output.image_url",
        Outputs = "code_interpreter_call.outputs",
    }
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
    #[serde(rename = "verbosity")]
    #[schemars(skip)]
    _verbosity: Option<Verbosity>,
}

string_enum! {
    /// How long the answer is: as the model writes it.
    Verbosity { Medium = "medium" } else |_| unsupported(" other than `medium`")
}

/// A checked request.
struct ResponseRequest {
    params: Params,
    tools: Tools,
    format: AnswerFormat,
    instructions: Option<String>,
    effort: Option<Effort>,
    /// What precedes the answer, without the instructions.
    turns: Vec<ChatMessage>,
    /// The response that is continued.
    previous: Option<String>,
    unknown: Unknown,
    /// Request fields that the response repeats.
    echoed: Echoed,
}

impl ResponseRequest {
    fn read(sent: &Value) -> Result<Self, ApiError> {
        let (body, unknown): (Body, Unknown) = request::read_all(sent)?;
        let mut params = body.common.check()?;
        let included = body.include.iter().flatten();
        let top = body.top_logprobs.map(|top| top.0).filter(|top| *top > 0);
        let scored = included.into_iter().any(|name| *name == Included::Logprobs);
        params.sampling.top_logprobs = top.or(scored.then_some(0));
        params.max_tokens = request::same([
            ("max_output_tokens", body.max_output_tokens.map(|max| max.0)),
            ("max_tokens", body.max_tokens.map(|max| max.0)),
        ])?;
        params.thinking_budget = body.thinking_token_budget.map(|budget| budget.0);
        let effort = body.reasoning.and_then(|reasoning| reasoning.effort);
        let format = body.text.and_then(|text| text.format);
        let mut tools = Tools::check(body.tools)?;
        super::sent::functions::<FlatTool>(&mut tools, sent.get("tools"));
        Ok(Self {
            tools,
            format: format.map_or(AnswerFormat::Text, AnswerFormat::from),
            instructions: body.instructions,
            effort,
            turns: input::turns(body.input)?,
            unknown,
            echoed: Echoed {
                previous_response_id: body.previous_response_id.clone(),
                store: body.store.unwrap_or(true),
                reasoning: Reasoning {
                    effort: effort.map(Effort::name),
                    ..Reasoning::default()
                },
                top_logprobs: top.unwrap_or(0),
                ..echoed(sent, params.max_tokens)
            },
            previous: body.previous_response_id.filter(|id| !id.is_empty()),
            params,
        })
    }
}

impl ResponseRequest {
    /// Puts the conversation in front that the request continues.
    fn continue_previous(&mut self, state: &AppState, caller: &str) -> Result<(), ApiError> {
        self.echoed.store &= state.responses.is_some();
        let Some(id) = &self.previous else {
            return Ok(());
        };
        let refused = |why: String| ApiError::field("previous_response_id", why);
        let Some(store) = &state.responses else {
            let why = "`previous_response_id` is set, and this server keeps no responses: set `responses.store = true` in its configuration, or send the whole conversation in `input`";
            return Err(refused(why.to_owned()));
        };
        let earlier = store.turns(id, caller).ok_or_else(|| {
            let id: String = id.chars().take(64).collect();
            refused(format!(
                "there is no response `{id}`: it was not stored, or newer ones took its place (`responses.max_entries`, `responses.max_mb`); send the whole conversation in `input`"
            ))
        })?;
        self.turns.splice(0..0, earlier.iter().cloned());
        Ok(())
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
        top_logprobs: 0,
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
    let caller = observation.caller_name();
    request.continue_previous(&state, &caller)?;
    let mut unknown = std::mem::take(&mut request.unknown);
    unknown.without(|field| super::sent::is_shown(field, &state.chat, "]"));
    unknown.check(state.unknown_fields)?;
    let (tools, format) = (&request.tools, &request.format);
    let mut enforced = compile::constraint(&state, tools, format, "text.format").await?;
    let said = enforced.said();
    request.params.sampling.grammar = enforced.constraint;
    request.params.checks = enforced.checks;
    request.params.constraint_field = "text.format";
    let streamed = request.params.stream;
    let kept = state.responses.clone().filter(|_| request.echoed.store);
    let kept = kept.map(|store| Kept {
        store,
        caller,
        turns: request.turns.clone(),
    });
    let (prepared, echoed) = prepare(&state, request).await?;
    let generation = Arc::clone(&prepared.generation);
    observation.set_generation(&generation.id.0);
    let active = submit(&state, Endpoint::Response, prepared, observation)?;
    let clamped = active.clamped;
    let base = ResponseBase::new(&active.envelope, echoed, kept);
    let response = if streamed {
        stream::response(active, base)
    } else {
        let answer = whole(active, base).await?;
        let found = Said::of_choices(std::iter::once(answer.schema_notice.as_deref()));
        found.in_header(Json(answer).into_response())
    };
    let response = with_max_tokens(response, clamped);
    let response = with_generation(&state, response, &generation);
    Ok(unknown.named_in(said.in_header(response)))
}

async fn prepare(
    state: &AppState,
    mut request: ResponseRequest,
) -> Result<(PreparedRequest, Echoed), ApiError> {
    let state = state.clone();
    blocking(move || {
        let generation = models::lease(&state, &request.params.model)?;
        request.params.bind(&state.tokenizer)?;
        let messages = input::messages(request.instructions, request.turns);
        let template = TemplateFields::with_effort(request.effort);
        let turn = template.clone().turn(&state.chat)?;
        let mut prompt = encode(&state, &messages, &request.tools.definitions(), &turn)
            .map_err(|error| chat_error(&error, "input"))?;
        let limit = state.engine.max_model_len();
        request.params.truncate(&mut prompt, limit);
        let room = limit.saturating_sub(prompt.len());
        let max_tokens = request.params.max_tokens.unwrap_or(room.max(1));
        let calls = CallOptions::new(&request.tools, &state);
        let repeatable = calls.and_then(|calls| calls.repeatable());
        // Under a grammar there is no room for thoughts, unless it is only for calls.
        let constrained = request.params.sampling.grammar.is_some();
        let room = !constrained || request.tools.leave_text_free(&request.format);
        let thinks = room && state.chat.thinks();
        let thinking = thinks.then(|| Thinking::after(&state.tokenizer.tail(&prompt)));
        let off = template.must_not_think(&state.chat).then_some(0);
        let budget = off.or(request.params.thinking_budget);
        let budget = thinking::budget(&state.tokenizer, thinking.as_ref(), budget);
        let sampling = &mut request.params.sampling;
        sampling.end_on_repeat_of = repeatable;
        sampling.thinking = budget?;
        let prepared = PreparedRequest {
            calls,
            params: request.params,
            prompts: vec![(prompt, max_tokens)],
            generation,
            thinking,
            scored: Vec::new(),
            prompt_logprobs: None,
            echo: Vec::new(),
        };
        Ok((prepared, request.echoed))
    })
    .await
}

async fn whole(
    mut active: ActiveRequest,
    mut base: ResponseBase,
) -> Result<answers::Response, ApiError> {
    let mut answer = Answer::default();
    let mut reason = Reason::Stop;
    // There is one choice: `n` is 1.
    for output in choices(&mut active).await? {
        reason = output.reason.unwrap_or(reason);
        answer.take(&output, &active.progress.settings.tokenizer);
        base.schema_notice = output.schema_notice;
    }
    let status = answer::status(reason);
    answer.end(status);
    base.keep(&answer);
    Ok(base.response(status, answer.output(), Some(active.progress.usage)))
}
