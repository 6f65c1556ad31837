//! Errors of the state database.

use std::path::PathBuf;

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file is not an SQLite database, or is damaged.
    #[error(
        "{path}: not a usable state database ({reason}); stop the server, move the file and its \
         -wal and -shm neighbours aside and start again: published adapters are kept, verdicts and \
         scores are computed again",
        path = path.display()
    )]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// SQLite's reason.
        reason: String,
    },
    /// The operating system returned an error.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file cannot be opened or written.
    #[error(
        "{path}: the state database cannot be used: {reason}; it must be writable, on a disk with \
         room, and no other program may have it open",
        path = path.display()
    )]
    Unusable {
        /// The database file.
        path: PathBuf,
        /// SQLite's reason.
        reason: String,
    },
    /// The file that is open is not the one at its path any more.
    #[error(
        "{path} was removed or replaced while the server runs, so nothing can be recorded there: put it \
         back, or restart the server",
        path = path.display()
    )]
    Gone {
        /// The database file.
        path: PathBuf,
    },
    /// The write-ahead log of the file is missing.
    #[error(
        "{log} is missing, so the state database beside it lacks what was written last, such as what \
         serves and what an operator pinned: copy both files, or make copies with `realign.db` closed or \
         by `sqlite3 realign.db \".backup COPY\"`; to go on with the older state, create {log} as an \
         empty file",
        log = path.display()
    )]
    WithoutLog {
        /// The log.
        path: PathBuf,
    },
    /// A newer release wrote the file.
    #[error(
        "the state database has schema {found}, this release knows up to {known}; use the release \
         that wrote it, or another state directory"
    )]
    Newer {
        /// `user_version` of the file.
        found: i64,
        /// Newest schema known here.
        known: i64,
    },
    /// An earlier release wrote the file and its server still runs.
    #[error(
        "the state database has schema {found}, this release needs {known}, and a server of the \
         earlier release is running; stop it first, or use another state directory"
    )]
    Older {
        /// `user_version` of the file.
        found: i64,
        /// Newest schema known here.
        known: i64,
    },
    /// The state directory cannot be locked.
    #[error(transparent)]
    Lock(#[from] realign_core::lock::LockError),
    /// A statement failed.
    #[error("state database: {0}")]
    Sql(#[from] rusqlite::Error),
    /// A row is missing or holds a value that this release cannot read.
    #[error("state database: {0}")]
    Row(String),
}
