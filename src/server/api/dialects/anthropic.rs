//! Anthropic's `POST /v1/messages`.

mod answer;
mod history;

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use super::super::observe::Observation;
use super::super::request::{self, Unknown};
use super::super::{AppState, blocking, body, chat};
use super::{complete, text_of, unsupported, whole, with_json};
use answer::{message, stream_of};
use history::translate;

/// The fields of chat completions that have other names here.
const NAMES: [(&str, &str); 6] = [
    ("max_completion_tokens", "max_tokens"),
    ("stop", "stop_sequences"),
    ("response_format", "output_config.format"),
    ("reasoning_effort", "output_config.effort"),
    ("thinking_token_budget", "thinking.budget_tokens"),
    ("parallel_tool_calls", "tool_choice"),
];

/// A request for a message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "AnthropicMessageRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct Body {
    model: Option<String>,
    /// Most tokens of the answer.
    max_tokens: Option<u64>,
    /// The conversation: `user` and `assistant`, contents as text or as blocks of `text`, `tool_use`,
    /// `tool_result` and `thinking`.
    messages: Vec<Message>,
    /// The system prompt, as text or as blocks of text.
    system: Option<Value>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    #[schemars(with = "Option<Vec<Tool>>")]
    tools: Option<Vec<Value>>,
    #[schemars(with = "Option<Choice>")]
    tool_choice: Option<Value>,
    /// Whether the model thinks first, and for how many tokens at most.
    #[schemars(with = "Option<Thinking>")]
    thinking: Option<Value>,
    /// A JSON schema that the answer fits, and how much the model thinks.
    #[schemars(with = "Option<OutputConfig>")]
    output_config: Option<Value>,
    /// Older place of `output_config.format`.
    #[schemars(with = "Option<Format>")]
    output_format: Option<Value>,
    /// Without effect: prompts are always cached.
    #[serde(rename = "cache_control")]
    #[schemars(with = "Option<Value>")]
    _cache_control: Option<IgnoredAny>,
    /// Without effect.
    #[serde(rename = "metadata")]
    #[schemars(with = "Option<Value>")]
    _metadata: Option<IgnoredAny>,
    /// Without effect.
    #[serde(rename = "service_tier")]
    #[schemars(with = "Option<String>")]
    _service_tier: Option<IgnoredAny>,
}

/// A message of the conversation.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct Message {
    role: String,
    content: Value,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline, extend("additionalProperties" = {"type": "null"}))]
struct Tool {
    name: String,
    description: Option<String>,
    input_schema: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Calls always fit the schema; `true` refuses a schema that cannot be enforced.
    strict: Option<bool>,
    /// Not supported; only `false`.
    defer_loading: Option<bool>,
    /// Not supported; only empty.
    input_examples: Option<Vec<Value>>,
    /// Without effect: prompts are always cached.
    #[serde(rename = "cache_control")]
    #[schemars(with = "Option<Value>")]
    _cache_control: Option<IgnoredAny>,
    /// Without effect: arguments are streamed as they are generated.
    #[serde(rename = "eager_input_streaming")]
    #[schemars(with = "Option<bool>")]
    _eager_input_streaming: Option<IgnoredAny>,
}

/// Which function must be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline, extend("additionalProperties" = {"type": "null"}))]
struct Choice {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// Whether the model thinks first.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline, extend("additionalProperties" = {"type": "null"}))]
struct Thinking {
    /// `enabled`, `adaptive` or `disabled`.
    #[serde(rename = "type")]
    kind: String,
    /// Most tokens of thoughts; the model is made to end them there.
    budget_tokens: Option<u64>,
}

/// What the answer is like.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline, extend("additionalProperties" = {"type": "null"}))]
struct OutputConfig {
    /// `low`, `medium`, `high`, `xhigh` or `max`, for templates that know efforts.
    effort: Option<String>,
    #[schemars(with = "Option<Format>")]
    format: Option<Value>,
}

/// The form of the answer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline, extend("additionalProperties" = {"type": "null"}))]
struct Format {
    /// `json_schema`.
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Value>,
}

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
    let (chat, places, unknown) = asked(&state, request).await?;
    let counted = blocking(move || {
        let request = chat::ChatRequest::read(&chat)?;
        Ok(request.encode(&state)?.len())
    });
    let counted = counted.await.map_err(|error| error.renamed(&NAMES));
    let tokens = counted.map_err(|error| places.named(error))?;
    let counted = axum::Json(json!({ "input_tokens": tokens }));
    Ok(unknown.named_in(counted.into_response()))
}

/// What a request asks, as a chat completion's body, and its unknown fields, which are refused or named.
async fn asked(state: &AppState, request: Request) -> Result<(Value, Places, Unknown), ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let (read, mut unknown): (Body, Unknown) = request::read_all(&body)?;
    unknown.check(state.unknown_fields)?;
    let (chat, places) = translated(read, &mut unknown)?;
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

/// Which field each message of a chat completion came in: a message may become several, and the system
/// prompt is one.
struct Places(Vec<String>);

impl Places {
    /// The error with the format's own numbers of messages.
    fn named(&self, error: ApiError) -> ApiError {
        let ours: Vec<String> = (0..self.0.len())
            .map(|i| format!("messages[{i}]"))
            .collect();
        let theirs = self.0.iter().map(String::as_str);
        let names: Vec<(&str, &str)> = ours.iter().map(String::as_str).zip(theirs).collect();
        error.renamed(&names)
    }
}

/// The request as a chat completion's body.
fn translated(body: Body, unknown: &mut Unknown) -> Result<(Value, Places), ApiError> {
    let mut messages = Vec::new();
    let mut places = Places(Vec::new());
    if let Some(system) = &body.system {
        let text = text_of("system", system)?;
        messages.push(json!({"role": "system", "content": text}));
        places.0.push("system".into());
    }
    for (index, message) in body.messages.iter().enumerate() {
        let place = format!("messages[{index}]");
        translate(&place, message, &mut messages)?;
        places.0.resize(messages.len(), place);
    }
    let mut chat = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            chat.insert(name.into(), value);
        }
    };
    set("model", body.model.map(Value::from));
    set("messages", Some(messages.into()));
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
    let tools = body.tools.unwrap_or_default();
    let tools = tools.iter().enumerate().map(|(index, given)| {
        let name = format!("tools[{index}]");
        tool(request::read_inside(given, &name, unknown)?)
    });
    let tools: Vec<Value> = tools.collect::<Result<_, _>>()?;
    set("tools", (!tools.is_empty()).then(|| tools.into()));
    if let Some(choice) = body.tool_choice {
        let choice: Choice = request::read_inside(&choice, "tool_choice", unknown)?;
        let wanted = match choice.kind.as_str() {
            "auto" => json!("auto"),
            "any" => json!("required"),
            "none" => json!("none"),
            "tool" => {
                let missing = || {
                    let why = "`tool_choice.name` is missing: the type `tool` names a function";
                    ApiError::field("tool_choice.name", why)
                };
                let name = choice.name.ok_or_else(missing)?;
                json!({"type": "function", "function": {"name": name}})
            }
            other => return Err(unsupported("tool_choice", other)),
        };
        set("tool_choice", Some(wanted));
        let one = choice.disable_parallel_tool_use.unwrap_or(false);
        set("parallel_tool_calls", one.then(|| false.into()));
    }
    if let Some(thinking) = &body.thinking {
        let thinking: Thinking = request::read_inside(thinking, "thinking", unknown)?;
        let thinks = match thinking.kind.as_str() {
            "enabled" | "adaptive" => true,
            "disabled" => false,
            other => return Err(unsupported("thinking", other)),
        };
        set("enable_thinking", Some(thinks.into()));
        let budget = thinking.budget_tokens.filter(|_| thinks);
        set("thinking_token_budget", budget.map(Value::from));
    }
    let (effort, format) = match body.output_config {
        Some(config) => {
            let config: OutputConfig = request::read_inside(&config, "output_config", unknown)?;
            (config.effort, config.format)
        }
        None => (None, None),
    };
    let effort = effort.map(|effort| match effort.as_str() {
        "max" => "xhigh".to_owned(),
        _ => effort,
    });
    set("reasoning_effort", effort.map(Value::from));
    if let Some(format) = format.or(body.output_format) {
        let format: Format = request::read_inside(&format, "output_config.format", unknown)?;
        set("response_format", Some(response_format(format)?));
    }
    Ok((chat.into(), places))
}

fn response_format(format: Format) -> Result<Value, ApiError> {
    match format.kind.as_str() {
        "json_schema" => Ok(json!({"type": "json_schema",
            "json_schema": {"name": "answer", "schema": format.schema, "strict": true}})),
        other => Err(unsupported("output_config.format", other)),
    }
}

fn tool(tool: Tool) -> Result<Value, ApiError> {
    match tool.kind.as_deref() {
        None | Some("custom") => {}
        Some(other) => return Err(unsupported("tools", other)),
    }
    let refused = [
        ("tools.defer_loading", tool.defer_loading == Some(true)),
        (
            "tools.input_examples",
            tool.input_examples
                .is_some_and(|examples| !examples.is_empty()),
        ),
    ];
    if let Some((name, _)) = refused.into_iter().find(|(_, given)| *given) {
        return Err(ApiError::Unsupported {
            param: name.into(),
            detail: String::new(),
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn translate_all(body: Value) -> Result<(Value, Places), ApiError> {
        translated(
            serde_json::from_value(body).unwrap(),
            &mut Unknown::default(),
        )
    }

    fn request(body: Value) -> Value {
        let translated = translate_all(body);
        translated.unwrap_or_else(|e| panic!("{e}")).0
    }

    fn refused(body: Value) -> String {
        let refused = translate_all(body).err();
        refused.map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_conversation_with_tools_is_translated() {
        let chat = request(json!({
            "model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "Be brief."}],
            "stop_sequences": ["x"], "thinking": {"type": "disabled"},
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "text", "text": "Well."},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "2"}]},
                    {"type": "text", "text": "So?"}]},
            ],
        }));
        assert_eq!(
            chat["messages"],
            json!([
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Well.", "reasoning_content": "Hm.", "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
                {"role": "tool", "tool_call_id": "t1", "content": "2"},
                {"role": "user", "content": "So?"},
            ])
        );
        assert_eq!(chat["tool_choice"], "required");
        assert_eq!(chat["parallel_tool_calls"], false);
        assert_eq!(chat["enable_thinking"], false);
        assert_eq!(
            (&chat["max_completion_tokens"], &chat["stop"]),
            (&json!(9), &json!(["x"]))
        );
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let said = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
        let result = json!([{"type": "text", "text": 1}]);
        let offered = |tool: Value| json!({"messages": [], "tools": [tool]});
        for (body, says) in [
            (
                said(json!({"type": "image", "source": {}})),
                "`messages[0].content[0]` of the type `image`",
            ),
            (
                said(json!({"type": "text"})),
                "`messages[0].content[0].text`",
            ),
            (
                said(json!({"type": "text", "text": ["a"]})),
                "`messages[0].content[0].text`",
            ),
            (
                said(json!({"type": "tool_use", "name": "f", "input": "{}"})),
                "`messages[0].content[0].input`",
            ),
            (
                said(json!({"type": "tool_result", "content": result})),
                "`messages[0].content[0].content[0].text`",
            ),
            (json!({"messages": [], "system": 5}), "`system`"),
            (
                json!({"messages": [], "tool_choice": {"type": "tool"}}),
                "`tool_choice.name`",
            ),
            (
                offered(json!({"name": "f", "defer_loading": true})),
                "`tools.defer_loading`",
            ),
            (
                offered(json!({"name": "f", "input_examples": [{}]})),
                "`tools.input_examples`",
            ),
            (
                offered(json!({"name": "b", "type": "bash_20250124"})),
                "bash_20250124",
            ),
        ] {
            let error = refused(body.clone());
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn errors_have_the_numbers_of_the_messages_as_they_were_sent() {
        let result = json!({"type": "tool_result", "tool_use_id": "t", "content": "1"});
        let text = json!({"type": "text", "text": "So?"});
        let body = json!({"system": "Be brief.", "messages": [
            {"role": "user", "content": "Hi"}, {"role": "user", "content": [result, text]},
            {"role": "robot", "content": "Hello"}]});
        let (chat, places) = translate_all(body).unwrap();
        let error = chat::ChatRequest::read(&chat).unwrap_err();
        assert!(error.to_string().contains("`messages[4].role`"), "{error}");
        let error = places.named(error);
        assert!(error.to_string().contains("`messages[2].role`"), "{error}");
    }

    #[test]
    fn what_the_format_has_under_other_names_is_done() {
        let chat = request(json!({
            "messages": [{"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": "no such file", "is_error": true}]}],
            "tools": [{"name": "f", "strict": true, "cache_control": {"type": "ephemeral"}}],
            "thinking": {"type": "enabled", "budget_tokens": 1024}, "stream": true,
            "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        }));
        assert_eq!(chat["messages"][0]["content"], "Error: no such file");
        let called = json!({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]});
        let called = &request(called)["messages"][0]["tool_calls"][0]["function"];
        assert_eq!(called["arguments"], "{}");
        assert_eq!(chat["tools"][0]["function"]["strict"], true);
        assert_eq!(chat["thinking_token_budget"], 1024);
        assert_eq!(chat["reasoning_effort"], "xhigh");
        assert_eq!(
            chat["response_format"]["json_schema"]["schema"]["type"],
            "object"
        );
        assert_eq!(chat["stream_options"]["continuous_usage_stats"], true);
        let off = json!({"messages": [], "thinking": {"type": "disabled", "budget_tokens": 9}});
        assert_eq!(request(off).get("thinking_token_budget"), None);
    }
}
