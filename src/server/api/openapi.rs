//! `GET /openapi.json`: the client routes as an OpenAPI 3.1 document.
//!
//! It is written by hand: requests are read field by field, so that errors can say what is
//! allowed, and no types exist that a document could be derived from. Tests hold its paths against
//! the router's.

use axum::extract::State;
use axum::http::{HeaderName, header};

use super::AppState;

const DOCUMENT: &str = include_str!("openapi.json");

/// The document, with the crate's version and the served name filled in.
pub(crate) async fn document(
    State(state): State<AppState>,
) -> ([(HeaderName, &'static str); 1], String) {
    let name = serde_json::Value::from(&*state.model_name).to_string();
    let text = DOCUMENT.replace("\"SERVED_NAME\"", &name).replace(
        "\"CRATE_VERSION\"",
        concat!("\"", env!("CARGO_PKG_VERSION"), "\""),
    );
    ([(header::CONTENT_TYPE, "application/json")], text)
}
