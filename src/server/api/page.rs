//! The operators' web page: three files embedded in the binary, with no external resources.

use axum::extract::OriginalUri;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::nested;

type File = ([(HeaderName, &'static str); 4], &'static str);

/// Content security policy: the page runs its own script and talks to its own server; nothing else
/// is allowed, and no other page may embed it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The same for a nested page, which needs a `<base>` element.
const NESTED_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                             img-src data:; base-uri 'self'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`. The page contains no data: the script requests it with the operator's key.
pub(crate) async fn html(OriginalUri(uri): OriginalUri) -> Response {
    let html = include_str!("page/page.html");
    let (headers, text) = file("text/html; charset=utf-8", html);
    let Some(base) = nested::base(uri.path()) else {
        return (headers, text).into_response();
    };
    let mut response = (headers, nested::with_base(text, base)).into_response();
    let policy = HeaderValue::from_static(NESTED_POLICY);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

/// `GET /page.css`.
pub(crate) async fn css() -> File {
    file("text/css; charset=utf-8", include_str!("page/page.css"))
}

/// `GET /page.js`.
pub(crate) async fn js() -> File {
    file(
        "text/javascript; charset=utf-8",
        include_str!("page/page.js"),
    )
}

/// `GET /playground.js`.
pub(crate) async fn playground() -> File {
    file(
        "text/javascript; charset=utf-8",
        include_str!("page/playground.js"),
    )
}

fn file(content_type: &'static str, text: &'static str) -> File {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // A new binary may bring a new page.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
