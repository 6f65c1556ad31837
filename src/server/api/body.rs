//! Reading request bodies, limited in size and time.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::address;
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
    address::none(&request)?;
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
    address::none(&request)?;
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
        JsonError::Syntax { .. } => {
            ApiError::Body(format!("the request body is {error}{}", looks_like(bytes)))
        }
    })
}

/// What a body that is not JSON seems to be, and what to send.
fn looks_like(bytes: &[u8]) -> &'static str {
    let form = || {
        let text = bytes.iter().take_while(|byte| !b"{\"[".contains(byte));
        bytes.first().is_some_and(u8::is_ascii_alphabetic) && text.copied().any(|byte| byte == b'=')
    };
    match bytes {
        [0x1f, 0x8b, ..] => "; it looks compressed: send it uncompressed",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, ..] | [_, 0, ..] => {
            "; it looks like UTF-16 or UTF-32: send UTF-8"
        }
        [b'-', b'-', ..] => "; it looks like a form: send JSON",
        _ if form() => "; it looks like a form: send JSON",
        _ => "",
    }
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

#[cfg(test)]
mod tests {
    use super::looks_like;

    #[test]
    fn what_is_not_json_is_told_by_its_beginning() {
        for (bytes, words) in [
            (&b"\x1f\x8b\x08\0"[..], "compressed"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"\0\0\0{", "UTF-32"),
            (b"a=1&b=2", "form"),
            (b"--x\r\n", "form"),
        ] {
            assert!(looks_like(bytes).contains(words), "{bytes:?}");
        }
        for bytes in [&b"{'a': 1}"[..], b"nul", b"-5", b"x{=", b"\xef\xbb\xbf["] {
            assert_eq!(looks_like(bytes), "", "{bytes:?}");
        }
    }
}
