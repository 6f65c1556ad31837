//! Who may change the adapter directory, and how generations leave it.
//!
//! Two locks. `LOCK` is the right to write `CURRENT` and to remove generations: a server holds it
//! for its life. `.publish` is the right to add, remove and clean up directories, for as long as
//! that takes: a generation is immutable, so a command may add one next to a server. Readers take
//! no lock and change nothing.

use std::fs;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{AdapterStore, CURRENT_FILE, STAGING_PREFIX};
use crate::adapter::AdapterError;
use crate::adapter::generation::GenerationId;
use realign_core::crash_point;
use realign_core::lock::{DirLock, Holder, LOCK_FILE, Place};
use realign_core::trash::{discard, sweep};

/// The file whose lock publishing takes.
const PUBLISH_FILE: &str = ".publish";
/// How long to wait for another process to finish writing a generation.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait for a command that holds the directory for a moment.
const MOMENT: Duration = Duration::from_secs(2);

impl AdapterStore {
    /// What a server locks in an adapter directory before it opens it.
    pub fn place(root: &std::path::Path) -> Place<'_> {
        Place {
            dir: root,
            file: LOCK_FILE,
            advice: "stop that process first, or choose another directory with --adapters or \
                     paths.adapters; with a running server, use its API \
                     (`realign adapters activate | rollback | gc`)",
        }
    }

    /// Opens a directory for the holder of its lock, creates it if needed, and removes what
    /// interrupted publications and removals left.
    ///
    /// # Errors
    /// [`AdapterError::Io`] or [`AdapterError::Lock`].
    pub fn open_locked(
        root: impl Into<std::path::PathBuf>,
        lock: Arc<DirLock>,
    ) -> Result<Self, AdapterError> {
        let store = Self {
            lock: Some(lock),
            ..Self::open(root)?
        };
        // Taking the right to publish cleans up as well.
        drop(store.publishing()?);
        // No other process writes `CURRENT` while the lock is held.
        for name in store.names()? {
            let is_temporary = name
                .trim_start_matches('.')
                .strip_prefix(CURRENT_FILE)
                .is_some_and(|rest| !rest.is_empty());
            if is_temporary {
                let path = store.root.join(name);
                fs::remove_file(&path).map_err(AdapterError::io(&path))?;
            }
        }
        Ok(store)
    }

    /// The right to add and remove generations. Whatever is staged while no other process has it was
    /// abandoned.
    pub(super) fn publishing(&self) -> Result<DirLock, AdapterError> {
        let place = Place {
            dir: &self.root,
            file: PUBLISH_FILE,
            advice: "it is writing or removing an adapter; retry when it is done",
        };
        self.keep_lock()?;
        let lock = DirLock::take(place, &Holder::this_process(None), PUBLISH_PATIENCE)?;
        sweep(&self.root, &[STAGING_PREFIX]);
        Ok(lock)
    }

    /// The right to write `CURRENT` and to remove generations: held already, or taken for a moment.
    pub(super) fn exclusive(&self) -> Result<Option<DirLock>, AdapterError> {
        if let Some(lock) = self.lock.as_ref().filter(|lock| lock.is_held()) {
            self.keep(lock)?;
            return Ok(None);
        }
        let holder = Holder::this_process(None);
        Ok(Some(DirLock::take(
            Self::place(&self.root),
            &holder,
            MOMENT,
        )?))
    }

    /// Takes the directory's lock again, and makes the directory, if it was removed under its holder.
    ///
    /// # Errors
    /// [`AdapterError::Lock`] if another process uses the directory now: nothing may be written there.
    pub fn keep_lock(&self) -> Result<(), AdapterError> {
        self.lock.as_ref().map_or(Ok(()), |lock| self.keep(lock))
    }

    fn keep(&self, lock: &DirLock) -> Result<(), AdapterError> {
        if lock.take_again()? {
            let directory = self.root.display();
            tracing::warn!(
                %directory,
                "the adapter directory's lock was removed under this server: taken again"
            );
        }
        Ok(())
    }

    /// Removes a generation unless `CURRENT` names it or `is_needed` says so, and returns whether it
    /// is gone. Both are looked at when no other part of this process can make it current.
    ///
    /// # Errors
    /// [`AdapterError`]; the generation is unchanged then.
    pub fn remove(
        &self,
        id: &GenerationId,
        is_needed: &dyn Fn(&GenerationId) -> bool,
    ) -> Result<bool, AdapterError> {
        let _publishing = self.publishing()?;
        let _exclusive = self.exclusive()?;
        let path = self.existing(id)?;
        {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            if self.current()?.as_ref() == Some(id) || is_needed(id) {
                return Ok(false);
            }
            discard(&self.root, &id.0).map_err(AdapterError::io(&path))?;
        }
        crash_point("collect:after-discard");
        sweep(&self.root, &[]);
        Ok(true)
    }

    /// Size of a generation's files, in bytes; 0 if they cannot be read.
    pub fn bytes(&self, id: &GenerationId) -> u64 {
        let entries = fs::read_dir(self.path(id)).into_iter().flatten().flatten();
        let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.len()));
        sizes.sum()
    }
}
