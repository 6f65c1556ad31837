//! The operator's view of the control loop.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::context::Context;
use super::{Control, Event, show};
use crate::api::{AdminDoor, AdminError};
use crate::telemetry::{self, Outcome};
use realign_engine::adapter::generation::{Generation, GenerationId};
use realign_engine::adapter::{ResolveError, SwapError, Swapped};

/// Realignments that a listing shows.
const LISTED: usize = 100;
/// How long an operator's request waits for room in the engine, where each generation needs its own.
const ROOM: Duration = Duration::from_secs(20);
/// Events that a slow reader may fall behind.
const EVENT_BACKLOG: usize = 256;

impl Control {
    fn gone() -> AdminError {
        AdminError::Failed("the control loop has stopped: the server is shutting down".into())
    }

    /// Stores `CURRENT`, then the pointer.
    fn activate_generation(
        &self,
        to: Arc<Generation>,
        expected: Option<&GenerationId>,
    ) -> Result<Value, AdminError> {
        let started = Instant::now();
        let context = &self.context;
        let serving = context.registry.lease_current();
        if let Some(expected) = expected.filter(|e| **e != serving.id) {
            return Err(AdminError::Conflict(format!(
                "generation {} serves, not {expected}",
                serving.id
            )));
        }
        let ready = context.engine.prepare(&to, &|waited| waited < ROOM);
        ready.map_err(|e| AdminError::Failed(e.to_string()))?;
        let stored = match to.adapter {
            Some(_) => context.store.set_current(&to.id),
            None => context.store.set_current_base(&to.base_hash),
        };
        stored.map_err(|e| AdminError::Failed(e.to_string()))?;
        let swapped = context
            .registry
            .swap(to.clone(), expected)
            .map_err(|error| match error {
                SwapError::Conflict { .. } | SwapError::NoPrevious { .. } => {
                    AdminError::Conflict(error.to_string())
                }
            })?;
        context.engine.serve(&to.id);
        announce(context, &swapped, &to, started.elapsed());
        Ok(json!({ "from": swapped.from, "to": swapped.to }))
    }
}

/// Emits the events of a swap.
pub fn announce(context: &Context, swapped: &Swapped, to: &Generation, took: Duration) {
    context.emit(telemetry::Event::SwapPublished {
        from: swapped.from.to_string(),
        to: swapped.to.to_string(),
        policy_revision: to.policy_revision.clone(),
        took,
    });
    if let Some(retired) = &swapped.retired {
        context.emit(telemetry::Event::GenerationRetired {
            generation: retired.to_string(),
        });
    }
}

impl AdminDoor for Control {
    fn policies(&self) -> Value {
        let active = self.context.active();
        let set = active.set;
        let policies: Vec<Value> = set
            .policies()
            .iter()
            .map(|p| {
                let rules: Vec<Value> = p.rules.iter().map(|r| json!({ "id": r.id, "severity": r.severity, "description": r.description })).collect();
                json!({ "id": p.id, "version": p.version, "description": p.description, "enforcement": p.enforcement, "rules": rules })
            })
            .collect();
        json!({ "revision": set.revision(), "gate": set.gate(), "policies": policies, "last_error": self.context.refused(), "trust": active.trust, "dryrun": active.dryrun })
    }

    fn realignments(&self) -> Value {
        let rows = self
            .context
            .log(self.context.db.realignments(LISTED))
            .unwrap_or_default();
        json!({ "realignments": rows.iter().map(show).collect::<Vec<_>>() })
    }

    fn realignment(&self, id: &str) -> Option<Value> {
        let row = self.context.log(self.context.db.realignment(id))??;
        let mut shown = show(&row);
        let timeline = self.context.telemetry.timelines().get(id);
        shown["timeline"] = serde_json::to_value(timeline).unwrap_or_default();
        Some(shown)
    }

    fn start(&self) -> Result<Value, AdminError> {
        let (reply, answer) = channel();
        self.events
            .send(Event::Start(reply))
            .map_err(|_| Control::gone())?;
        let id = answer
            .recv()
            .map_err(|_| Control::gone())?
            .map_err(AdminError::Conflict)?;
        Ok(self.realignment(&id).unwrap_or_else(|| json!({ "id": id })))
    }

    fn cancel(&self, id: &str) -> Result<Value, AdminError> {
        if self.realignment(id).is_none() {
            return Err(AdminError::NotFound(format!(
                "no realignment `{id}`; GET /admin/v1/realignments lists them"
            )));
        }
        let (reply, answer) = channel();
        self.events
            .send(Event::Cancel(id.into(), reply))
            .map_err(|_| Control::gone())?;
        match answer.recv().map_err(|_| Control::gone())? {
            true => Ok(json!({ "id": id, "status": "cancelling" })),
            false => Err(AdminError::Conflict(format!(
                "realignment `{id}` is not running"
            ))),
        }
    }

    fn events(&self, id: &str) -> Option<broadcast::Receiver<Value>> {
        let mut events = self.context.telemetry.subscribe();
        self.realignment(id)?;
        let (sender, receiver) = broadcast::channel(EVENT_BACKLOG);
        let id = id.to_string();
        let forward = move || {
            loop {
                let event = match events.blocking_recv() {
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                let last = matches!(&*event, telemetry::Event::RealignmentFinished { .. });
                if event.realignment_id() == Some(id.as_str()) {
                    let value = serde_json::to_value(&*event).unwrap_or_default();
                    if sender.send(value).is_err() || last {
                        return;
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("events".into())
            .spawn(forward)
            .ok()?;
        Some(receiver)
    }

    fn generations(&self) -> Value {
        let context = &self.context;
        let current = context.registry.lease_current();
        let previous = context.registry.previous();
        let role = |id: &GenerationId| match id {
            id if *id == current.id => "current",
            id if previous.as_ref().is_some_and(|p| p.id == *id) => "previous",
            _ => "stored",
        };
        let base = context.registry.base();
        let mut all = vec![json!({ "id": base.id, "role": role(&base.id), "base": true })];
        for listed in context.store.list().unwrap_or_default() {
            all.push(match listed.manifest {
                Ok(m) => json!({
                    "id": listed.id, "role": role(&listed.id), "base": false, "policy_revision": m.policy_revision,
                    "created_at": m.created_at, "parent": m.parent, "triage": m.triage, "gate": m.gate,
                }),
                Err(error) => json!({ "id": listed.id, "role": "unreadable", "base": false, "error": error.to_string() }),
            });
        }
        json!({ "current": current.id, "previous": previous.map(|p| p.id.clone()), "generations": all })
    }

    fn activate(&self, generation: &str, expected: Option<&str>) -> Result<Value, AdminError> {
        let to = self
            .context
            .registry
            .resolve(Some(generation))
            .map_err(|error| match error {
                ResolveError::Unknown { .. } => AdminError::NotFound(error.to_string()),
                ResolveError::Load { .. } => AdminError::Failed(error.to_string()),
            })?;
        self.activate_generation(to, expected.map(|e| GenerationId(e.into())).as_ref())
    }

    fn rollback(&self) -> Result<Value, AdminError> {
        let previous = self.context.registry.previous();
        let to = previous.ok_or_else(|| {
            AdminError::Conflict("there is no previous generation to go back to".into())
        })?;
        self.activate_generation(to, None)
    }

    /// Without an enforced policy, or where no data contradicts one, the base model is what the
    /// policies ask for; otherwise it is a generation that was trained for exactly this set.
    fn aligned(&self) -> bool {
        let context = &self.context;
        let serving = context.registry.lease_current();
        let set = context.policies();
        let revision = set.revision();
        if serving.policy_revision.as_deref() == Some(revision) {
            return true;
        }
        if serving.adapter.is_some() {
            return false;
        }
        let enforced = set.policies().iter().any(|policy| policy.is_enforced());
        let no_conflict = || {
            let newest = context.log(context.db.realignments(1)).unwrap_or_default();
            newest.first().is_some_and(|row| {
                row.policy_revision == revision && row.outcome == Some(Outcome::NoConflict)
            })
        };
        !enforced || no_conflict()
    }
}
