//! The database schema, as a list of migrations.

use rusqlite::{Connection, TransactionBehavior};

use super::StateError;

/// Each migration runs once, in order; `user_version` counts the migrations applied to a file.
/// Released migrations are never edited; new ones are appended.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE realignments (
        id              TEXT PRIMARY KEY,
        inputs_hash     TEXT NOT NULL,
        policy_revision TEXT NOT NULL,
        stage           TEXT NOT NULL,
        status          TEXT NOT NULL,
        progress        REAL NOT NULL DEFAULT 0,
        created_at      INTEGER NOT NULL,
        updated_at      INTEGER NOT NULL,
        finished_at     INTEGER,
        triage          TEXT,
        losses          TEXT,
        gate            TEXT,
        error           TEXT,
        generation      TEXT
    ) STRICT;
    CREATE INDEX realignments_by_status ON realignments (status, created_at);

    CREATE TABLE verdicts (
        key      BLOB PRIMARY KEY CHECK (length(key) = 32),
        violates INTEGER NOT NULL CHECK (violates IN (0, 1))
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE scores (
        inputs_hash TEXT NOT NULL,
        pair_id     TEXT NOT NULL,
        raw         REAL NOT NULL,
        weight      REAL NOT NULL,
        PRIMARY KEY (inputs_hash, pair_id)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE checkpoints (
        inputs_hash TEXT NOT NULL,
        step        INTEGER NOT NULL,
        path        TEXT NOT NULL,
        PRIMARY KEY (inputs_hash, step)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE generations (
        inputs_hash     TEXT PRIMARY KEY,
        id              TEXT NOT NULL,
        policy_revision TEXT NOT NULL,
        created_at      INTEGER NOT NULL,
        status          TEXT NOT NULL,
        path            TEXT NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE judge_scores (
        key         BLOB PRIMARY KEY CHECK (length(key) = 32),
        probability REAL NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE corrective_responses (
        key      BLOB PRIMARY KEY CHECK (length(key) = 32),
        response TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    // Checkpoints are stored as files.
    "DROP TABLE checkpoints;",
    // Answers and likelihoods of exams.
    "
    CREATE TABLE exam_cache (
        key   BLOB PRIMARY KEY CHECK (length(key) = 32),
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    // What served and who decided it, and the policy sets that were accepted.
    "
    CREATE TABLE activations (
        seq    INTEGER PRIMARY KEY AUTOINCREMENT,
        at     INTEGER NOT NULL,
        act    TEXT NOT NULL,
        reason TEXT NOT NULL,
        origin TEXT NOT NULL,
        target TEXT NOT NULL
    ) STRICT;

    CREATE TABLE pins (
        only       INTEGER PRIMARY KEY CHECK (only = 1),
        generation TEXT NOT NULL,
        reason     TEXT NOT NULL,
        at         INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE policy_sets (
        seq      INTEGER PRIMARY KEY AUTOINCREMENT,
        at       INTEGER NOT NULL,
        revision TEXT NOT NULL,
        files    TEXT NOT NULL
    ) STRICT;
",
    // Deaths of the process while it ran a realignment.
    "
    CREATE TABLE attempts (
        inputs_hash TEXT PRIMARY KEY,
        open        INTEGER NOT NULL CHECK (open IN (0, 1)),
        stage       TEXT NOT NULL,
        deaths      INTEGER NOT NULL,
        progress    REAL NOT NULL,
        room        TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    // When cached results were last used, in Unix seconds, recorded once a day.
    "
    ALTER TABLE verdicts ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE exam_cache ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE judge_scores ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE corrective_responses ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
    UPDATE verdicts SET used_at = unixepoch();
    UPDATE exam_cache SET used_at = unixepoch();
    UPDATE judge_scores SET used_at = unixepoch();
    UPDATE corrective_responses SET used_at = unixepoch();
",
    // Whether a write-ahead log belongs to the file.
    "
    CREATE TABLE log_marks (
        only     INTEGER PRIMARY KEY CHECK (only = 1),
        expected INTEGER NOT NULL,
        seen     INTEGER NOT NULL
    ) STRICT;
",
];

/// Fails unless a database has the newest schema.
pub(super) fn require(connection: &mut Connection) -> Result<(), StateError> {
    let known = MIGRATIONS.len() as i64;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match found.cmp(&known) {
        std::cmp::Ordering::Less => Err(StateError::Older { found, known }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(StateError::Newer { found, known }),
    }
}

/// Migrates a database to the newest schema.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StateError> {
    let known = MIGRATIONS.len() as i64;
    // Immediate, so that if two processes open a new file, the second waits for the first.
    let migration = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = migration.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    let Some(steps) = MIGRATIONS.get(done..) else {
        return Err(StateError::Newer {
            found: version,
            known,
        });
    };
    for step in steps {
        migration.execute_batch(step)?;
    }
    migration.pragma_update(None, "user_version", known)?;
    migration.commit()?;
    Ok(())
}
