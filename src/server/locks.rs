//! The locks that a server holds for its life, on its state and adapter directories.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Paths;
use crate::state::state_place;
use realign_core::lock::{DirLock, Holder, LockError};
use realign_engine::adapter::AdapterStore;

/// How long a server waits for a command that holds a directory for a moment.
const MOMENT: Duration = Duration::from_secs(2);

/// Both locks, of this process alone.
#[derive(Debug)]
pub(crate) struct Locks {
    state: Arc<DirLock>,
    adapters: Arc<DirLock>,
}

impl Locks {
    /// Takes both, before anything in the directories is read or written.
    ///
    /// # Errors
    /// [`LockError`], which names the process that holds one.
    pub(crate) fn take(paths: &Paths) -> Result<Self, LockError> {
        let holder = Holder::this_process(None);
        let state = Arc::new(DirLock::take(state_place(&paths.state), &holder, MOMENT)?);
        let adapters = if is_same(&paths.state, &paths.adapters) {
            state.clone()
        } else {
            let place = AdapterStore::place(&paths.adapters);
            Arc::new(DirLock::take(place, &holder, MOMENT)?)
        };
        Ok(Self { state, adapters })
    }

    /// The lock of the adapter directory, for the store.
    pub(crate) fn adapters(&self) -> Arc<DirLock> {
        self.adapters.clone()
    }

    /// Writes the address into the lock files, for those who find the directories in use.
    pub(crate) fn listening(&self, address: &str) {
        let holder = Holder::this_process(Some(address.into()));
        self.state.describe(&holder);
        self.adapters.describe(&holder);
    }

    /// Releases both: nothing of this server writes any more.
    pub(crate) fn release(&self) {
        self.adapters.release();
        self.state.release();
    }
}

/// Whether two paths name one existing directory.
fn is_same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directories_are_locked_even_if_they_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let paths = |state: &str, adapters: &str| Paths {
            policies: "p".into(),
            preferences: "p".into(),
            max_preferences_bytes: 1,
            state: dir.path().join(state),
            adapters: dir.path().join(adapters),
        };
        let locks = Locks::take(&paths("s", "a")).unwrap();
        locks.listening("127.0.0.1:1");
        for (state, adapters, directory) in [("s", "b", "/s "), ("t", "a", "/a ")] {
            let error = Locks::take(&paths(state, adapters))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(&format!("{directory}is in use by")),
                "{error}"
            );
            assert!(error.contains("listening on 127.0.0.1:1"), "{error}");
        }
        locks.release();
        let again = Locks::take(&paths("s", "a")).unwrap();
        let both = Locks::take(&paths("one", "one")).unwrap();
        assert!(Arc::ptr_eq(&both.state, &both.adapters));
        drop(again);
    }
}
