//! Operator routes.

use std::convert::Infallible;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::error::ApiError;
use super::fields::Fields;
use super::{AppState, blocking, body, streaming::KEEP_ALIVE};

type Answer = Result<Json<Value>, ApiError>;

/// `GET /admin/v1/policies`.
pub(crate) async fn policies(State(state): State<AppState>) -> Answer {
    blocking(move || Ok(Json(state.admin.policies()))).await
}

/// `GET /admin/v1/realignments`.
pub(crate) async fn realignments(State(state): State<AppState>) -> Answer {
    blocking(move || Ok(Json(state.admin.realignments()))).await
}

/// `POST /admin/v1/realignments`: accepted; it runs in the background.
pub(crate) async fn start(State(state): State<AppState>) -> Result<Response, ApiError> {
    let started = blocking(move || Ok(state.admin.start()?)).await?;
    Ok((StatusCode::ACCEPTED, Json(started)).into_response())
}

/// `GET /admin/v1/realignments/{id}`.
pub(crate) async fn realignment(State(state): State<AppState>, Path(id): Path<String>) -> Answer {
    blocking(move || {
        let found = state.admin.realignment(&id);
        found.map(Json).ok_or_else(|| no_realignment(&id))
    })
    .await
}

/// `POST /admin/v1/realignments/{id}/cancel`.
pub(crate) async fn cancel(State(state): State<AppState>, Path(id): Path<String>) -> Answer {
    blocking(move || Ok(Json(state.admin.cancel(&id)?))).await
}

/// `GET /admin/v1/realignments/{id}/events`: events from now on, until the realignment ends.
pub(crate) async fn events(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let receiver = blocking(move || {
        let found = state.admin.events(&id);
        found.ok_or_else(|| no_realignment(&id))
    })
    .await?;
    let events = stream::unfold(Some(receiver), |open| async move {
        let mut receiver = open?;
        let value = next(&mut receiver).await?;
        let last = value["event"] == "realignment_finished";
        let event = Event::default().data(value.to_string());
        let open = (!last).then_some(receiver);
        Some((Ok::<Event, Infallible>(event), open))
    });
    let sse = Sse::new(events.boxed()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok(sse.into_response())
}

/// The next event. A reader that was too slow is told how many it missed.
async fn next(receiver: &mut Receiver<Value>) -> Option<Value> {
    match receiver.recv().await {
        Ok(value) => Some(value),
        Err(RecvError::Lagged(missed)) => Some(json!({"event": "lagged", "missed": missed})),
        Err(RecvError::Closed) => None,
    }
}

/// `GET /admin/v1/generations`.
pub(crate) async fn generations(State(state): State<AppState>) -> Answer {
    blocking(move || Ok(Json(state.admin.generations()))).await
}

/// `POST /admin/v1/generations/activate` `{generation, expected_generation?}`.
pub(crate) async fn activate(State(state): State<AppState>, request: Request) -> Answer {
    let body = body::json(request, state.max_body_bytes).await?;
    let fields = Fields::root(&body)?;
    let generation = fields.string("generation")?.to_string();
    let expected = match fields.get("expected_generation") {
        Some(_) => Some(fields.string("expected_generation")?.to_string()),
        None => None,
    };
    blocking(move || {
        Ok(Json(
            state.admin.activate(&generation, expected.as_deref())?,
        ))
    })
    .await
}

/// `POST /admin/v1/generations/rollback`.
pub(crate) async fn rollback(State(state): State<AppState>) -> Answer {
    blocking(move || Ok(Json(state.admin.rollback()?))).await
}

fn no_realignment(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    ApiError::NotFound(format!(
        "there is no realignment {shown:?}; GET /admin/v1/realignments lists them"
    ))
}

/// `GET /admin/v1/log-level`.
pub(crate) async fn log_level(State(state): State<AppState>) -> Json<Value> {
    Json(json!({ "filter": state.logs.filter() }))
}

/// `PUT /admin/v1/log-level` `{filter}`: until the next start.
pub(crate) async fn set_log_level(State(state): State<AppState>, request: Request) -> Answer {
    let body = body::json(request, state.max_body_bytes).await?;
    let filter = Fields::root(&body)?.string("filter")?.to_string();
    state
        .logs
        .set_filter(&filter)
        .map_err(|why| ApiError::field("filter", why))?;
    let filter = state.logs.filter();
    tracing::warn!(filter, "the log filter was changed by an operator");
    Ok(Json(json!({ "filter": filter })))
}
