//! Who may call what: bearer keys, compared in constant time.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::AppState;
use super::error::ApiError;

/// Lets a request to a client route pass if no key is configured or it carries the key.
pub(crate) async fn client(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let allowed = match &state.api_key {
        Some(key) => check_key(request.headers(), key),
        None => Ok(()),
    };
    match allowed {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Lets a request to an operator route pass if it carries the operator key or, without one
/// configured, comes from this machine.
pub(crate) async fn admin(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let allowed = match &state.admin_key {
        Some(key) => check_key(request.headers(), key),
        None => check_local(&request),
    };
    match allowed {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check_key(headers: &HeaderMap, key: &str) -> Result<(), ApiError> {
    let sent = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    match sent {
        None => Err(ApiError::Unauthorized(
            "an API key is required: send `Authorization: Bearer <key>`",
        )),
        Some(sent) if same(sent, key) => Ok(()),
        Some(_) => Err(ApiError::Unauthorized("the API key is wrong")),
    }
}

/// Compares digests without stopping early, so the time tells neither length nor prefix.
fn same(a: &str, b: &str) -> bool {
    let (a, b) = (Sha256::digest(a), Sha256::digest(b));
    let difference = a.iter().zip(b.iter()).fold(0, |acc, (x, y)| acc | (x ^ y));
    std::hint::black_box(difference) == 0
}

/// A web page in a browser on this machine, or a proxy, also connects from the loopback address,
/// but on behalf of somebody else. The headers by which they say so are refused.
fn check_local(request: &Request) -> Result<(), ApiError> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let local = peer.is_some_and(|ConnectInfo(peer)| peer.ip().to_canonical().is_loopback());
    let headers = request.headers();
    let foreign = ["origin", "forwarded", "x-forwarded-for"]
        .iter()
        .any(|name| headers.contains_key(*name));
    if local && !foreign {
        return Ok(());
    }
    Err(ApiError::Forbidden(
        "operator routes answer only direct requests from this machine; set an admin key to use \
         them from elsewhere",
    ))
}
