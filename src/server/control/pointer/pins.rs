//! What an operator pinned: no realignment replaces it, also where it cannot serve.

use super::{ChangeError, Pointer, log};
use crate::state::{Pin, StateError};
use realign_core::clock::unix_seconds;
use realign_engine::adapter::generation::GenerationId;

impl Pointer {
    /// What an operator pinned, if anything.
    pub(in crate::control) fn pinned(&self) -> Option<Pin> {
        self.shown().pin.clone()
    }

    /// Whether an operator pinned this generation.
    pub(super) fn is_pinned(&self, id: &GenerationId) -> bool {
        self.pinned().is_some_and(|pin| pin.generation == id.0)
    }

    /// Takes note of what another controller says about what serves: pinned or not.
    pub(in crate::control) fn agree_on_pin(&self, pinned: bool) {
        let _only_writer = self.write();
        let serving = self.registry.lease_current();
        // What cannot be read is replaced by what the store says.
        log(self.read_pin(&serving.id));
        let known = self.pinned().map(|pin| pin.generation);
        if known == pinned.then(|| serving.id.0.clone()) {
            return;
        }
        let pin = pinned.then(|| Pin {
            generation: serving.id.to_string(),
            reason: "an operator pinned it on another controller".into(),
            at: unix_seconds(),
        });
        log(self.db.set_pin(pin.as_ref()));
        let mut shown = self.shown();
        shown.pin = pin;
        shown.pin_read = true;
    }

    /// Reads what an earlier process pinned, unless that has been done.
    pub(super) fn read_pin(&self, serving: &GenerationId) -> Result<(), StateError> {
        if self.shown().pin_read {
            return Ok(());
        }
        let stored = self.db.pin()?;
        let serves = |pin: &Pin| pin.generation == serving.0;
        let (kept, dropped): (Option<Pin>, Option<Pin>) = match stored {
            // An operator chose it: what cannot be loaded now, or is not named any more, stays chosen.
            Some(pin) if serves(&pin) || !self.is_named(serving) => (Some(pin), None),
            // A process that was killed while it changed the pointer left it.
            other => (None, other),
        };
        if let Some(pin) = kept.as_ref().filter(|pin| !serves(pin)) {
            tracing::error!("{}", lost(pin));
        }
        if let Some(pin) = dropped {
            tracing::warn!(
                pinned = pin.generation,
                %serving,
                "what an operator pinned does not serve: it is pinned no more"
            );
            // What cannot be written is written on the timer.
            log(self.db.set_pin(None));
        }
        let mut shown = self.shown();
        shown.pin = kept;
        shown.pin_read = true;
        Ok(())
    }

    /// Whether `CURRENT` names what serves.
    fn is_named(&self, serving: &GenerationId) -> bool {
        let named = self.file.current();
        named.is_ok_and(|named| named.as_ref() == Some(serving))
    }

    /// What an operator pinned, in words, if it does not serve.
    pub(in crate::control) fn lost_pin(&self) -> Option<String> {
        let serving = self.registry.lease_current();
        let pin = self.pinned()?;
        (pin.generation != serving.id.0).then(|| lost(&pin))
    }

    /// Lets realignments replace what serves again; returns what was pinned.
    ///
    /// # Errors
    /// If that cannot be stored.
    pub(in crate::control) fn unpin(&self) -> Result<Option<Pin>, ChangeError> {
        let _only_writer = self.write();
        let serving = self.registry.lease_current();
        self.read_pin(&serving.id)?;
        if self.fallback().is_none() {
            // What stands in is not what others should serve.
            self.file.unpin(&serving)?;
        }
        self.db.set_pin(None)?;
        Ok(self.shown().pin.take())
    }

    /// Ends the pin of a generation that may not serve any more; returns whether it was pinned.
    pub(in crate::control) fn release(&self, broken: &GenerationId) -> bool {
        let _only_writer = self.write();
        let pinned = self.is_pinned(broken);
        if pinned {
            self.shown().pin = None;
            log(self.db.set_pin(None));
        }
        pinned
    }
}

/// An operator's choice that does not serve, and what to do.
fn lost(pin: &Pin) -> String {
    let generation = &pin.generation;
    format!(
        "generation {generation} is pinned by an operator and does not serve, and no realignment replaces \
         what serves in its place: put its files back and activate it or restart, or release it with \
         `realign adapters unpin`"
    )
}
