//! Reading request bodies, limited in size and time.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use futures::StreamExt;
use serde_json::Value;

use super::error::ApiError;
use super::observe::Observation;

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

/// As [`json`], where a body is not needed: `None` if there is none.
///
/// # Errors
/// As [`json`].
pub(crate) async fn json_or_empty(
    request: Request,
    limit: usize,
) -> Result<Option<Value>, ApiError> {
    let bytes = bytes(request, limit).await?;
    let blank = bytes.iter().all(u8::is_ascii_whitespace);
    (!blank).then(|| parse(&bytes)).transpose()
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|e| ApiError::Body(format!("the request body is not valid JSON: {e}")))
}

async fn bytes(request: Request, limit: usize) -> Result<Vec<u8>, ApiError> {
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
