//! Reading request bodies, limited in size and time.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::ApiError;
use super::observe::Observation;
use super::request;
use realign_core::json::{JsonError, parse as parse_json};

/// Timeout for a body if the request has no observation.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a body of at most `limit` bytes as JSON.
///
/// # Errors
/// [`ApiError::TooLarge`], [`ApiError::Timeout`], or [`ApiError::Body`] for a body that is not
/// JSON.
pub(crate) async fn json(request: Request, limit: usize) -> Result<Value, ApiError> {
    let observation = request.extensions().get::<Arc<Observation>>().cloned();
    let bytes = bytes(request, limit).await?;
    let body = parse(&bytes)?;
    if let Some(observation) = observation {
        observation.set_prompts(&body);
    }
    Ok(body)
}

/// Reads what an operator sends. What nothing looks for is refused, parameters in the address too: a
/// misspelled or misplaced `dry_run` must not remove anything.
///
/// # Errors
/// As [`json`], and those of the fields.
pub(crate) async fn of_operator<T: DeserializeOwned>(
    request: Request,
    limit: usize,
) -> Result<T, ApiError> {
    check_query(&request)?;
    let body = json(request, limit).await?;
    request::read_known(&body)
}

/// As [`of_operator`], where a body is not needed.
///
/// # Errors
/// As [`of_operator`].
pub(crate) async fn of_operator_or_empty<T: DeserializeOwned + Default>(
    request: Request,
    limit: usize,
) -> Result<T, ApiError> {
    check_query(&request)?;
    let bytes = bytes(request, limit).await?;
    match bytes.iter().all(u8::is_ascii_whitespace) {
        true => Ok(T::default()),
        false => request::read_known(&parse(&bytes)?),
    }
}

/// As [`of_operator`], where there is nothing to say: without a body, or with an empty object.
///
/// # Errors
/// As [`of_operator`].
pub(crate) async fn nothing_of_operator(request: Request, limit: usize) -> Result<(), ApiError> {
    #[derive(Default, serde::Deserialize)]
    struct NoFields {}

    of_operator_or_empty::<NoFields>(request, limit).await?;
    Ok(())
}

fn check_query(request: &Request) -> Result<(), ApiError> {
    let Some(query) = request.uri().query().filter(|query| !query.is_empty()) else {
        return Ok(());
    };
    let name = query.split(['=', '&']).next().unwrap_or_default();
    let name = request::shortened(name);
    Err(ApiError::field(
        name.clone(),
        format!(
            "`{name}` is in the address, where this route takes nothing; send it in the body, as JSON"
        ),
    ))
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        let why = "the request body is empty; it must be a JSON object";
        return Err(ApiError::Body(why.into()));
    }
    parse_json(bytes).map_err(|error| match &error {
        JsonError::Twice { path } => ApiError::field(path, error.to_string()),
        JsonError::Half { path, .. } if !path.is_empty() => {
            ApiError::field(path, error.to_string())
        }
        JsonError::Half { .. } => ApiError::Body(error.to_string()),
        JsonError::Syntax { .. } => ApiError::Body(format!("the request body is {error}")),
    })
}

/// Refuses a body that is compressed, which would be read as broken JSON.
fn check_encoding(request: &Request) -> Result<(), ApiError> {
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    let encoding = encoding.map_or("identity", |value| value.to_str().unwrap_or("another one"));
    if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") {
        return Ok(());
    }
    let shown: String = encoding.chars().take(32).collect();
    Err(ApiError::Body(format!(
        "the request body has the content-encoding `{shown}`; send it uncompressed"
    )))
}

async fn bytes(request: Request, limit: usize) -> Result<Vec<u8>, ApiError> {
    check_encoding(&request)?;
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(ApiError::TooLarge { limit });
    }
    let observation = request.extensions().get::<Arc<Observation>>().cloned();
    let timeout = observation
        .as_ref()
        .map_or(DEFAULT_TIMEOUT, |o| o.body_timeout());
    tokio::time::timeout(timeout, read(request, limit))
        .await
        .map_err(|_| ApiError::Timeout {
            seconds: timeout.as_secs(),
        })?
}

async fn read(request: Request, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut chunks = request.into_body().into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|e| ApiError::Body(format!("the request body did not arrive: {e}")))?;
        if bytes.len() + chunk.len() > limit {
            return Err(ApiError::TooLarge { limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
