//! Whether the database has its write-ahead log, which holds what was written last.
//!
//! A copy of `realign.db` without `realign.db-wal` is a whole database too: an older one. So the file
//! itself says when a log belongs to it. `expected` is raised and brought into the file itself, then
//! `seen` is raised in the log alone. With its log, closed in order, or copied by SQLite's own backup,
//! a database shows both alike.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::{Connection, OptionalExtension};

use super::StateError;

/// Size from which the log is brought into the file.
const LARGE: u64 = 4 << 20;
/// What is left of a log that was brought into the file, in bytes.
const KEPT: i64 = 1 << 20;
/// Uses of the database between two looks at the log's size.
const USES: u32 = 256;

/// The log of an open database.
#[derive(Debug)]
pub(super) struct Wal {
    path: PathBuf,
    uses: AtomicU32,
}

impl Wal {
    /// Where the log of a database is.
    pub(super) fn beside(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        Self {
            path: path.into(),
            uses: AtomicU32::new(0),
        }
    }

    /// Whether there is a log; asked before the database is opened, which makes one.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Leaves bringing the log into the file to [`Wal::roll`].
    pub(super) fn take_over(connection: &Connection) -> rusqlite::Result<()> {
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update(None, "journal_size_limit", KEPT)
    }

    /// Fails if the database was written with a log that is not there.
    ///
    /// # Errors
    /// [`StateError::WithoutLog`].
    pub(super) fn require(&self, connection: &Connection) -> Result<(), StateError> {
        let sql = "SELECT expected = seen FROM log_marks";
        let whole: Option<bool> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
        match whole {
            Some(false) => Err(StateError::WithoutLog {
                path: self.path.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Brings the log into the file, which says from then on that another one belongs to it.
    pub(super) fn roll(connection: &Connection) -> rusqlite::Result<()> {
        connection.execute(
            "INSERT INTO log_marks (only, expected, seen) VALUES (1, 1, 0)
             ON CONFLICT (only) DO UPDATE SET expected = expected + 1",
            [],
        )?;
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        connection.execute("UPDATE log_marks SET seen = expected", [])?;
        Ok(())
    }

    /// Rolls a log that has grown large. What fails is done later.
    pub(super) fn keep_small(&self, connection: &Connection) {
        let uses = self.uses.fetch_add(1, Ordering::Relaxed);
        let large = |log: std::fs::Metadata| log.len() > LARGE;
        if uses % USES != USES - 1 || !std::fs::metadata(&self.path).is_ok_and(large) {
            return;
        }
        if let Err(error) = Self::roll(connection) {
            tracing::warn!(%error, "the log of the state database was not brought into its file");
        }
    }
}
