//! Handlers of the operator routes.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answers::admin::{
    Cancelling, ExamAnswer, Generations, History, LogLevel, Policies, Realignment, Realignments,
    Swap, Unpinned,
};
use super::error::ApiError;
use super::ports::RealignmentEvent;
use super::request;
use super::{AppState, blocking, body, streaming::KEEP_ALIVE};
use crate::telemetry;

type Answer<T> = Result<Json<T>, ApiError>;

/// `GET /admin/v1/policies`.
pub(crate) async fn policies(State(state): State<AppState>) -> Answer<Policies> {
    blocking(move || Ok(Json(state.admin.policies()))).await
}

/// `GET /admin/v1/exam`: what the last exams said.
pub(crate) async fn exam(State(state): State<AppState>) -> Answer<ExamAnswer> {
    blocking(move || Ok(Json(state.admin.exam()))).await
}

/// `POST /admin/v1/exam`: has what serves sit the exam, in the background.
pub(crate) async fn examine(State(state): State<AppState>) -> Result<Response, ApiError> {
    let begun = blocking(move || Ok(state.admin.examine()?)).await?;
    Ok((StatusCode::ACCEPTED, Json(begun)).into_response())
}

/// `GET /admin/v1/realignments`.
pub(crate) async fn realignments(State(state): State<AppState>) -> Answer<Realignments> {
    blocking(move || {
        let realignments = state.admin.realignments();
        Ok(Json(Realignments { realignments }))
    })
    .await
}

/// `POST /admin/v1/realignments`: starts a realignment in the background.
pub(crate) async fn start(State(state): State<AppState>) -> Result<Response, ApiError> {
    let started = blocking(move || Ok(state.admin.start()?)).await?;
    Ok((StatusCode::ACCEPTED, Json(started)).into_response())
}

/// `GET /admin/v1/realignments/{id}`.
pub(crate) async fn realignment(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Answer<Realignment> {
    blocking(move || {
        let found = state.admin.realignment(&id);
        found.map(Json).ok_or_else(|| no_realignment(&id))
    })
    .await
}

/// `POST /admin/v1/realignments/{id}/cancel`.
pub(crate) async fn cancel(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Answer<Cancelling> {
    blocking(move || Ok(Json(state.admin.cancel(&id)?))).await
}

/// `GET /admin/v1/realignments/{id}/events`: events from now on, until the realignment ends.
pub(crate) async fn events(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let events = blocking(move || {
        let found = state.admin.events(&id);
        found.ok_or_else(|| no_realignment(&id))
    })
    .await?;
    let sent = stream::unfold(Some(events), |open| async move {
        let mut events = open?;
        let event = events.next().await?;
        let open = (!is_end(&event)).then_some(events);
        Some((sse(&event), open))
    });
    let sent = Sse::new(sent).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok(sent.into_response())
}

fn is_end(event: &RealignmentEvent) -> bool {
    match event {
        RealignmentEvent::Happened(event) => {
            matches!(**event, telemetry::Event::RealignmentFinished { .. })
        }
        RealignmentEvent::Lagged(_) => false,
    }
}

/// Formats an event as a server-sent event.
fn sse(event: &RealignmentEvent) -> Result<Event, axum::Error> {
    match event {
        RealignmentEvent::Happened(event) => Event::default().json_data(&**event),
        RealignmentEvent::Lagged(missed) => Event::default().json_data(Lagged {
            event: "lagged",
            missed: *missed,
        }),
    }
}

/// Tells a slow reader how many events it missed.
#[derive(Serialize)]
struct Lagged {
    event: &'static str,
    missed: u64,
}

/// `GET /admin/v1/generations`.
pub(crate) async fn generations(State(state): State<AppState>) -> Answer<Generations> {
    blocking(move || Ok(Json(state.admin.generations()))).await
}

/// The generation to make current.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct ActivateRequest {
    /// A generation's id, or `base`.
    generation: String,
    /// Refuse unless this generation serves now.
    expected_generation: Option<String>,
}

/// `POST /admin/v1/generations/activate`.
pub(crate) async fn activate(State(state): State<AppState>, request: Request) -> Answer<Swap> {
    let body = body::json(request, state.max_body_bytes).await?;
    let body: ActivateRequest = request::read(&body)?;
    blocking(move || {
        let expected = body.expected_generation.as_deref();
        Ok(Json(state.admin.activate(&body.generation, expected)?))
    })
    .await
}

/// What a rollback leaves.
#[derive(Default, Deserialize, JsonSchema)]
pub(crate) struct RollbackRequest {
    /// Refuse unless this generation serves now, or was rolled back from already.
    expected_generation: Option<String>,
}

/// `POST /admin/v1/generations/rollback`, with or without a body.
pub(crate) async fn rollback(State(state): State<AppState>, request: Request) -> Answer<Swap> {
    let body = body::json_or_empty(request, state.max_body_bytes).await?;
    let body: RollbackRequest = match body {
        Some(body) => request::read(&body)?,
        None => RollbackRequest::default(),
    };
    blocking(move || {
        let expected = body.expected_generation.as_deref();
        Ok(Json(state.admin.rollback(expected)?))
    })
    .await
}

/// `POST /admin/v1/generations/unpin`.
pub(crate) async fn unpin(State(state): State<AppState>) -> Answer<Unpinned> {
    blocking(move || Ok(Json(state.admin.unpin()?))).await
}

/// `GET /admin/v1/generations/history`.
pub(crate) async fn history(State(state): State<AppState>) -> Answer<History> {
    blocking(move || Ok(Json(state.admin.history()?))).await
}

/// `POST /admin/v1/policies/clear`.
pub(crate) async fn clear_policies(State(state): State<AppState>) -> Answer<Policies> {
    blocking(move || Ok(Json(state.admin.clear_policies()?))).await
}

fn no_realignment(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    ApiError::NotFound(format!(
        "there is no realignment {shown:?}; GET /admin/v1/realignments lists them"
    ))
}

/// `GET /admin/v1/log-level`.
pub(crate) async fn log_level(State(state): State<AppState>) -> Json<LogLevel> {
    let filter = state.logs.filter();
    Json(LogLevel { filter })
}

/// The log filter to set.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct LogLevelRequest {
    /// A level (error, warn, info, debug, trace, off), or levels by module.
    filter: String,
}

/// `PUT /admin/v1/log-level`: sets the filter until the next start.
pub(crate) async fn set_log_level(
    State(state): State<AppState>,
    request: Request,
) -> Answer<LogLevel> {
    let body = body::json(request, state.max_body_bytes).await?;
    let LogLevelRequest { filter } = request::read(&body)?;
    state
        .logs
        .set_filter(&filter)
        .map_err(|error| ApiError::field("filter", error.to_string()))?;
    let filter = state.logs.filter();
    tracing::warn!(filter, "the log filter was changed by an operator");
    Ok(Json(LogLevel { filter }))
}
