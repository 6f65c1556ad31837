//! Which web pages may call the client routes from a browser. None, unless an operator names their
//! origins: the server then says so in the headers that browsers look for.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AppState;

/// What pages may send, beyond what every page may. OpenAI's own client adds a dozen headers of
/// its own (`x-stainless-*`), so the list is what the browser asks for.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, OPTIONS");
/// What pages may read of an answer's headers.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, x-realign-generation, retry-after, x-ratelimit-limit-requests, \
     x-ratelimit-remaining-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens",
);
/// Browsers ask again after so many seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Answers preflights and marks answers, for allowed origins. Any other request passes untouched:
/// the browser keeps its page from seeing the answer.
pub(crate) async fn cors(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let allowed = allowed(&state.cors_origins, request.headers());
    let asks = request.headers().get("access-control-request-headers");
    let asks = asks.cloned();
    let preflight = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key("access-control-request-method");
    let mut response = match (&allowed, preflight) {
        (Some(_), true) => StatusCode::NO_CONTENT.into_response(),
        _ => next.run(request).await,
    };
    let Some(origin) = allowed else {
        return response;
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    // A cache must not give one origin's answer to another.
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        if let Some(asks) = asks {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asks);
        }
    }
    response
}

/// The origin to name in the answer. Keys are sent by pages themselves, never by the browser on
/// its own, so credentials are not allowed for.
fn allowed(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let sent = origin.to_str().ok()?;
    let listed = origins.iter().any(|o| o == "*" || o == sent);
    listed.then(|| origin.clone())
}
