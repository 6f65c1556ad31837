//! Who may open the database: a server alone, commands next to it.

use std::path::Path;
use std::time::Duration;

use super::{StateDb, StateError};
use realign_core::lock::{DirLock, Holder, LOCK_FILE, LockError, Place};

/// How long a command waits for another command that opens the database.
const MOMENT: Duration = Duration::from_secs(2);

/// What a server locks in a state directory before it opens it.
pub fn state_place(dir: &Path) -> Place<'_> {
    Place {
        dir,
        file: LOCK_FILE,
        advice: "stop that process first, or choose another directory with --state or paths.state",
    }
}

impl StateDb {
    /// Opens the database for a command. What commands store are results under the hash of what they
    /// depend on, which is safe next to a server. Next to one, the schema is left as it is: a command
    /// of another release must not change it under a running server.
    ///
    /// # Errors
    /// As [`StateDb::open`]; [`StateError::Older`] next to a server of an earlier release;
    /// [`StateError::Lock`] if the directory cannot be locked at all.
    pub fn open_for_command(path: &Path) -> Result<Self, StateError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let holder = Holder::this_process(None);
        let mut taken = DirLock::take(state_place(dir), &holder, Duration::ZERO);
        if let Err(LockError::Held { holder: other, .. }) = &taken
            && other.as_ref().is_none_or(|other| other.listen.is_none())
        {
            taken = DirLock::take(state_place(dir), &holder, MOMENT);
        }
        match taken {
            Ok(_for_a_moment) => Self::open(path),
            Err(LockError::Held { .. }) => Self::open_as_it_is(path),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_open_the_database_next_to_a_server_and_do_not_migrate_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("realign.db");
        let server = Holder::this_process(Some("127.0.0.1:1".into()));
        let take = || DirLock::take(state_place(dir.path()), &server, Duration::ZERO);
        let lock = take().unwrap();
        let served = StateDb::open(&path).unwrap();
        let command = StateDb::open_for_command(&path).unwrap();
        command.put_verdicts(&[([1; 32], true)]).unwrap();
        assert_eq!(served.get_verdicts(&[[1; 32]]).unwrap(), [Some(true)]);
        drop(command);
        served
            .lock()
            .pragma_update(None, "user_version", 1)
            .unwrap();
        let error = StateDb::open_for_command(&path).unwrap_err();
        assert!(
            matches!(error, StateError::Older { found: 1, .. }),
            "{error}"
        );
        served
            .lock()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        assert!(StateDb::open_for_command(&path).is_err());
        lock.release();
        let alone = dir.path().join("elsewhere/realign.db");
        StateDb::open_for_command(&alone).unwrap();
        assert!(take().is_ok(), "commands hold the lock for a moment only");
    }
}
