//! Anthropic's `POST /v1/messages`.

mod answer;
mod body;
mod history;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use super::super::observe::Observation;
use super::super::request::{self, Unknown};
use super::super::{AppState, blocking, body as bodies, chat};
use super::{complete, unsupported, whole, with_json};
use answer::{message, stream_of};
pub(crate) use body::Body;
use body::{Choice, Format, Thinking, Tool};
use history::{continues, translate};

/// The fields of chat completions that have other names here.
const NAMES: [(&str, &str); 7] = [
    ("tool_choice.function.name", "tool_choice.name"),
    ("max_completion_tokens", "max_tokens"),
    ("stop", "stop_sequences"),
    ("response_format", "output_config.format"),
    ("reasoning_effort", "output_config.effort"),
    ("thinking_token_budget", "thinking.budget_tokens"),
    ("parallel_tool_calls", "tool_choice"),
];

/// `POST /v1/messages`.
pub(crate) async fn messages(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (chat, places, unknown) = asked(&state, request).await?;
    let streamed = chat["stream"] == true;
    let answered = complete(state, observation, chat, &NAMES).await;
    let response = unknown.named_in(answered.map_err(|error| places.named(error))?);
    if streamed {
        return Ok(stream_of(response));
    }
    let (response, answer) = whole(response).await?;
    Ok(with_json(response, &message(&answer)))
}

/// `POST /v1/messages/count_tokens`.
pub(crate) async fn count_tokens(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (chat, places, mut unknown) = asked(&state, request).await?;
    let counted = blocking(move || {
        let mut request = chat::ChatRequest::read(&chat)?;
        let inside = request.check_unknown(&state)?;
        Ok((request.encode(&state)?.len(), inside))
    });
    let counted = counted.await.map_err(|error| error.renamed(&NAMES));
    let (tokens, inside) = counted.map_err(|error| places.named(error))?;
    unknown.extend(inside);
    let counted = axum::Json(json!({ "input_tokens": tokens }));
    Ok(unknown.named_in(counted.into_response()))
}

/// What a request asks, as a chat completion's body, and its unknown fields, which are refused or named.
async fn asked(state: &AppState, request: Request) -> Result<(Value, Places, Unknown), ApiError> {
    let body = bodies::json(request, state.max_body_bytes).await?;
    let (read, unknown): (Body, Unknown) = request::read_all(&body)?;
    // A tool or a choice of another kind says more than its fields.
    let (chat, places) = translated(read)?;
    unknown.check(state.unknown_fields)?;
    Ok((chat, places, unknown))
}

/// An error's body.
pub(super) fn error_body(status: StatusCode, message: &str) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

/// Where the parts of a chat completion came from.
struct Places {
    /// Which field each message came in: a message may become several, and the system prompt is one.
    messages: Vec<String>,
    tools: usize,
}

impl Places {
    /// The error with the format's own names, and numbers of messages.
    fn named(&self, error: ApiError) -> ApiError {
        let messages = self.messages.iter().enumerate();
        let messages = messages.map(|(i, theirs)| (format!("messages[{i}]"), theirs.clone()));
        let tools = (0..self.tools).flat_map(|i| {
            let (ours, theirs) = (format!("tools[{i}].function"), format!("tools[{i}]"));
            let schema = (
                format!("{ours}.parameters"),
                format!("{theirs}.input_schema"),
            );
            [schema, (ours, theirs)]
        });
        let names: Vec<(String, String)> = messages.chain(tools).collect();
        let names: Vec<(&str, &str)> = names
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        error.renamed(&names)
    }
}

/// The request as a chat completion's body.
fn translated(body: Body) -> Result<(Value, Places), ApiError> {
    let mut messages = Vec::new();
    let mut places = Places {
        messages: Vec::new(),
        tools: body.tools.as_ref().map_or(0, Vec::len),
    };
    if let Some(system) = body.system {
        messages.push(json!({"role": "system", "content": system.text()}));
        places.messages.push("system".into());
    }
    let prefilled = body.messages.last().is_some_and(continues);
    for (index, message) in body.messages.into_iter().enumerate() {
        let place = format!("messages[{index}]");
        translate(&place, message, &mut messages)?;
        places.messages.resize(messages.len(), place);
    }
    let mut chat = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            chat.insert(name.into(), value);
        }
    };
    set("model", body.model.map(Value::from));
    set("messages", Some(messages.into()));
    set("continue_final_message", prefilled.then(|| true.into()));
    set("max_completion_tokens", body.max_tokens.map(Value::from));
    set("stop", body.stop_sequences.map(Value::from));
    set("temperature", body.temperature.map(Value::from));
    set("top_p", body.top_p.map(Value::from));
    set("top_k", body.top_k.map(Value::from));
    let streamed = body.stream.unwrap_or(false);
    set("stream", Some(streamed.into()));
    // The first event has counts, too.
    let options = || json!({"include_usage": true, "continuous_usage_stats": true});
    set("stream_options", streamed.then(options));
    let tools = body.tools.unwrap_or_default().into_iter().enumerate();
    let tools = tools.map(|(index, given)| tool(index, given));
    let tools: Vec<Value> = tools.collect::<Result<_, _>>()?;
    set("tools", (!tools.is_empty()).then(|| tools.into()));
    if let Some(choice) = body.tool_choice {
        let one = choice.disable_parallel_tool_use.unwrap_or(false);
        set("tool_choice", Some(tool_choice(choice)?));
        set("parallel_tool_calls", one.then(|| false.into()));
    }
    let thinks = body.thinking.as_ref().map(thinks).transpose()?;
    set("enable_thinking", thinks.map(Value::from));
    let budget = body.thinking.and_then(|thinking| thinking.budget_tokens);
    let budget = budget.filter(|_| thinks == Some(true));
    set("thinking_token_budget", budget.map(Value::from));
    let (effort, format) = match body.output_config {
        Some(config) => (config.effort, config.format),
        None => (None, None),
    };
    let effort = effort.map(|effort| match effort.as_str() {
        "max" => "xhigh".to_owned(),
        _ => effort,
    });
    // Where nothing is thought, no effort of it is meant.
    let effort = effort.filter(|_| thinks != Some(false));
    set("reasoning_effort", effort.map(Value::from));
    if format.is_some() && body.output_format.is_some() {
        let why = "`output_format` is the older name of `output_config.format`; send one of them";
        return Err(ApiError::field("output_format", why));
    }
    if let Some(format) = format.or(body.output_format) {
        set("response_format", Some(response_format(format)?));
    }
    Ok((chat.into(), places))
}

fn tool_choice(choice: Choice) -> Result<Value, ApiError> {
    match choice.kind.as_str() {
        "auto" => Ok(json!("auto")),
        "any" => Ok(json!("required")),
        "none" => Ok(json!("none")),
        "tool" => {
            let missing = || {
                let why = "`tool_choice.name` is missing: the type `tool` names a function";
                ApiError::field("tool_choice.name", why)
            };
            let name = choice.name.ok_or_else(missing)?;
            Ok(json!({"type": "function", "function": {"name": name}}))
        }
        other => Err(unsupported("tool_choice", other)),
    }
}

fn thinks(thinking: &Thinking) -> Result<bool, ApiError> {
    match thinking.kind.as_str() {
        "enabled" | "adaptive" => Ok(true),
        "disabled" => Ok(false),
        other => Err(unsupported("thinking", other)),
    }
}

fn response_format(format: Format) -> Result<Value, ApiError> {
    match format.kind.as_str() {
        "json_schema" => Ok(json!({"type": "json_schema",
            "json_schema": {"name": "answer", "schema": format.schema, "strict": true}})),
        other => Err(unsupported("output_config.format", other)),
    }
}

fn tool(index: usize, tool: Tool) -> Result<Value, ApiError> {
    match tool.kind.as_deref() {
        None | Some("custom") => {}
        Some(other) => return Err(unsupported(&format!("tools[{index}]"), other)),
    }
    let mut function = json!({"name": tool.name});
    if let Some(description) = tool.description {
        function["description"] = description.into();
    }
    if let Some(schema) = tool.input_schema {
        function["parameters"] = schema;
    }
    if let Some(strict) = tool.strict {
        function["strict"] = strict.into();
    }
    Ok(json!({"type": "function", "function": function}))
}
