//! The one writer of what serves: disk, memory and history change together, under one lock.
//!
//! The order is history, `CURRENT`, pointer. A failure before the pointer takes the earlier steps
//! back, so what is shown, what is stored and what answers are the same generation.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::context::Context;
use crate::state::{Act, Activation, Pin, StateError};
use crate::telemetry::Event;
use realign_core::clock::unix_seconds;
use realign_engine::adapter::generation::{Generation, GenerationId};
use realign_engine::adapter::{AdapterError, SwapError, Swapped};

/// Activations that a start looks at.
const HISTORY: usize = 1000;

/// A change of what serves, and who wants it.
pub(crate) struct Change<'a> {
    pub(crate) to: Arc<Generation>,
    pub(crate) act: Act,
    /// Why, in a sentence.
    pub(crate) reason: &'a str,
    /// Only if this one serves.
    pub(crate) expected: Option<&'a GenerationId>,
}

/// Why a change did not happen. What served keeps serving.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// Another generation serves than expected.
    #[error(transparent)]
    Conflict(#[from] SwapError),
    /// An operator pinned another generation, and this is no operator's act.
    #[error(
        "an operator pinned generation {} ({}); `realign adapters unpin` lets realignments swap again",
        .0.generation, .0.reason
    )]
    Pinned(Pin),
    /// The pointer on disk could not be changed.
    #[error(transparent)]
    Store(#[from] AdapterError),
    /// The history could not be written.
    #[error("the activation could not be recorded: {0}")]
    State(#[from] StateError),
}

impl Context {
    /// Makes a generation serve that the engine has made room for. An operator's act pins it.
    ///
    /// # Errors
    /// [`ChangeError`]; disk and memory are as they were.
    pub(crate) fn change_serving(&self, change: Change<'_>) -> Result<Swapped, ChangeError> {
        let started = Instant::now();
        let to = change.to.clone();
        let swapped = self.change_locked(change);
        match swapped {
            Ok(swapped) => {
                self.engine.serve(&to.id);
                self.announce(&swapped, &to, started.elapsed());
                Ok(swapped)
            }
            Err(error) => {
                self.emit(Event::SwapFailed {
                    to: to.id.to_string(),
                    error: error.to_string(),
                });
                Err(error)
            }
        }
    }

    fn change_locked(&self, change: Change<'_>) -> Result<Swapped, ChangeError> {
        let _only_writer = self.pointer();
        let before = self.registry.lease_current();
        let serving = before.id.clone();
        let Change {
            to,
            act,
            reason,
            expected,
        } = change;
        if let Some(expected) = expected.filter(|e| **e != serving) {
            return Err(ChangeError::Conflict(SwapError::Conflict {
                expected: expected.clone(),
                actual: serving,
            }));
        }
        let by_operator = matches!(act, Act::Activate | Act::Rollback);
        if act == Act::Realign
            && let Some(pin) = self.pinned().filter(|pin| pin.generation != to.id.0)
        {
            return Err(ChangeError::Pinned(pin));
        }
        let row = Activation {
            seq: 0,
            at: unix_seconds(),
            act,
            reason: reason.into(),
            from: serving.to_string(),
            to: to.id.to_string(),
        };
        let seq = (serving != to.id)
            .then(|| self.db.add_activation(&row))
            .transpose()?;
        if let Err(error) = self.point_to(&to) {
            if let Some(seq) = seq {
                self.log(self.db.remove_activation(seq));
            }
            // The file may have been renamed before something failed.
            if let Err(error) = self.point_to(&before) {
                tracing::error!(%error, "CURRENT may name what does not serve; it is written again");
            }
            return Err(error.into());
        }
        self.end_fallback();
        if by_operator {
            self.set_pin(Some(Pin {
                generation: to.id.to_string(),
                reason: reason.into(),
                at: row.at,
            }));
        }
        Ok(self.registry.swap(to, expected)?)
    }

    fn point_to(&self, to: &Generation) -> Result<(), AdapterError> {
        match to.adapter {
            Some(_) => self.store.set_current(&to.id),
            None => self.store.set_current_base(&to.base_hash),
        }
    }

    /// Where `CURRENT` names something else than what serves, it is written again.
    pub(super) fn restore_pointer(&self) {
        let _only_writer = self.pointer();
        let serving = self.registry.lease_current();
        let named = self.store.current();
        // Before the first activation there is no file, and the base serves.
        let agrees = match &named {
            Ok(Some(id)) => *id == serving.id,
            Ok(None) => serving.adapter.is_none(),
            Err(_) => false,
        };
        if agrees || self.fallback().is_some() {
            return;
        }
        tracing::warn!(serving = %serving.id, ?named, "CURRENT does not name what serves: writing it again");
        if let Err(error) = self.point_to(&serving) {
            tracing::error!(%error, "CURRENT could not be written");
        }
    }

    /// Emits the events of a swap.
    fn announce(&self, swapped: &Swapped, to: &Generation, took: Duration) {
        self.emit(Event::SwapPublished {
            from: swapped.from.to_string(),
            to: swapped.to.to_string(),
            policy_revision: to.policy_revision.clone(),
            took,
        });
        self.measure_serving(&to.id);
        if let Some(retired) = &swapped.retired {
            self.emit(Event::GenerationRetired {
                generation: retired.to_string(),
            });
        }
    }

    pub(super) fn set_pin(&self, pin: Option<Pin>) {
        self.log(self.db.set_pin(pin.as_ref()));
        self.show_pin(pin);
    }

    /// Reads what an earlier process left: the pin, the generation before this one, and whether what
    /// serves is what it recorded.
    pub(super) fn resume_serving(&self) {
        let serving = self.registry.lease_current().id.clone();
        let history = self.log(self.db.activations(HISTORY)).unwrap_or_default();
        let last = history.first().map(|last| last.to.clone());
        let named = self.store.current();
        if let (Some(last), Ok(None)) = (last.filter(|last| *last != serving.0), named) {
            // A volume that is not mounted looks like a first start.
            self.begin_fallback(format!(
                "{}: there is no CURRENT, and generation {last} served before",
                self.store.root().display()
            ));
        }
        if let Some(last) = history.first().filter(|last| last.to != serving.0) {
            let row = Activation {
                seq: 0,
                at: unix_seconds(),
                act: Act::Recover,
                reason: self
                    .fallback()
                    .unwrap_or_else(|| "CURRENT names it at the start".into()),
                from: last.to.clone(),
                to: serving.to_string(),
            };
            self.log(self.db.add_activation(&row));
        }
        let before = history.iter().find(|row| row.to == serving.0);
        if let Some(before) = before {
            let id = GenerationId(before.from.clone());
            match self.load_generation(&id) {
                Ok(generation) => self.registry.remember_previous(Arc::new(generation)),
                Err(error) => {
                    tracing::warn!(%error, "the generation that served before cannot be used");
                }
            }
        }
        let pin = self.log(self.db.pin()).flatten();
        match pin {
            Some(pin) if pin.generation == serving.0 => self.show_pin(Some(pin)),
            Some(pin) => {
                tracing::warn!(
                    pinned = pin.generation,
                    %serving,
                    "what an operator pinned does not serve: it is pinned no more"
                );
                self.set_pin(None);
            }
            None => {}
        }
    }

    /// Lets realignments replace what serves again; returns what was pinned.
    ///
    /// # Errors
    /// If that cannot be stored.
    pub(super) fn unpin(&self) -> Result<Option<Pin>, StateError> {
        let _only_writer = self.pointer();
        self.db.set_pin(None)?;
        let pin = self.pinned();
        self.show_pin(None);
        Ok(pin)
    }

    fn pointer(&self) -> MutexGuard<'_, ()> {
        // It guards no data of its own: whoever panicked left disk and memory as they were.
        self.pointer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
