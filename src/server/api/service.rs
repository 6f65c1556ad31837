//! Health probes and metrics.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, header};

use super::answers::client::{Health, Ready};
use super::error::ApiError;
use super::{AppState, not_ready};
use crate::telemetry::Event;
use crate::telemetry::event::EngineSnapshot;

/// `GET /health`: the process and all its threads are alive.
pub(crate) async fn health(State(state): State<AppState>) -> Result<Json<Health>, ApiError> {
    match state.health.failure() {
        None => Ok(Json(Health { status: "ok" })),
        Some(why) => Err(ApiError::Unavailable(why)),
    }
}

/// `GET /ready`: model and policies are loaded, the server takes requests, and something serves.
pub(crate) async fn ready(State(state): State<AppState>) -> Result<Json<Ready>, ApiError> {
    if !state.is_ready() {
        return Err(not_ready());
    }
    if let Some(why) = state.health.unready() {
        return Err(ApiError::Unavailable(why));
    }
    if let Some(reason) = state.registry.withheld() {
        return Err(ApiError::Unavailable(format!(
            "no generation serves: {reason}"
        )));
    }
    let generation = state.registry.lease_current();
    Ok(Json(Ready {
        status: "ready",
        model: state.model_name.to_string(),
        generation: generation.id.to_string(),
    }))
}

/// `GET /metrics`, in Prometheus' text format.
pub(crate) async fn metrics(
    State(state): State<AppState>,
) -> ([(HeaderName, &'static str); 1], String) {
    let stats = state.engine.stats();
    let metrics = state.telemetry.metrics();
    state.health.measure();
    metrics.record(&Event::EngineStats(EngineSnapshot {
        running: stats.running,
        waiting: stats.waiting,
        kv_cache_usage: stats.kv_cache_usage,
        prefix_queries: stats.prefix_queries,
        prefix_hits: stats.prefix_hits,
        preemptions: stats.preemptions,
        drafted: stats.drafted,
        accepted: stats.accepted,
        nonfinite: stats.nonfinite,
    }));
    metrics.set_thread_panics(&state.health.panics());
    metrics.record(&Event::Leases(state.registry.leases()));
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], metrics.render())
}
