//! `GET /admin/v1/overview`: everything the operators' page shows, in one answer.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::answers::admin::{EngineLoad, Overview, ServerSummary, Serving, TrafficSummary};
use super::error::ApiError;
use super::{AppState, blocking};
use crate::telemetry::traffic::SLOT_SECONDS;
use realign_core::AlignmentState;
use realign_core::clock::unix_seconds;

/// Number of realignments listed.
const LISTED: usize = 12;
/// Default time span of the traffic, in seconds.
const DEFAULT_SECONDS: u64 = 3600;

/// The query's parameters.
#[derive(Debug, Deserialize)]
pub(crate) struct Span {
    /// How far back the traffic goes, in seconds.
    seconds: Option<u64>,
}

/// `GET /admin/v1/overview?seconds=3600`.
pub(crate) async fn overview(
    State(state): State<AppState>,
    span: Result<Query<Span>, QueryRejection>,
) -> Result<Json<Overview>, ApiError> {
    let Query(span) = span.map_err(|refused| ApiError::Body(refused.body_text()))?;
    blocking(move || {
        Ok(Json(collect(
            &state,
            span.seconds.unwrap_or(DEFAULT_SECONDS),
        )))
    })
    .await
}

fn collect(state: &AppState, seconds: u64) -> Overview {
    let now = unix_seconds();
    let admin = &state.admin;
    let mut listed = admin.realignments();
    listed.truncate(LISTED);
    // The newest one with its stages and loss curve.
    let newest = listed.first().and_then(|row| admin.realignment(&row.id));
    let stats = state.engine.stats();
    let serving = state.registry.lease_current();
    let metrics = state.telemetry.metrics();
    let alignment = admin.alignment();
    Overview {
        now,
        server: ServerSummary {
            version: env!("CARGO_PKG_VERSION"),
            model: state.model_name.to_string(),
            started_at: state.started_at,
            ready: state.ready.load(Ordering::Acquire),
            judges: state.compliance.is_some(),
        },
        serving: Serving {
            generation: serving.id.to_string(),
            policy_revision: serving.policy_revision.clone(),
            aligned: alignment.state == AlignmentState::Aligned,
            alignment,
            gap_open_seconds: metrics.gap_open_seconds(),
        },
        engine: EngineLoad {
            running: stats.running,
            waiting: stats.waiting,
            kv_cache_usage: stats.kv_cache_usage,
            requests: state.access.running(),
            connections: state.connections.load(Ordering::Relaxed),
        },
        policies: admin.policies(),
        realignment: newest,
        realignments: listed,
        generations: admin.generations(),
        candidate: state.registry.candidate().map(|shown| shown.id.to_string()),
        traffic: TrafficSummary {
            slot_seconds: SLOT_SECONDS,
            slots: state.telemetry.traffic().since(now.saturating_sub(seconds)),
        },
        violations: metrics.violations(),
    }
}
