//! Ollama's `POST /api/chat` and `/api/generate`, and the routes that its clients ask first.

mod answer;
pub(crate) mod embed;
mod options;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::super::AppState;
use super::super::error::ApiError;
use super::super::observe::Observation;
use super::super::request::{Refused, same, without_effect};
use super::{complete, read, whole, with_json};
use answer::{empty, line, stream_of};
use options::NAMES;
use realign_core::clock::utc;

/// The version of Ollama that first had all that is done here: log-probabilities came last.
const SPOKEN: &str = "0.12.11";

/// A request of `/api/chat`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "OllamaChatRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct ChatBody {
    /// The conversation.
    messages: Vec<Message>,
    /// Functions that the model may call, as in chat completions.
    tools: Option<Vec<Value>>,
    #[serde(rename = "..common")]
    #[schemars(flatten)]
    common: Common,
}

/// A request of `/api/generate`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "OllamaGenerateRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct GenerateBody {
    prompt: Option<String>,
    system: Option<String>,
    /// Not supported; only without effect.
    suffix: Option<String>,
    images: Option<Vec<Value>>,
    template: Option<String>,
    context: Option<Vec<Value>>,
    raw: Option<bool>,
    #[serde(rename = "..common")]
    #[schemars(flatten)]
    common: Common,
}

/// What both requests have.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Common {
    model: Option<String>,
    /// Default true.
    stream: Option<bool>,
    /// `json`, or a JSON schema.
    format: Option<Value>,
    options: Option<Map<String, Value>>,
    /// Whether the model thinks first, or how much: `low`, `medium` or `high`.
    think: Option<Value>,
    /// Whether to return the log-probabilities of the answer's tokens.
    logprobs: Option<bool>,
    /// As many alternatives to each of them.
    top_logprobs: Option<u64>,
    /// Only `false`, which is what happens: a conversation that does not fit is refused.
    truncate: Option<bool>,
    /// Only `false`, which is what happens: an answer ends with the context.
    shift: Option<bool>,
    /// Without effect: the model stays loaded.
    #[serde(rename = "keep_alive")]
    #[schemars(with = "Option<Value>")]
    _keep_alive: Option<IgnoredAny>,
}

impl Common {
    fn streams(&self) -> bool {
        self.stream.unwrap_or(true)
    }
}

/// A message of the conversation.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct Message {
    role: String,
    content: Option<String>,
    thinking: Option<String>,
    tool_calls: Option<Vec<Call>>,
    /// Which call a result answers; without it, results answer calls in their order.
    tool_call_id: Option<String>,
    /// Which function a result is of; templates that know the name read it.
    tool_name: Option<String>,
    /// Older name of `tool_name`.
    name: Option<String>,
    #[serde(rename = "images")]
    #[schemars(skip)]
    _images: Option<Refused>,
}

/// An earlier call of a function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct Call {
    id: Option<String>,
    /// `function`.
    #[serde(rename = "type")]
    #[schemars(with = "Option<String>")]
    _type: Option<IgnoredAny>,
    function: Called,
}

/// The function that was called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct Called {
    name: String,
    /// An object, or its text; nothing is none.
    arguments: Option<Value>,
    #[serde(rename = "..more")]
    #[schemars(flatten)]
    _more: CalledFields,
}

without_effect! {
    /// What clients keep of a call.
    CalledFields { "description", "index" }
}

/// The model that is asked about.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "OllamaShowRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct ShowBody {
    model: Option<String>,
    /// Older name of `model`.
    name: Option<String>,
    /// Without effect: there is nothing more to show.
    #[serde(rename = "verbose")]
    #[schemars(with = "Option<bool>")]
    _verbose: Option<IgnoredAny>,
}

/// Which of the two forms an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Chat,
    Generate,
}

/// `POST /api/chat`.
pub(crate) async fn chat(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (body, unknown) = read::<ChatBody>(&state, request).await?;
    if body.messages.is_empty() {
        let model = body.common.model.as_deref();
        return Ok(unknown.named_in(loaded(&state, model, Form::Chat)?));
    }
    let streamed = body.common.streams();
    let asked = (chat_body(body)?, streamed, Form::Chat);
    Ok(unknown.named_in(answer(state, observation, asked).await?))
}

/// `POST /api/generate`.
pub(crate) async fn generate(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (body, unknown) = read::<GenerateBody>(&state, request).await?;
    let streamed = body.common.streams();
    let asks = body.prompt.as_ref().is_some_and(|text| !text.is_empty());
    let model = body.common.model.clone();
    // What cannot be done is refused without a prompt, too.
    let asked = (generate_body(body)?, streamed, Form::Generate);
    if !asks {
        let loaded = loaded(&state, model.as_deref(), Form::Generate)?;
        return Ok(unknown.named_in(loaded));
    }
    Ok(unknown.named_in(answer(state, observation, asked).await?))
}

async fn answer(
    state: AppState,
    observation: Arc<Observation>,
    (body, streamed, form): (Value, bool, Form),
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let inside = inside(&body);
    let inside = inside.iter().map(|(ours, theirs)| (&**ours, &**theirs));
    let names: Vec<(&str, &str)> = NAMES.into_iter().chain(inside).collect();
    let response = complete(state, observation, body, &names).await?;
    if streamed {
        return Ok(stream_of(response, form, started));
    }
    let (response, answer) = whole(response).await?;
    Ok(with_json(response, &line(&answer, form, started)))
}

/// The fields of messages that have other names here: `(ours, theirs)`.
fn inside(chat: &Value) -> Vec<(String, String)> {
    let messages = 0..chat["messages"].as_array().map_or(0, Vec::len);
    let thoughts = |i| {
        let at = |name| format!("messages[{i}].{name}");
        (at("reasoning_content"), at("thinking"))
    };
    messages.map(thoughts).collect()
}

/// The answer to a request that says nothing: with Ollama it loads the model, which is loaded here.
fn loaded(state: &AppState, model: Option<&str>, form: Form) -> Result<Response, ApiError> {
    let name = plain(model.unwrap_or_default());
    super::super::models::resolve(state, name)?;
    let name = super::super::models::named(state, name);
    Ok(Json(empty(name, form)).into_response())
}

/// `GET /api/version`: of the interface. Clients refuse a server whose version is lower than what they need.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": SPOKEN, "realign": env!("CARGO_PKG_VERSION")}))
}

/// `GET /api/tags`.
pub(crate) async fn tags(State(state): State<AppState>) -> Json<Value> {
    Json(json!({"models": [listed(&state)]}))
}

/// `GET /api/ps`.
pub(crate) async fn running(State(state): State<AppState>) -> Json<Value> {
    Json(json!({"models": [listed(&state)]}))
}

/// `POST /api/show`.
pub(crate) async fn show(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (body, unknown) = read::<ShowBody>(&state, request).await?;
    let name = body.model.or(body.name).unwrap_or_default();
    super::super::models::resolve(&state, plain(&name))?;
    let shown = Json(json!({
        "details": details(), "model_info": {"general.architecture": "realign",
            "general.basename": &*state.model_name, "realign.context_length": state.engine.max_model_len()},
        "capabilities": capabilities(state.chat.thinks()),
        "modified_at": utc(state.started_at),
    }));
    Ok(unknown.named_in(shown.into_response()))
}

fn listed(state: &AppState) -> Value {
    json!({"name": &*state.model_name, "model": &*state.model_name, "modified_at": utc(state.started_at),
        "size": 0, "digest": state.registry.base().base_hash, "details": details()})
}

fn capabilities(thinks: bool) -> Value {
    let mut able = vec!["completion", "tools", "embedding"];
    able.extend(thinks.then_some("thinking"));
    able.into()
}

fn details() -> Value {
    json!({"format": "gguf", "family": "", "families": [], "parameter_size": "", "quantization_level": ""})
}

/// An error's body.
pub(super) fn error_body(_: StatusCode, message: &str) -> Value {
    json!({ "error": message })
}

/// The name without the tag that Ollama's clients add.
fn plain(model: &str) -> &str {
    model.strip_suffix(":latest").unwrap_or(model)
}

fn unsupported(param: &str) -> ApiError {
    ApiError::Unsupported {
        param: param.into(),
        detail: String::new(),
    }
}

/// Refuses a field that has only this value.
fn other_than(param: &str, value: &str) -> ApiError {
    ApiError::Unsupported {
        param: param.into(),
        detail: format!(" other than {value}"),
    }
}

fn chat_body(body: ChatBody) -> Result<Value, ApiError> {
    let prefilled = body.messages.last().is_some_and(continues);
    let messages = body.messages.into_iter().enumerate();
    let messages = messages.map(|(index, given)| message(index, given));
    let messages: Vec<Value> = messages.collect::<Result<_, _>>()?;
    let mut chat = common(body.common)?;
    if prefilled {
        chat.insert("continue_final_message".into(), true.into());
    }
    chat.insert("messages".into(), messages.into());
    if let Some(tools) = body.tools.filter(|tools| !tools.is_empty()) {
        chat.insert("tools".into(), tools.into());
    }
    Ok(chat.into())
}

fn generate_body(body: GenerateBody) -> Result<Value, ApiError> {
    let filled = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let given = [
        ("suffix", filled(&body.suffix)),
        (
            "images",
            body.images.is_some_and(|images| !images.is_empty()),
        ),
        ("template", filled(&body.template)),
        (
            "context",
            body.context.is_some_and(|context| !context.is_empty()),
        ),
        ("raw", body.raw == Some(true)),
    ];
    if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(unsupported(name));
    }
    let mut messages = Vec::new();
    if let Some(system) = body.system.filter(|system| !system.is_empty()) {
        messages.push(json!({"role": "system", "content": system}));
    }
    messages.push(json!({"role": "user", "content": body.prompt.unwrap_or_default()}));
    let mut chat = common(body.common)?;
    chat.insert("messages".into(), messages.into());
    Ok(chat.into())
}

/// What both requests have, as fields of a chat completion.
fn common(body: Common) -> Result<Map<String, Value>, ApiError> {
    let streamed = body.streams();
    for (name, given) in [("truncate", body.truncate), ("shift", body.shift)] {
        if given == Some(true) {
            return Err(other_than(name, "`false`"));
        }
    }
    let mut chat = Map::new();
    if let Some(model) = body.model {
        chat.insert("model".into(), plain(&model).into());
    }
    chat.insert("stream".into(), streamed.into());
    if streamed {
        chat.insert("stream_options".into(), json!({"include_usage": true}));
    }
    if let Some(format) = body.format.map(response_format).transpose()? {
        chat.extend(format.map(|format| ("response_format".into(), format)));
    }
    match body.think {
        None | Some(Value::Null) => {}
        Some(Value::Bool(thinks)) => drop(chat.insert("enable_thinking".into(), thinks.into())),
        Some(effort) => drop(chat.insert("reasoning_effort".into(), effort)),
    }
    chat.extend(
        body.logprobs
            .map(|wanted| ("logprobs".into(), wanted.into())),
    );
    chat.extend(
        body.top_logprobs
            .map(|top| ("top_logprobs".into(), top.into())),
    );
    chat.extend(options::translated(body.options.unwrap_or_default())?);
    Ok(chat)
}

/// `format` as a chat completion has it; nothing for an empty text.
fn response_format(format: Value) -> Result<Option<Value>, ApiError> {
    match format {
        Value::String(kind) if kind.is_empty() => Ok(None),
        Value::String(kind) if kind == "json" => Ok(Some(json!({"type": "json_object"}))),
        schema @ Value::Object(_) => Ok(Some(json!(
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}))),
        _ => Err(ApiError::field(
            "format",
            "`format` must be `json` or a JSON schema",
        )),
    }
}

/// Whether a message that is the last one is to be continued: it is the assistant's, and a text.
fn continues(message: &Message) -> bool {
    let says = message
        .content
        .as_ref()
        .is_some_and(|text| !text.is_empty());
    let calls = message
        .tool_calls
        .as_ref()
        .is_some_and(|calls| !calls.is_empty());
    message.role == "assistant" && says && !calls
}

fn message(index: usize, message: Message) -> Result<Value, ApiError> {
    let place = |field: &str| format!("messages[{index}].{field}");
    if message.name.is_some() && message.role != "tool" {
        return Err(unsupported(&place("name")));
    }
    let function = same([
        (&*place("tool_name"), message.tool_name),
        (&*place("name"), message.name),
    ])?;
    let mut translated =
        json!({"role": message.role, "content": message.content.unwrap_or_default()});
    if let Some(id) = message.tool_call_id {
        translated["tool_call_id"] = id.into();
    }
    if let Some(function) = function {
        translated["name"] = function.into();
    }
    if let Some(thoughts) = message.thinking {
        translated["reasoning_content"] = thoughts.into();
    }
    let calls = message.tool_calls.unwrap_or_default();
    let call = |call: Call| {
        let function = json!({"name": call.function.name, "arguments": call.function.arguments});
        json!({"id": call.id, "type": "function", "function": function})
    };
    let calls: Vec<Value> = calls.into_iter().map(call).collect();
    if !calls.is_empty() {
        translated["tool_calls"] = calls.into();
    }
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::super::super::request;
    use super::*;

    #[test]
    fn a_request_is_translated_and_what_cannot_be_done_is_named() {
        let body = json!({
            "model": "m:latest", "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}},
                    {"function": {"name": "g"}}]},
                {"role": "tool", "content": "2", "tool_name": "f"}],
            "options": {"num_predict": 9, "repeat_penalty": 1.1, "num_ctx": 4096, "stop": ["x"]},
            "format": {"type": "object"}, "think": false,
        });
        let chat = chat_body(request::read(&body).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            (&chat["model"], &chat["stream"]),
            (&json!("m"), &json!(true))
        );
        let read = super::super::super::chat::ChatRequest::read(&chat).unwrap();
        let calls = read.messages[1].tool_calls.clone().unwrap();
        assert_eq!(calls[0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(calls[1]["function"]["arguments"], json!({}));
        assert_eq!(chat["messages"][2]["name"], "f");
        assert_eq!(
            (&chat["max_completion_tokens"], &chat["repetition_penalty"]),
            (&json!(9), &json!(1.1))
        );
        assert_eq!(
            chat["response_format"]["json_schema"]["schema"]["type"],
            "object"
        );
        assert_eq!(
            (&chat["enable_thinking"], chat.get("num_ctx")),
            (&json!(false), None)
        );

        let body = |body: Value| request::read::<ChatBody>(&body).unwrap();
        for (odd, names) in [
            (
                json!({"messages": [], "options": {"mirostat": 2}}),
                "options.mirostat",
            ),
            (json!({"messages": [], "truncate": true}), "truncate"),
            (json!({"messages": [], "shift": true}), "shift"),
        ] {
            let error = chat_body(body(odd)).unwrap_err();
            assert!(error.to_string().contains(names), "{error}");
        }
        let asked = json!({"messages": [], "truncate": false, "logprobs": true, "top_logprobs": 2});
        let asked = chat_body(body(asked)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            (&asked["logprobs"], &asked["top_logprobs"]),
            (&json!(true), &json!(2))
        );
        let raw = json!({"prompt": "a", "raw": true});
        let error = generate_body(request::read(&raw).unwrap()).unwrap_err();
        assert!(error.to_string().contains("raw"), "{error}");
        let generate = json!({"prompt": "a", "system": "s", "stream": false});
        let generate = generate_body(request::read(&generate).unwrap());
        assert_eq!(
            generate.unwrap_or_else(|e| panic!("{e}"))["messages"][1]["content"],
            "a"
        );
    }
}
