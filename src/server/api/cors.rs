//! Cross-origin requests: web pages may call the client routes from a browser only if an operator
//! has listed their origins.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AppState;

/// Allowed methods. There is no list of allowed headers, because OpenAI's client adds a dozen of
/// its own (`x-stainless-*`): all headers that the browser requests are allowed.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, OPTIONS");
/// Response headers that pages may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, x-realign-generation, x-realign-alignment, x-realign-ignored-fields, retry-after, \
     x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens",
);
/// How long browsers may cache a preflight response, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Middleware that answers preflight requests and adds headers for allowed origins. Other requests
/// are passed on unchanged: the browser then hides the answer from the page.
pub(crate) async fn cors(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let allowed = allowed(&state.cors_origins, request.headers());
    let requested_headers = request
        .headers()
        .get("access-control-request-headers")
        .cloned();
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
        if let Some(requested) = requested_headers {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, requested);
        }
    }
    response
}

/// The origin to allow, if any. Credentials are not allowed: pages send keys themselves, not the
/// browser.
fn allowed(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let sent = origin.to_str().ok()?;
    let listed = origins.iter().any(|o| o == "*" || o == sent);
    listed.then(|| origin.clone())
}
