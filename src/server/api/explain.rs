//! `POST /admin/v1/policies/explain`: why the active policies decide about an answer as they do. It is
//! an operator's route, because it shows what the policies look for.

use axum::Json;
use axum::extract::{Request, State};
use schemars::JsonSchema;
use serde::Deserialize;

use super::answers::admin::Explanation;
use super::error::ApiError;
use super::{AppState, blocking, body};
use realign_align::oracle::Exchange;

/// An answer to explain.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ExplainRequest")]
pub(crate) struct Body {
    /// The last user message; empty if it is left out.
    prompt: Option<String>,
    /// The assistant's answer.
    response: String,
    /// Category labels of the answer.
    labels: Option<Vec<String>>,
}

/// Explains one answer.
pub(crate) async fn explain(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Explanation>, ApiError> {
    let body: Body = body::of_operator(request, state.max_body_bytes).await?;
    if let Some(why) = state.moderation.unavailable() {
        return Err(ApiError::Unavailable(why));
    }
    let explained = move || {
        let exchange = Exchange {
            prompt: body.prompt.as_deref().unwrap_or_default(),
            response: &body.response,
            labels: body.labels.as_deref().unwrap_or_default(),
        };
        Ok(state.moderation.explain(&exchange))
    };
    let (revision, rules) = blocking(explained).await?;
    Ok(Json(Explanation { revision, rules }))
}
