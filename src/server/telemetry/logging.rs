//! Writes events as log lines. The data is in fields and the message is constant, so that logs can
//! be searched by message.

use tracing::{debug, error, info, warn};

use super::event::{Event, Outcome, RequestFinished};

/// Writes an event as one line, at the level an operator would expect.
pub(super) fn log(event: &Event) {
    match event {
        Event::PolicyReloaded { .. }
        | Event::PolicyReloadFailed { .. }
        | Event::SwapPublished { .. }
        | Event::SwapFailed { .. }
        | Event::GenerationRetired { .. } => log_activation(event),
        Event::RealignmentStarted { .. }
        | Event::StageEntered { .. }
        | Event::StageFinished { .. }
        | Event::Progress { .. }
        | Event::DataRead { .. }
        | Event::Triaged { .. }
        | Event::TrainLoss { .. }
        | Event::Gated { .. }
        | Event::RealignmentFinished { .. } => log_realignment(event),
        Event::RequestFinished(request) => log_request(request),
        Event::RequestRefused { reason } => debug!(%reason, "request refused"),
        Event::ConnectionEvicted { listener, reason } => {
            debug!(%listener, %reason, "connection ended: it waited for a request, and others need its place");
        }
        Event::SchemaViolated { choice, found } => {
            info!(choice, found, "an answer violates its JSON schema");
        }
        Event::ComplianceJudged(judged) => debug!(
            complies = judged.complies,
            violations = judged.violations.len(),
            lag_seconds = judged.lag.as_secs_f64(),
            "answer judged"
        ),
        Event::ViolationsFound(rules) => {
            debug!(violations = rules.len(), "answer judged without judges");
        }
        Event::Collected {
            removed,
            adapters_bytes,
        } => {
            let removed: Vec<_> = removed.iter().filter(|(_, count)| *count > 0).collect();
            if removed.is_empty() {
                debug!(adapters_bytes, "nothing exceeds [retention]");
            } else {
                info!(?removed, adapters_bytes, "removed what exceeds [retention]");
            }
        }
        Event::Examined(examined) => info!(
            role = examined.role.as_str(),
            generation = examined.generation,
            diverted = examined.diverted,
            took_seconds = examined.took_seconds,
            "exam sat"
        ),
        // Under load this would flood the log at a higher level; the metrics count these.
        Event::ComplianceDropped => debug!("answer not judged: the queue is full"),
        // Snapshots are frequent and available as metrics.
        Event::EngineStats(_)
        | Event::Leases(_)
        | Event::StoreSeen(_)
        | Event::FleetSeen(_)
        | Event::FleetAnswered(_)
        | Event::FleetJudged(_) => {}
    }
}

fn log_activation(event: &Event) {
    match event {
        Event::PolicyReloaded { revision, policies } => {
            info!(revision, policies = policies.len(), "policy set activated");
        }
        Event::PolicyReloadFailed { error } => {
            error!(error, "policy set refused; the last good one stays active");
        }
        Event::SwapPublished {
            from,
            to,
            policy_revision,
            took,
        } => info!(
            from,
            to,
            policy_revision = policy_revision.as_deref(),
            took_seconds = took.as_secs_f64(),
            "generation swapped"
        ),
        Event::SwapFailed { to, error } => {
            error!(
                to,
                error, "swap failed; the serving generation keeps serving"
            );
        }
        Event::GenerationRetired { generation } => info!(generation, "generation retired"),
        _ => {}
    }
}

fn log_realignment(event: &Event) {
    match event {
        Event::RealignmentStarted {
            id,
            policy_revision,
        } => {
            info!(id, policy_revision, "realignment started");
        }
        Event::StageEntered { id, stage } => info!(id, %stage, "stage entered"),
        Event::StageFinished { id, stage, took } => {
            info!(id, %stage, took_seconds = took.as_secs_f64(), "stage finished");
        }
        Event::Progress { id, stage, ratio } => debug!(id, %stage, ratio, "progress"),
        Event::DataRead {
            pairs,
            refused: 0,
            not_read: 0,
        } => debug!(pairs, "preference data read"),
        Event::DataRead {
            pairs,
            refused,
            not_read,
        } => warn!(
            pairs,
            refused,
            not_read,
            "preference data read, not all of it: `realign preferences check` says what is refused and why"
        ),
        Event::Triaged {
            id,
            invert,
            punish,
            retain,
        } => {
            info!(id, invert, punish, retain, "preference pairs triaged");
        }
        Event::TrainLoss {
            id,
            step,
            steps,
            parts,
        } => {
            debug!(id, step, steps, ?parts, "training step");
        }
        Event::Gated { id, measured } => info!(
            id,
            promoted = measured.promoted,
            agreement_current = measured.agreement_current,
            agreement_candidate = measured.agreement_candidate,
            reason = measured.reason,
            "gate decided"
        ),
        Event::RealignmentFinished {
            id,
            outcome,
            generation,
            detail,
            took,
            ..
        } => {
            let generation = generation.as_deref();
            let detail = detail.as_deref();
            let took_seconds = took.as_secs_f64();
            match outcome {
                Outcome::Failed => {
                    error!(id, %outcome, generation, detail, took_seconds, "realignment finished");
                }
                Outcome::Rejected => {
                    warn!(id, %outcome, generation, detail, took_seconds, "realignment finished");
                }
                Outcome::Succeeded
                | Outcome::Cancelled
                | Outcome::Superseded
                | Outcome::NoConflict => {
                    info!(id, %outcome, generation, detail, took_seconds, "realignment finished");
                }
            }
        }
        _ => {}
    }
}

fn log_request(request: &RequestFinished) {
    let route = request.route;
    let status = request.status;
    let duration_seconds = request.duration.as_secs_f64();
    let generation = request.generation.as_deref();
    let request_id = request.request_id.as_str();
    let key = request.caller.as_deref();
    if status >= 500 {
        warn!(
            request_id,
            key, route, status, duration_seconds, generation, "request failed"
        );
    } else {
        debug!(
            request_id,
            key,
            route,
            status,
            duration_seconds,
            generation,
            prompt_tokens = request.prompt_tokens,
            completion_tokens = request.completion_tokens,
            "request finished"
        );
    }
}
