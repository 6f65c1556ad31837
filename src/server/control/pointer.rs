//! The one writer of what serves: disk, memory and history change together, under one lock.
//!
//! The order is history, `CURRENT`, pin, memory. A failure before memory changes takes the earlier
//! steps back, so what is shown, what is stored and what answers are the same generation. What could
//! not be taken back is written again on a timer.

mod pins;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::state::{Act, Activation, Pin, StateDb, StateError};
use realign_core::clock::unix_seconds;
use realign_engine::adapter::generation::{Generation, GenerationId};
use realign_engine::adapter::{AdapterError, AdapterStore, Registry, SwapError, Swapped};

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
    /// The history or the pin could not be written.
    #[error("the activation could not be recorded: {0}")]
    State(#[from] StateError),
}

/// The file that names what a start serves.
pub(super) trait CurrentFile: Send + Sync {
    /// What it names; `None` before the first activation, when the base serves.
    fn current(&self) -> Result<Option<GenerationId>, AdapterError>;

    /// Makes it name a generation. `pinned`: an operator chose it, which servers that share it must know.
    fn point_to(&self, generation: &Arc<Generation>, pinned: bool) -> Result<(), AdapterError>;

    /// Makes it name what it named before, whose files may be gone; `None` if that cannot be done here.
    fn name_again(&self, _id: &GenerationId) -> Option<Result<(), AdapterError>> {
        None
    }

    /// Holds on to the right to write it, which another process could take if its place was removed.
    fn keep(&self) -> Result<(), AdapterError> {
        Ok(())
    }

    /// What it names is an operator's choice no more.
    fn unpin(&self, _serving: &Arc<Generation>) -> Result<(), AdapterError> {
        Ok(())
    }
}

impl CurrentFile for AdapterStore {
    fn current(&self) -> Result<Option<GenerationId>, AdapterError> {
        AdapterStore::current(self)
    }

    fn point_to(&self, generation: &Arc<Generation>, _pinned: bool) -> Result<(), AdapterError> {
        match generation.adapter {
            Some(_) => self.set_current(&generation.id),
            None => self.set_current_base(&generation.base_hash),
        }
    }

    fn name_again(&self, id: &GenerationId) -> Option<Result<(), AdapterError>> {
        Some(self.set_current_again(id))
    }

    fn keep(&self) -> Result<(), AdapterError> {
        self.keep_lock()
    }
}

/// What serves, in memory, on disk and in the history, and what an operator pinned.
pub(crate) struct Pointer {
    registry: Arc<Registry>,
    db: Arc<StateDb>,
    file: Arc<dyn CurrentFile>,
    /// Held by the one who changes what serves. It guards no data of its own: a holder that panicked left
    /// disk and memory as they were.
    only_writer: Mutex<()>,
    /// Has a lock of its own, so that readers do not wait for the disk.
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    /// What an operator pinned.
    pin: Option<Pin>,
    /// Whether what an earlier process pinned could be read.
    pin_read: bool,
    /// Why the generation that should serve does not.
    fallback: Option<String>,
    /// Why `CURRENT` does not name what serves.
    trouble: Option<String>,
    /// Activations that did not come about and could not be removed from the history.
    leftover: Vec<u64>,
}

impl Pointer {
    /// `fallback` says why what `file` names does not serve, if so.
    pub(super) fn new(
        registry: Arc<Registry>,
        db: Arc<StateDb>,
        file: Arc<dyn CurrentFile>,
        fallback: Option<String>,
    ) -> Self {
        let shown = Shown {
            fallback,
            ..Shown::default()
        };
        Self {
            registry,
            db,
            file,
            only_writer: Mutex::default(),
            shown: Mutex::new(shown),
        }
    }

    /// Why the generation that should serve does not, if so.
    pub(super) fn fallback(&self) -> Option<String> {
        self.shown().fallback.clone()
    }

    /// What serves is what should serve, unless an operator pinned what it stands in for.
    pub(super) fn end_fallback(&self) {
        if self.lost_pin().is_none() {
            self.shown().fallback = None;
        }
    }

    /// Makes a generation serve. An operator's act pins it.
    ///
    /// # Errors
    /// [`ChangeError`]; disk and memory are as they were.
    pub(super) fn change(&self, change: Change<'_>) -> Result<Swapped, ChangeError> {
        let _only_writer = self.write();
        let before = self.registry.lease_current();
        self.check(&change, &before.id)?;
        // What is not recorded would not outlive the process.
        self.db.check_place()?;
        self.mend_history(&before.id)?;
        let Change {
            to, act, reason, ..
        } = change;
        let row = Activation {
            seq: 0,
            at: unix_seconds(),
            act,
            reason: reason.into(),
            from: before.id.to_string(),
            to: to.id.to_string(),
        };
        let by_operator = matches!(act, Act::Activate | Act::Rollback);
        let pin = by_operator.then(|| Pin {
            generation: row.to.clone(),
            reason: row.reason.clone(),
            at: row.at,
        });
        let seq = (before.id != to.id)
            .then(|| self.db.add_activation(&row))
            .transpose()?;
        let named = self.file.current().ok().flatten();
        if let Err(error) = self.store(&to, pin.as_ref()) {
            self.take_back(seq, &to, (&before, named));
            return Err(error);
        }
        let mut shown = self.shown();
        shown.fallback = None;
        if pin.is_some() {
            shown.pin = pin;
            shown.pin_read = true;
        }
        drop(shown);
        Ok(self.registry.swap(to, None)?)
    }

    fn check(&self, change: &Change<'_>, serving: &GenerationId) -> Result<(), ChangeError> {
        if let Some(expected) = change.expected.filter(|e| *e != serving) {
            return Err(ChangeError::Conflict(SwapError::Conflict {
                expected: expected.clone(),
                actual: serving.clone(),
            }));
        }
        if change.act != Act::Realign {
            return Ok(());
        }
        // A pin that cannot be read is not overridden.
        self.read_pin(serving)?;
        match self.pinned() {
            Some(pin) if pin.generation != change.to.id.0 => Err(ChangeError::Pinned(pin)),
            _ => Ok(()),
        }
    }

    /// The pin comes last: a process that is killed before it never leaves a pin on what does not
    /// serve.
    fn store(&self, to: &Arc<Generation>, pin: Option<&Pin>) -> Result<(), ChangeError> {
        self.file
            .point_to(to, pin.is_some() || self.is_pinned(&to.id))?;
        match pin {
            Some(_) => Ok(self.db.set_pin(pin)?),
            None => Ok(()),
        }
    }

    /// `before`: what serves, and what `CURRENT` named.
    fn take_back(
        &self,
        seq: Option<u64>,
        to: &Arc<Generation>,
        (before, name): (&Arc<Generation>, Option<GenerationId>),
    ) {
        self.shown().leftover.extend(seq);
        log(self.remove_leftover());
        // The file may have been renamed before something failed.
        let named = self.file.current();
        let untouched = named.is_ok_and(|named| named.as_ref() != Some(&to.id));
        if untouched {
            return;
        }
        // What serves may stand in for what could not be loaded.
        let other = name.filter(|id| *id != before.id && self.fallback().is_some());
        let again = other.and_then(|id| self.file.name_again(&id));
        let again = again.unwrap_or_else(|| self.file.point_to(before, self.is_pinned(&before.id)));
        if let Err(error) = again {
            tracing::error!(%error, "CURRENT may name what does not serve; it is written again later");
        }
    }

    /// Writes `CURRENT` again as it should be.
    ///
    /// # Errors
    /// [`AdapterError`].
    pub(super) fn write_again(&self) -> Result<(), AdapterError> {
        let _only_writer = self.write();
        let serving = self.registry.lease_current();
        self.file.point_to(&serving, self.is_pinned(&serving.id))
    }

    /// Where `CURRENT`, the history or the stored pin say something else than memory, they are
    /// written again.
    pub(super) fn restore(&self) {
        let _only_writer = self.write();
        let serving = self.registry.lease_current();
        let trouble = match self.file.keep() {
            Ok(()) if self.fallback().is_none() => self.restore_file(&serving),
            Ok(()) => None,
            Err(error) => Some(format!("nothing can be published: {error}")),
        };
        self.show_trouble(trouble);
        log(self.mend_history(&serving.id));
        if log(self.read_pin(&serving.id)).is_some() {
            let shown = self.pinned();
            if log(self.db.pin()).is_some_and(|stored| stored != shown) {
                log(self.db.set_pin(shown.as_ref()));
            }
        }
    }

    /// The history ends with what serves: it names nothing that did not come about, and nothing is
    /// missing.
    fn mend_history(&self, serving: &GenerationId) -> Result<(), StateError> {
        self.remove_leftover()?;
        let newest = self.db.activations(1)?;
        self.record(serving, newest.first(), || {
            "the history did not name what serves".into()
        })
    }

    fn remove_leftover(&self) -> Result<(), StateError> {
        let leftover = self.shown().leftover.clone();
        for seq in leftover {
            self.db.remove_activation(seq)?;
            self.shown().leftover.retain(|left| *left != seq);
        }
        Ok(())
    }

    /// Makes `CURRENT` name what serves; says why that cannot be done.
    fn restore_file(&self, serving: &Arc<Generation>) -> Option<String> {
        let named = self.file.current();
        // Before the first activation there is no file, and the base serves.
        let agrees = match &named {
            Ok(Some(id)) => *id == serving.id,
            Ok(None) => serving.id == self.registry.base().id,
            Err(_) => false,
        };
        let id = &serving.id;
        if agrees {
            return None;
        }
        match self.file.point_to(serving, self.is_pinned(id)) {
            Ok(()) => {
                tracing::warn!(serving = %id, ?named, "CURRENT did not name what serves: written again");
                None
            }
            Err(error) => Some(format!(
                "CURRENT does not name {id}, which serves, and cannot be written: {error}"
            )),
        }
    }

    fn show_trouble(&self, trouble: Option<String>) {
        let mut shown = self.shown();
        // Said once, not on every tick.
        if let Some(trouble) = trouble.as_ref().filter(|_| trouble != shown.trouble) {
            tracing::error!("{trouble}");
        }
        shown.trouble = trouble;
    }

    /// Records what serves, unless the newest activation says so. Before the first one, the base serves.
    fn record(
        &self,
        serving: &GenerationId,
        newest: Option<&Activation>,
        why: impl FnOnce() -> String,
    ) -> Result<(), StateError> {
        let from = newest.map_or(&self.registry.base().id.0, |newest| &newest.to);
        if *from == serving.0 {
            return Ok(());
        }
        let row = Activation {
            seq: 0,
            at: unix_seconds(),
            act: Act::Recover,
            reason: why(),
            from: from.clone(),
            to: serving.to_string(),
        };
        self.db.add_activation(&row).map(drop)
    }

    /// Reads what an earlier process left: the pin, the generation before this one, and whether what
    /// serves is what it recorded. `load` reads a stored generation.
    pub(super) fn resume(&self, load: impl Fn(&GenerationId) -> Result<Generation, AdapterError>) {
        let _only_writer = self.write();
        let serving = self.registry.lease_current().id.clone();
        let history = log(self.db.activations(HISTORY)).unwrap_or_default();
        let last = history.first().filter(|last| last.to != serving.0);
        if let (Some(last), Ok(None)) = (last, self.file.current()) {
            // A volume that is not mounted looks like a first start.
            let why = format!(
                "there is no CURRENT in the adapter directory, and generation {} served before",
                last.to
            );
            tracing::error!("{why}: the base model serves");
            self.shown().fallback = Some(why);
        }
        log(self.record(&serving, history.first(), || {
            self.fallback()
                .unwrap_or_else(|| "CURRENT names it at the start".into())
        }));
        let before = history.iter().find(|row| row.to == serving.0);
        if let Some(before) = before {
            match load(&GenerationId(before.from.clone())) {
                Ok(generation) => self.registry.remember_previous(Arc::new(generation)),
                Err(error) => {
                    tracing::warn!(%error, "the generation that served before cannot be used");
                }
            }
        }
        log(self.read_pin(&serving));
    }

    /// Why the directory or `CURRENT` is not as it should be, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        self.shown().trouble.clone()
    }

    fn write(&self) -> MutexGuard<'_, ()> {
        self.only_writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What cannot be written now is written on the timer.
fn log<T>(result: Result<T, StateError>) -> Option<T> {
    result
        .inspect_err(|error| tracing::error!(%error, "the state database failed"))
        .ok()
}
