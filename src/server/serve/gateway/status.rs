//! What a gateway says of itself and of its targets.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use realign_fleet::{Durable, Release, TargetStatus, WHOLE, adapter_name};
use serde_json::{Value, json};

use super::{Gateway, lock};
use crate::api::ApiError;
use crate::telemetry::Event;
use crate::telemetry::event::FleetSnapshot;
use realign_core::supervision::Life;

/// `GET /health`: the process and its thread are alive.
pub(super) async fn health(State(gateway): State<Arc<Gateway>>) -> Result<Json<Value>, ApiError> {
    match gateway.runner.vital().life() {
        Life::Dead(_) | Life::Silent(_) => Err(ApiError::Unavailable(
            "the rollout's thread does not work any more; restart the gateway".into(),
        )),
        _ => Ok(Json(json!({ "status": "ok" }))),
    }
}

/// `GET /ready`: a target answers by what serves.
pub(super) async fn ready(State(gateway): State<Arc<Gateway>>) -> Result<Json<Value>, ApiError> {
    if !gateway.is_open() {
        return Err(ApiError::Unavailable("the gateway is shutting down".into()));
    }
    let view = gateway.desk.view();
    let Some(current) = view.current else {
        return Err(ApiError::Unavailable(format!(
            "nothing serves yet: {}",
            gateway.why_not()
        )));
    };
    let has = |seat: &&realign_fleet::Seat| seat.models.contains_key(&current.generation);
    let targets = view.seats.iter().filter(has).count();
    if targets == 0 {
        return Err(ApiError::Unavailable(format!(
            "no target answers by generation {}: {}",
            current.generation,
            gateway.why_not()
        )));
    }
    Ok(Json(json!({
        "status": "ready", "model": gateway.name, "generation": current.generation,
        "epoch": current.epoch, "targets": targets,
    })))
}

/// `GET /v1/models`.
pub(super) async fn models(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let _permit = gateway.access.enter(&headers)?;
    Ok(Json(json!({ "object": "list", "data": gateway.entries() })))
}

/// `GET /v1/models/{id}`.
pub(super) async fn model(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let _permit = gateway.access.enter(&headers)?;
    let entries = gateway.entries();
    let found = entries.into_iter().find(|entry| entry["id"] == id.as_str());
    found.map(Json).ok_or_else(|| ApiError::ModelNotFound {
        model: id.chars().take(128).collect(),
        allowed: "what GET /v1/models lists".into(),
    })
}

/// `GET /metrics`.
pub(super) async fn metrics(
    State(gateway): State<Arc<Gateway>>,
) -> ([(HeaderName, &'static str); 1], String) {
    let durable = gateway.runner.durable();
    let targets = gateway.runner.targets();
    let metrics = gateway.telemetry.metrics();
    metrics.record(&Event::FleetSeen(FleetSnapshot {
        stage: durable.rollout.as_ref().map(|r| r.stage.as_str()),
        targets: targets.into_iter().map(|t| (t.target.0, t.epoch)).collect(),
        share: durable.rollout.as_ref().map_or(0.0, |r| share(r.share)),
        evidence: gateway.runner.trial().map_or_else(Vec::new, |t| t.evidence),
        is_paused: durable.paused.is_some(),
        is_refused: durable.refused.is_some(),
        generations: gateway
            .desk
            .view()
            .known()
            .map(|r| r.generation.clone())
            .collect(),
    }));
    let vital = gateway.runner.vital();
    metrics.set_thread_panics(&[(vital.thread(), vital.panics())]);
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], metrics.render())
}

/// `GET /admin/v1/fleet`: what serves, the rollout, and every target.
pub(super) async fn fleet(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    gateway.access.check_operator(&headers)?;
    Ok(Json(gateway.describe()))
}

/// A share of the requests, from 0 to 1.
fn share(parts: u16) -> f64 {
    f64::from(parts) / f64::from(WHOLE)
}

/// Everything else.
pub(super) async fn not_found(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(128).collect();
    ApiError::NotFound(format!(
        "a gateway does not pass on {} {path}",
        request.method()
    ))
}

impl Gateway {
    /// What serves, the rollout, and every target.
    pub(super) fn describe(&self) -> Value {
        let Durable {
            current,
            previous,
            rollout,
            refused,
            paused,
            history,
            ..
        } = self.runner.durable();
        let target = |status: TargetStatus| {
            let outstanding = self.desk.outstanding(&status.target);
            let mut value = serde_json::to_value(&status).unwrap_or_default();
            value["outstanding"] = outstanding.into();
            value
        };
        let targets: Vec<Value> = self.runner.targets().into_iter().map(target).collect();
        let mut rolling = serde_json::to_value(&rollout).unwrap_or_default();
        if let Some(rollout) = &rollout {
            rolling["share"] = share(rollout.share).into();
        }
        json!({
            "model": self.name, "current": current, "previous": previous, "rollout": rolling,
            "canary": self.runner.trial(), "refused": refused, "paused": paused,
            "targets": targets, "problems": self.problems(), "history": history,
        })
    }

    fn entries(&self) -> Vec<Value> {
        let view = self.desk.view();
        let entry = |id: String, release: &Release| {
            json!({
                "id": id, "object": "model", "created": 0, "owned_by": "realign",
                "generation": release.generation, "epoch": release.epoch,
            })
        };
        let name = &*self.name;
        let current = view.current.iter().map(|c| entry(name.to_owned(), c));
        let pinned = view
            .known()
            .map(|r| entry(adapter_name(name, &r.generation), r));
        current.chain(pinned).collect()
    }

    /// What keeps this gateway from following what should serve.
    fn problems(&self) -> Vec<String> {
        let own = lock(&self.problems).clone();
        let all = [own.source, own.names, self.runner.problem()];
        all.into_iter().flatten().collect()
    }

    /// Why nothing answers.
    fn why_not(&self) -> String {
        let mut all = self.problems();
        let refused = self.runner.durable().refused;
        all.extend(refused.map(|r| format!("a rollout was given up: {}", r.why)));
        for status in self.runner.targets() {
            let doing = status.doing.map_or("waits", |doing| doing);
            let state = status
                .problem
                .unwrap_or_else(|| format!("it is prepared ({doing})"));
            all.push(format!("{}: {state}", status.target));
        }
        if all.is_empty() {
            return "no target is known yet".into();
        }
        all.join("; ")
    }
}
