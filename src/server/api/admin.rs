//! Handlers of the operator routes.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, StreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::address::Segment;
use super::answers::admin::{
    Cancelling, ExamAnswer, Generations, History, LogLevel, Policies, Realignment, Realignments,
    Swap, Unpinned,
};
use super::answers::retention::Collected;
use super::error::ApiError;
use super::ports::{CollectOptions, RealignmentEvent};
use super::{AppState, blocking, body, streaming::KEEP_ALIVE};
use crate::telemetry;

/// How often a stream without events looks whether its realignment has ended.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5000 });

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
pub(crate) async fn examine(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    body::nothing_of_operator(request, state.max_body_bytes).await?;
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
pub(crate) async fn start(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    body::nothing_of_operator(request, state.max_body_bytes).await?;
    let started = blocking(move || Ok(state.admin.start()?)).await?;
    Ok((StatusCode::ACCEPTED, Json(started)).into_response())
}

/// `GET /admin/v1/realignments/{id}`.
pub(crate) async fn realignment(
    State(state): State<AppState>,
    Segment(id): Segment,
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
    Segment(id): Segment,
    request: Request,
) -> Answer<Cancelling> {
    body::nothing_of_operator(request, state.max_body_bytes).await?;
    blocking(move || Ok(Json(state.admin.cancel(&id)?))).await
}

/// `GET /admin/v1/realignments/{id}/events`: events from now on, until the realignment ends or the
/// server shuts down.
pub(crate) async fn events(
    State(state): State<AppState>,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let (opened, asked) = (state.clone(), id.clone());
    let events = blocking(move || {
        let found = opened.admin.events(&asked);
        found.ok_or_else(|| no_realignment(&asked))
    })
    .await?;
    let watched = Watched {
        closing: state.closing.subscribe(),
        state,
        id,
        events,
    };
    let sent = stream::unfold(Some(watched), |open| async move {
        let mut watched = open?;
        let event = watched.next().await?;
        let open = (!is_end(&event)).then_some(watched);
        Some((sse(&event), open))
    });
    let sent = Sse::new(sent).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok(sent.into_response())
}

/// A realignment whose events are sent.
struct Watched {
    state: AppState,
    id: String,
    events: BoxStream<'static, RealignmentEvent>,
    closing: watch::Receiver<bool>,
}

impl Watched {
    /// The next event; `None` if there will be none.
    async fn next(&mut self) -> Option<RealignmentEvent> {
        loop {
            tokio::select! {
                event = self.events.next() => return event,
                () = closed(&mut self.closing) => return None,
                // The event of the end may have been missed by a slow reader, or never come.
                () = tokio::time::sleep(LOOK) => {
                    let (state, id) = (self.state.clone(), self.id.clone());
                    let found = blocking(move || Ok(state.admin.realignment(&id))).await;
                    let realignment = found.ok().flatten()?;
                    if let Some(end) = end(&realignment) {
                        return Some(RealignmentEvent::Happened(Arc::new(end)));
                    }
                }
            }
        }
    }
}

/// Waits until the server shuts down.
async fn closed(closing: &mut watch::Receiver<bool>) {
    let _sender_dropped = closing.wait_for(|closing| *closing).await;
}

/// The event with which a realignment ended; `None` while it runs.
fn end(realignment: &Realignment) -> Option<telemetry::Event> {
    let seconds = realignment.finished_at.unwrap_or(realignment.updated_at);
    Some(telemetry::Event::RealignmentFinished {
        id: realignment.id.clone(),
        outcome: realignment.outcome?,
        trigger: None,
        generation: realignment.generation.clone(),
        detail: realignment.error.clone(),
        took: Duration::from_secs(seconds.saturating_sub(realignment.created_at)),
    })
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
    let body: ActivateRequest = body::of_operator(request, state.max_body_bytes).await?;
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
    let limit = state.max_body_bytes;
    let body: RollbackRequest = body::of_operator_or_empty(request, limit).await?;
    blocking(move || {
        let expected = body.expected_generation.as_deref();
        Ok(Json(state.admin.rollback(expected)?))
    })
    .await
}

/// `POST /admin/v1/generations/unpin`.
pub(crate) async fn unpin(State(state): State<AppState>, request: Request) -> Answer<Unpinned> {
    body::nothing_of_operator(request, state.max_body_bytes).await?;
    blocking(move || Ok(Json(state.admin.unpin()?))).await
}

/// `GET /admin/v1/generations/history`.
pub(crate) async fn history(State(state): State<AppState>) -> Answer<History> {
    blocking(move || Ok(Json(state.admin.history()?))).await
}

/// `POST /admin/v1/policies/clear`.
pub(crate) async fn clear_policies(
    State(state): State<AppState>,
    request: Request,
) -> Answer<Policies> {
    body::nothing_of_operator(request, state.max_body_bytes).await?;
    blocking(move || Ok(Json(state.admin.clear_policies()?))).await
}

/// What to remove.
#[derive(Default, Deserialize, JsonSchema)]
pub(crate) struct CollectRequest {
    /// Only say what would go.
    dry_run: Option<bool>,
    /// Also remove imported adapters that have not been used for this many days.
    imported_older_than_days: Option<u32>,
}

/// `POST /admin/v1/adapters/gc`, with or without a body: removes what exceeds `[retention]`.
pub(crate) async fn collect(State(state): State<AppState>, request: Request) -> Answer<Collected> {
    let limit = state.max_body_bytes;
    let body: CollectRequest = body::of_operator_or_empty(request, limit).await?;
    let options = CollectOptions {
        dry_run: body.dry_run.unwrap_or(false),
        max_imported_age_s: body.imported_older_than_days.map(days),
    };
    blocking(move || Ok(Json(state.admin.collect(options)?))).await
}

/// Days in seconds.
fn days(days: u32) -> u64 {
    u64::from(days) * 24 * 60 * 60
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
    let LogLevelRequest { filter } = body::of_operator(request, state.max_body_bytes).await?;
    state
        .logs
        .set_filter(&filter)
        .map_err(|error| ApiError::field("filter", error.to_string()))?;
    let filter = state.logs.filter();
    tracing::warn!(filter, "the log filter was changed by an operator");
    Ok(Json(LogLevel { filter }))
}
