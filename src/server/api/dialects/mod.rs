//! Other servers' chat APIs, as translations of chat completions: Anthropic's messages and Ollama's chat.
//!
//! A request becomes a chat completion's body, takes its way through the same code, and the answer is
//! translated back, whole or part by part. What a format carries that cannot be done is refused by name.
//! All errors, those of keys and limits too, have the format's own form.

pub(crate) mod anthropic;
mod events;
pub(crate) mod ollama;

use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::{ApiError, Explained};
use super::observe::Observation;
use super::request::{self, Unknown};
use super::{AppState, body, run};

/// Largest answer that is translated as a whole, in bytes: more than any context holds.
const MOST_ANSWER: usize = 64 << 20;

/// Whose form the errors of a path have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errors {
    OpenAi,
    Anthropic,
    Ollama,
}

impl Errors {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::OpenAi, Self::Anthropic, Self::Ollama];

    /// Those of a path.
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else if path.starts_with("/api/") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }

    /// What the names of their descriptions begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::OpenAi => "",
            Self::Anthropic => "Anthropic",
            Self::Ollama => "Ollama",
        }
    }

    /// Their JSON schema; `ours` is that of OpenAI's form.
    pub(crate) fn schema(self, ours: &Value) -> Value {
        let text = json!({"type": "string"});
        match self {
            Self::OpenAi => ours.clone(),
            Self::Anthropic => {
                json!({"type": "object", "required": ["type", "error"], "properties": {
                "type": {"const": "error"},
                "error": {"type": "object", "required": ["type", "message"],
                    "properties": {"type": text, "message": text}}}})
            }
            Self::Ollama => {
                json!({"type": "object", "required": ["error"], "properties": {"error": text}})
            }
        }
    }

    fn body(self, status: StatusCode, message: &str) -> Option<Value> {
        match self {
            Self::OpenAi => None,
            Self::Anthropic => Some(anthropic::error_body(status, message)),
            Self::Ollama => Some(ollama::error_body(status, message)),
        }
    }
}

/// Middleware that gives errors the form of the format that a path belongs to.
pub(crate) async fn own_errors(request: Request, next: Next) -> Response {
    let errors = Errors::of(request.uri().path());
    let response = next.run(request).await;
    let explained = response.extensions().get::<Explained>();
    match explained.and_then(|Explained(message)| errors.body(response.status(), message)) {
        Some(body) => with_json(response, &body),
        None => response,
    }
}

/// Reads a request's body; the fields that `T` does not have are refused or named.
async fn read<T: DeserializeOwned>(
    state: &AppState,
    request: Request,
) -> Result<(T, Unknown), ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let (read, unknown): (T, Unknown) = request::read_all(&body)?;
    unknown.check(state.unknown_fields)?;
    Ok((read, unknown))
}

/// Answers a chat completion's body, whose fields have these names in the format: `(ours, theirs)`.
async fn complete(
    state: AppState,
    observation: Arc<Observation>,
    body: Value,
    names: &[(&str, &str)],
) -> Result<Response, ApiError> {
    observation.set_prompts(&body);
    let answered = run::chat(state, observation, &body).await;
    answered.map_err(|error| error.renamed(names))
}

/// The whole answer as JSON, with the response that carried it.
async fn whole(response: Response) -> Result<(Response, Value), ApiError> {
    let (parts, body) = response.into_parts();
    let failed =
        |error: String| ApiError::Internal(format!("an answer cannot be translated: {error}"));
    let bytes = to_bytes(body, MOST_ANSWER)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let answer = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
    Ok((
        Response::from_parts(parts, axum::body::Body::empty()),
        answer,
    ))
}

/// The response with another JSON body.
fn with_json(mut response: Response, body: &Value) -> Response {
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response.map(|_| axum::body::Body::from(body.to_string()))
}

/// Whether a chunk is the last one, with the counts of the whole answer.
fn is_last(chunk: &Value) -> bool {
    let choices = chunk["choices"].as_array();
    choices.is_some_and(Vec::is_empty) && chunk["usage"].is_object()
}

/// A field whose value is of a type that is not done.
fn unsupported(param: &str, kind: &str) -> ApiError {
    let kind: String = kind.chars().take(40).collect();
    ApiError::Unsupported {
        param: param.into(),
        detail: format!(" of the type `{kind}`"),
    }
}
