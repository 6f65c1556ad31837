//! Implements the operator API on top of the control loop.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use super::error::StartError;
use super::pointer::{Change, ChangeError};
use super::work::within;
use super::{Control, Event};
use crate::api::answers::Stored;
use crate::api::answers::admin::{
    AdapterSummary, Alignment, Cancelling, ExamAnswer, GenerationSummary, Generations, History,
    Policies, PolicySummary, Realignment, Role, RuleSummary, Started, Swap, Unpinned,
};
use crate::api::answers::reports::PairCounts;
use crate::api::answers::retention::Collected;
use crate::api::{AdminError, AdminPort, CollectOptions, NewName, RealignmentEvent};
use crate::state::{Act, RealignmentRow};
use crate::telemetry::{self, Outcome};
use realign_align::policy::{Policy, Rule};
use realign_core::AlignmentState;
use realign_engine::adapter::generation::{Generation, GenerationId};
use realign_engine::adapter::{AdapterError, Manifest, ResolveError};
use realign_engine::merged::PrepareError;

/// Maximum number of realignments in a listing.
const LISTED: usize = 100;
/// Maximum number of activations in the history's listing.
const SHOWN_ACTIVATIONS: usize = 1000;
/// How long an activation waits for the engine to have room for another generation.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(20);

impl Control {
    pub(super) fn loop_stopped() -> AdminError {
        AdminError::Failed(
            "the control loop has stopped: the server is shutting down, or must be restarted \
             (see GET /health)"
                .into(),
        )
    }

    /// Makes `to` the current generation, once the engine has room for it, and pins it. With
    /// `expected`, only if that one is current.
    fn activate_generation(
        &self,
        to: Arc<Generation>,
        (act, reason): (Act, &str),
        expected: Option<&GenerationId>,
    ) -> Result<Swap, AdminError> {
        let context = &self.context;
        context
            .engine
            .prepare(&to, &|waited| waited < PREPARE_TIMEOUT)
            .map_err(|error| match error {
                // The generation is at fault, and asking again does not change it.
                PrepareError::NotFinite { .. } | PrepareError::TakenOut { .. } => {
                    AdminError::Conflict(error.to_string())
                }
                other => AdminError::Failed(other.to_string()),
            })?;
        let change = Change {
            to,
            act,
            reason,
            expected,
        };
        let swapped = context
            .change_serving(change)
            .map_err(|error| match error {
                // The fleet is not as this request needs it, which another request may find changed.
                ChangeError::Conflict(_)
                | ChangeError::Pinned(_)
                | ChangeError::Store(AdapterError::Shared(_)) => {
                    AdminError::Conflict(error.to_string())
                }
                ChangeError::Store(_) | ChangeError::State(_) => {
                    AdminError::Failed(error.to_string())
                }
            })?;
        // A closed channel means that the loop is shutting down.
        let _closed = self.events.send(Event::ServingChanged);
        Ok(Swap {
            from: swapped.from.to_string(),
            to: swapped.to.to_string(),
        })
    }

    /// What a repeated rollback answers: it was done already. `None` if the last change was no
    /// rollback to what serves.
    fn rolled_back_already(
        &self,
        expected: Option<&GenerationId>,
    ) -> Option<Result<Swap, AdminError>> {
        let context = &self.context;
        let serving = context.registry.lease_current().id.clone();
        let last = context.log(context.db.activations(1))?.into_iter().next()?;
        if last.act != Act::Rollback || last.to != serving.0 {
            return None;
        }
        let (from, to) = (last.from, last.to);
        if expected.is_some_and(|expected| expected.0 == from) {
            return Some(Ok(Swap { from, to }));
        }
        Some(Err(AdminError::Conflict(format!(
            "generation {to} serves since a rollback from {from}; going back further or forward \
             again is an activation: POST /admin/v1/generations/activate names the generation"
        ))))
    }
}

impl AdminPort for Control {
    fn policies(&self) -> Policies {
        let active = self.context.active();
        let set = active.set;
        Policies {
            revision: set.revision().into(),
            gate: set.gate(),
            policies: set.policies().iter().map(|p| policy_summary(p)).collect(),
            last_error: self.context.refused(),
            trust: active.trust,
            dryrun: active.dryrun.map(Stored::from),
        }
    }

    fn policy_file(&self, policy: &str) -> Result<(String, String), AdminError> {
        let accepted = self.context.db.accepted_policies();
        let accepted = accepted.map_err(|error| AdminError::Failed(error.to_string()))?;
        let accepted = accepted.unwrap_or_default();
        match accepted.file_of(policy) {
            Some((name, text)) => Ok((name.to_owned(), text.to_owned())),
            None => Err(AdminError::NotFound(format!(
                "no accepted policy file has the id {policy:?}; `GET /admin/v1/policies` lists them"
            ))),
        }
    }

    fn realignments(&self) -> Vec<Realignment> {
        let rows = self.context.log(self.context.db.realignments(LISTED));
        rows.unwrap_or_default()
            .into_iter()
            .map(realignment)
            .collect()
    }

    fn realignment(&self, id: &str) -> Option<Realignment> {
        let row = self.context.log(self.context.db.realignment(id))??;
        Some(Realignment {
            timeline: Some(self.context.telemetry.timelines().get(id)),
            ..realignment(row)
        })
    }

    fn start(&self) -> Result<Started, AdminError> {
        let (reply, answer) = channel();
        self.events
            .send(Event::Start(reply))
            .map_err(|_| Control::loop_stopped())?;
        let id = self
            .answer(&answer)?
            .map_err(|error| AdminError::Conflict(error.to_string()))?;
        Ok(match self.realignment(&id) {
            Some(realignment) => Started::Whole(Box::new(realignment)),
            None => Started::Id { id },
        })
    }

    fn cancel(&self, id: &str) -> Result<Cancelling, AdminError> {
        if self.realignment(id).is_none() {
            return Err(AdminError::NotFound(format!(
                "no realignment `{id}`; GET /admin/v1/realignments lists them"
            )));
        }
        let (reply, answer) = channel();
        self.events
            .send(Event::Cancel(id.into(), reply))
            .map_err(|_| Control::loop_stopped())?;
        if self.answer(&answer)? {
            return Ok(Cancelling::new(id));
        }
        Err(AdminError::Conflict(format!(
            "realignment `{id}` is not running"
        )))
    }

    fn events(&self, id: &str) -> Option<BoxStream<'static, RealignmentEvent>> {
        // Subscribe before reading the row: the row is written before the final event is emitted,
        // so the end is seen in at least one of them.
        let events = self.context.telemetry.subscribe();
        let row = self.context.log(self.context.db.realignment(id))??;
        if let Some(end) = final_event(&row) {
            let end = RealignmentEvent::Happened(Arc::new(end));
            return Some(stream::once(async { end }).boxed());
        }
        let id = id.to_string();
        let events = BroadcastStream::new(events).filter_map(move |event| {
            std::future::ready(match event {
                Ok(event) => (event.realignment_id() == Some(id.as_str()))
                    .then_some(RealignmentEvent::Happened(event)),
                Err(BroadcastStreamRecvError::Lagged(missed)) => {
                    Some(RealignmentEvent::Lagged(missed))
                }
            })
        });
        Some(events.boxed())
    }

    fn generations(&self) -> Generations {
        let registry = &self.context.registry;
        let current = registry.lease_current();
        let previous = registry.previous();
        let role = |id: &GenerationId| {
            if *id == current.id {
                Role::Current
            } else if previous.as_ref().is_some_and(|p| p.id == *id) {
                Role::Previous
            } else {
                Role::Stored
            }
        };
        let base = registry.base();
        let mut generations = vec![GenerationSummary::Base {
            id: base.id.to_string(),
            role: role(&base.id),
            base: true,
        }];
        for listed in self.context.store.list().unwrap_or_default() {
            let id = listed.id.to_string();
            generations.push(match listed.manifest {
                Ok(manifest) => adapter_summary(id, role(&listed.id), manifest),
                Err(error) => GenerationSummary::Unreadable {
                    id,
                    role: Role::Unreadable,
                    base: false,
                    error: error.to_string(),
                },
            });
        }
        Generations {
            current: current.id.to_string(),
            previous: previous.as_ref().map(|p| p.id.to_string()),
            pinned: self.context.pinned().map(|pin| pin.generation),
            generations,
        }
    }

    fn activate(&self, generation: &str, expected: Option<&str>) -> Result<Swap, AdminError> {
        if self.context.follows() {
            return Err(AdminError::Conflict(
                "this server follows a store; activate the generation on the controller, and this \
                 server follows"
                    .into(),
            ));
        }
        let to = self
            .context
            .registry
            .resolve(Some(generation))
            .map_err(|error| match error {
                ResolveError::Unknown { .. } => AdminError::NotFound(error.to_string()),
                // It is damaged or for another model: nothing that the server did wrong.
                ResolveError::Load { .. } => AdminError::Conflict(error.to_string()),
                ResolveError::Withheld { .. } => AdminError::Conflict(error.to_string()),
            })?;
        let expected = expected.map(|e| GenerationId(e.into()));
        let why = (Act::Activate, "an operator activated it");
        self.activate_generation(to, why, expected.as_ref())
    }

    fn rollback(&self, expected: Option<&str>) -> Result<Swap, AdminError> {
        let expected = expected.map(|e| GenerationId(e.into()));
        if let Some(answer) = self.rolled_back_already(expected.as_ref()) {
            return answer;
        }
        let serving = self.context.registry.lease_current().id.clone();
        let previous = self.context.registry.previous();
        let to = previous.ok_or_else(|| {
            AdminError::Conflict("there is no previous generation to go back to".into())
        })?;
        // What is left is named, also for a caller who does not: of two at once, one rolls back.
        let leaving = expected.unwrap_or(serving);
        let why = (Act::Rollback, "an operator went back to it");
        self.activate_generation(to, why, Some(&leaving))
    }

    fn unpin(&self) -> Result<Unpinned, AdminError> {
        let pin = self
            .context
            .pointer
            .unpin()
            .map_err(|error| AdminError::Failed(error.to_string()))?;
        if pin.is_some() {
            // A closed channel means that the loop is shutting down.
            let _closed = self.events.send(Event::Unpinned);
        }
        Ok(Unpinned {
            released: pin.map(|pin| pin.generation),
        })
    }

    fn load_adapter(&self, new: NewName<'_>) -> Result<(), AdminError> {
        self.context.load_named(new)
    }

    fn unload_adapter(&self, name: &str, expected: Option<&str>) -> Result<(), AdminError> {
        self.context.unload_named(name, expected)
    }

    fn history(&self) -> Result<History, AdminError> {
        let activations = self.context.db.activations(SHOWN_ACTIVATIONS);
        let activations = activations.map_err(|error| AdminError::Failed(error.to_string()))?;
        Ok(History { activations })
    }

    fn clear_policies(&self) -> Result<Policies, AdminError> {
        let (reply, answer) = channel();
        self.events
            .send(Event::ClearPolicies(reply))
            .map_err(|_| Control::loop_stopped())?;
        answer
            .recv()
            .map_err(|_| Control::loop_stopped())?
            .map_err(|error| AdminError::Conflict(error.to_string()))?;
        Ok(self.policies())
    }

    fn collect(&self, options: CollectOptions) -> Result<Collected, AdminError> {
        let (reply, answer) = channel();
        self.events
            .send(Event::Collect(options, reply))
            .map_err(|_| Control::loop_stopped())?;
        answer
            .recv()
            .map_err(|_| Control::loop_stopped())?
            .map_err(|error| match error {
                StartError::Collect(error) => AdminError::Failed(error.to_string()),
                other => AdminError::Conflict(other.to_string()),
            })
    }

    fn alignment(&self) -> Alignment {
        self.context.alignment()
    }

    fn refuses_clients(&self) -> Option<String> {
        if !self.context.config.refuse_unaligned {
            return None;
        }
        let Alignment { state, reasons, .. } = self.alignment();
        (state != AlignmentState::Aligned).then(|| {
            let reasons = reasons.join("; ");
            format!(
                "what serves is not measured as aligned to the active policies ({}), and this server \
                 answers only when it is: {reasons}",
                state.as_str()
            )
        })
    }

    fn exam(&self) -> ExamAnswer {
        let serving = self.context.serving_report();
        let candidate = self.context.candidate_report();
        ExamAnswer {
            alignment: self.context.alignment(),
            examining: self.context.is_examining(),
            serving: serving.map(|report| (*report).clone()),
            candidate: candidate.map(|report| (*report).clone()),
        }
    }

    fn examine(&self) -> Result<ExamAnswer, AdminError> {
        let (reply, answer) = channel();
        self.events
            .send(Event::Examine(reply))
            .map_err(|_| Control::loop_stopped())?;
        self.answer(&answer)?
            .map_err(|error| AdminError::Conflict(error.to_string()))?;
        Ok(self.exam())
    }
}

fn policy_summary(policy: &Policy) -> PolicySummary {
    let rule = |rule: &Rule| RuleSummary {
        id: rule.id.clone(),
        severity: rule.severity,
        description: rule.description.clone(),
    };
    PolicySummary {
        id: policy.id.clone(),
        version: policy.version.clone(),
        description: policy.description.clone(),
        enforcement: policy.enforcement,
        rules: policy.rules.iter().map(rule).collect(),
    }
}

/// A row as the operator API shows it.
fn realignment(row: RealignmentRow) -> Realignment {
    Realignment {
        id: row.id,
        inputs_hash: row.inputs_hash,
        policy_revision: row.policy_revision,
        stage: row.stage,
        outcome: row.outcome,
        progress: row.progress,
        stage_progress: within(row.stage, row.progress),
        created_at: row.created_at,
        updated_at: row.updated_at,
        finished_at: row.finished_at,
        triage: row.triage.map(Stored::from),
        losses: row.losses.map(Stored::from),
        gate: row.gate.map(Stored::from),
        error: row.error,
        generation: row.generation,
        status: row.outcome.map_or("running", Outcome::as_str),
        timeline: None,
    }
}

/// The event with which a realignment ended; `None` while it runs.
fn final_event(row: &RealignmentRow) -> Option<telemetry::Event> {
    let seconds = row.finished_at.unwrap_or(row.updated_at);
    Some(telemetry::Event::RealignmentFinished {
        id: row.id.clone(),
        outcome: row.outcome?,
        trigger: None,
        generation: row.generation.clone(),
        detail: row.error.clone(),
        took: Duration::from_secs(seconds.saturating_sub(row.created_at)),
    })
}

fn adapter_summary(id: String, role: Role, manifest: Manifest) -> GenerationSummary {
    GenerationSummary::Adapter(Box::new(AdapterSummary {
        id,
        role,
        base: false,
        policy_revision: manifest.policy_revision,
        created_at: manifest.created_at,
        parent: manifest.parent.map(|parent| parent.to_string()),
        triage: PairCounts {
            invert: manifest.triage.invert,
            punish: manifest.triage.punish,
            retain: manifest.triage.retain,
        },
        gate: Stored::from(manifest.gate),
    }))
}
