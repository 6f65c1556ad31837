//! `GET /admin/v1/overview`: everything the operators' page shows, in one answer.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{AppState, blocking, unix_seconds};
use crate::telemetry::traffic::SLOT_SECONDS;

/// Realignments that are listed.
const LISTED: usize = 12;
/// Time that charts show unless asked otherwise, in seconds.
const SPAN_SECONDS: u64 = 3600;

/// The query's parameters.
#[derive(Debug, Deserialize)]
pub(crate) struct Span {
    /// How far back the traffic goes, in seconds.
    seconds: Option<u64>,
}

/// `GET /admin/v1/overview?seconds=3600`.
pub(crate) async fn overview(
    State(state): State<AppState>,
    Query(span): Query<Span>,
) -> Result<Json<Value>, ApiError> {
    blocking(move || Ok(Json(collect(&state, span.seconds.unwrap_or(SPAN_SECONDS))))).await
}

fn collect(state: &AppState, seconds: u64) -> Value {
    let now = unix_seconds();
    let admin = &state.admin;
    let mut realignments = admin.realignments();
    let mut listed = match realignments["realignments"].take() {
        Value::Array(all) => all,
        _ => Vec::new(),
    };
    listed.truncate(LISTED);
    // The newest in full: its stages and its loss curve.
    let newest = listed.first().and_then(|row| row["id"].as_str());
    let newest = newest.and_then(|id| admin.realignment(id));
    let stats = state.engine.stats();
    let serving = state.registry.lease_current();
    json!({
        "now": now,
        "server": {
            "version": env!("CARGO_PKG_VERSION"),
            "model": state.model_name,
            "started_at": state.started_at,
            "ready": state.ready.load(Ordering::Acquire),
            "judges": state.compliance.is_some(),
        },
        "serving": {
            "generation": serving.id,
            "policy_revision": serving.policy_revision,
            "aligned": admin.aligned(),
            "gap_open_seconds": state.telemetry.metrics().gap_open_seconds(),
        },
        "engine": {
            "running": stats.running,
            "waiting": stats.waiting,
            "kv_cache_usage": stats.kv_cache_usage,
        },
        "policies": admin.policies(),
        "realignment": newest,
        "realignments": listed,
        "generations": admin.generations(),
        "traffic": {
            "slot_seconds": SLOT_SECONDS,
            "slots": state.telemetry.traffic().since(now.saturating_sub(seconds)),
        },
        "violations": state.telemetry.metrics().violations(),
    })
}
