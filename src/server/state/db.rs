//! The database connection, and the tables of verdicts, scores and generations.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::retention::record_use;
use super::wal::Wal;
use super::{StateError, schema};
use realign_core::clock::unix_seconds;

/// From this many keys, scanning the rules' verdicts is faster than one lookup per key.
const MIN_KEYS_FOR_SCAN: usize = 1024;
/// How long to wait for another process, such as a command run alongside a server, to release the
/// write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Prepared statements that are kept: more than there are.
const STATEMENTS: usize = 64;

/// Brings the schema up to date, or checks that it is.
type Prepare = fn(&mut Connection) -> Result<(), StateError>;

/// The gate's verdict on a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationStatus {
    /// It passed; reverting to its inputs re-activates it.
    Promoted,
    /// It was rejected; training it again would give the same result.
    Rejected,
}

impl GenerationStatus {
    fn as_str(self) -> &'static str {
        match self {
            GenerationStatus::Promoted => "promoted",
            GenerationStatus::Rejected => "rejected",
        }
    }
}

/// The generation that resulted from certain inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationRow {
    /// The generation's id.
    pub(crate) id: String,
    /// Hash of base model, data, policy set, recipe and seed.
    pub(crate) inputs_hash: String,
    /// Revision of the policy set.
    pub(crate) policy_revision: String,
    /// When it was recorded, in Unix seconds.
    pub(crate) created_at: u64,
    /// The gate's verdict.
    pub(crate) status: GenerationStatus,
    /// The adapter's directory.
    pub(crate) path: String,
}

/// The impact score of a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRow {
    /// Content id of the pair.
    pub(crate) pair_id: String,
    /// Inner product of the pair's gradient with the gold gradient, before clamping.
    pub(crate) raw: f64,
    /// Training weight after clamping and normalisation.
    pub(crate) weight: f64,
}

/// The half of a verdict's key that identifies the response.
fn response_key(key: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&key[16..]);
    out
}

/// The state database. It can be shared between threads; calls are short and serialised by a lock.
#[derive(Debug)]
pub struct StateDb {
    connection: Mutex<Connection>,
    /// Where the file is, and its number; `None` in memory.
    file: Option<(PathBuf, (u64, u64))>,
    /// Its log; `None` in memory.
    wal: Option<Wal>,
}

/// Device and number of a file; `None` if there is none.
fn file_number(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl StateDb {
    /// Opens or creates the file and its directory, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StateError::Corrupt`], [`StateError::Newer`], [`StateError::Io`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|source| StateError::Io {
                path: dir.into(),
                source,
            })?;
        }
        let db = Self::connect(path, schema::migrate)?;
        Wal::roll(&db.lock())?;
        Ok(db)
    }

    /// As [`StateDb::open`], but neither creates the file's directory nor changes its schema.
    pub(crate) fn open_as_it_is(path: &Path) -> Result<Self, StateError> {
        Self::connect(path, schema::require)
    }

    fn connect(path: &Path, prepare: Prepare) -> Result<Self, StateError> {
        Self::open_file(path, prepare).map_err(|error| match error {
            StateError::Sql(error) => match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => StateError::Corrupt {
                    path: path.into(),
                    reason: error.to_string(),
                },
                _ => StateError::Unusable {
                    path: path.into(),
                    reason: error.to_string(),
                },
            },
            other => other,
        })
    }

    /// Whether the open file is still the one at its path: what is written to a file that was removed
    /// is lost.
    ///
    /// # Errors
    /// [`StateError::Gone`] if it is not.
    pub(crate) fn check_place(&self) -> Result<(), StateError> {
        match &self.file {
            Some((path, number)) if file_number(path) != Some(*number) => {
                Err(StateError::Gone { path: path.clone() })
            }
            _ => Ok(()),
        }
    }

    /// A database in memory.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Result<Self, StateError> {
        let mut connection = Connection::open_in_memory()?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        schema::migrate(&mut connection)?;
        Ok(Self {
            connection: Mutex::new(connection),
            file: None,
            wal: None,
        })
    }

    /// Empties the database, which costs far less than migrating a new one. From now on,
    /// `may_commit` is asked before each commit and refuses it with `false`.
    #[cfg(test)]
    pub(crate) fn begin_anew(
        &self,
        mut may_commit: impl FnMut() -> bool + Send + 'static,
    ) -> Result<(), StateError> {
        let connection = self.lock();
        connection.commit_hook(None::<fn() -> bool>);
        // With its counters: `sqlite_sequence` is a table too.
        let mut query =
            connection.prepare_cached("SELECT name FROM sqlite_master WHERE type = 'table'")?;
        let tables = query.query_map([], |row| row.get(0))?;
        let tables = tables.collect::<Result<Vec<String>, _>>()?;
        let change = connection.unchecked_transaction()?;
        for table in tables {
            let mut delete = change.prepare_cached(&format!("DELETE FROM {table}"))?;
            delete.execute([])?;
        }
        change.commit()?;
        connection.commit_hook(Some(move || !may_commit()));
        Ok(())
    }

    fn open_file(path: &Path, prepare: Prepare) -> Result<Self, StateError> {
        let wal = Wal::beside(path);
        let had_log = wal.exists();
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "journal_mode", "WAL")?;
        Wal::take_over(&connection)?;
        // After a power cut, a "promoted" row must not survive if an earlier row was lost.
        connection.pragma_update(None, "synchronous", "FULL")?;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(StateError::Corrupt {
                path: path.into(),
                reason: check,
            });
        }
        prepare(&mut connection)?;
        if !had_log {
            wal.require(&connection)?;
        }
        Ok(Self {
            connection: Mutex::new(connection),
            file: file_number(path).map(|number| (path.to_owned(), number)),
            wal: Some(wal),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock is held drops the transaction, which rolls it back.
        let connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.wal.iter().for_each(|wal| wal.keep_small(&connection));
        connection
    }

    /// The stored verdict of each key (`true` is a violation), or `None` where there is none.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn get_verdicts(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<bool>>, StateError> {
        if keys.len() >= MIN_KEYS_FOR_SCAN {
            return self.scan_verdicts(keys);
        }
        let connection = self.lock();
        let mut query =
            connection.prepare_cached("SELECT violates, used_at FROM verdicts WHERE key = ?1")?;
        let mut used = Vec::new();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let row = query.query_row([&key[..]], |row| Ok((row.get(0)?, row.get(1)?)));
            let row = row.optional()?;
            used.extend(row.map(|(_, at)| (*key, at)));
            found.push(row.map(|(violates, _)| violates));
        }
        record_use(&connection, "verdicts", &used, unix_seconds());
        Ok(found)
    }

    /// As [`StateDb::get_verdicts`], but reads all verdicts of each run of keys with the same
    /// prefix (one rule) in one range scan instead of looking up each key.
    fn scan_verdicts(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<bool>>, StateError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT key, violates, used_at FROM verdicts WHERE key BETWEEN ?1 AND ?2",
        )?;
        let mut found = Vec::with_capacity(keys.len());
        let mut used = Vec::new();
        for run in keys.chunk_by(|a, b| a[..16] == b[..16]) {
            let (mut low, mut high) = (run[0], run[0]);
            low[16..].fill(0);
            high[16..].fill(0xff);
            let mut wanted: HashMap<[u8; 16], Option<bool>> =
                run.iter().map(|key| (response_key(key), None)).collect();
            let mut rows = query.query(params![&low[..], &high[..]])?;
            while let Some(row) = rows.next()? {
                let key: [u8; 32] = row.get(0)?;
                if let Some(slot) = wanted.get_mut(&key[16..]) {
                    *slot = Some(row.get(1)?);
                    used.push((key, row.get(2)?));
                }
            }
            found.extend(
                run.iter()
                    .map(|key| wanted.get(&response_key(key)).copied().flatten()),
            );
        }
        record_use(&connection, "verdicts", &used, unix_seconds());
        Ok(found)
    }

    /// Stores verdicts in one transaction.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn put_verdicts(&self, verdicts: &[([u8; 32], bool)]) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO verdicts (key, violates, used_at) VALUES (?1, ?2, ?3)",
            )?;
            let now = unix_seconds();
            for (key, violates) in verdicts {
                insert.execute(params![&key[..], violates, now])?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// The scores stored for certain inputs, ordered by pair id; empty if there are none.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn scores(&self, inputs_hash: &str) -> Result<Vec<ScoreRow>, StateError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT pair_id, raw, weight FROM scores WHERE inputs_hash = ?1 ORDER BY pair_id",
        )?;
        let rows = query.query_map([inputs_hash], |row| {
            Ok(ScoreRow {
                pair_id: row.get(0)?,
                raw: row.get(1)?,
                weight: row.get(2)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Replaces the scores of certain inputs in one transaction.
    ///
    /// # Errors
    /// [`StateError::Sql`], also for values that are not finite.
    pub(crate) fn put_scores(
        &self,
        inputs_hash: &str,
        scores: &[ScoreRow],
    ) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        transaction.execute("DELETE FROM scores WHERE inputs_hash = ?1", [inputs_hash])?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO scores VALUES (?1, ?2, ?3, ?4)")?;
            for score in scores {
                insert.execute(params![inputs_hash, score.pair_id, score.raw, score.weight])?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Records the generation that resulted from certain inputs, replacing an earlier record.
    /// Different inputs may result in the same generation: two policy sets without conflicts both
    /// result in the base model.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn put_generation(&self, row: &GenerationRow) -> Result<(), StateError> {
        self.lock().execute(
            "INSERT OR REPLACE INTO generations
             (id, inputs_hash, policy_revision, created_at, status, path)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                row.id,
                row.inputs_hash,
                row.policy_revision,
                row.created_at,
                row.status.as_str(),
                row.path
            ],
        )?;
        Ok(())
    }

    /// The generation that resulted from certain inputs, if any. It makes reverting a policy set
    /// instant.
    ///
    /// # Errors
    /// [`StateError::Sql`] or [`StateError::Row`].
    pub(crate) fn generation_by_inputs(
        &self,
        inputs_hash: &str,
    ) -> Result<Option<GenerationRow>, StateError> {
        let row = self.lock().query_row(
            "SELECT id, inputs_hash, policy_revision, created_at, status, path
             FROM generations WHERE inputs_hash = ?1",
            [inputs_hash],
            |row| {
                let status: String = row.get(4)?;
                let row = GenerationRow {
                    id: row.get(0)?,
                    inputs_hash: row.get(1)?,
                    policy_revision: row.get(2)?,
                    created_at: row.get(3)?,
                    status: GenerationStatus::Rejected,
                    path: row.get(5)?,
                };
                Ok((row, status))
            },
        );
        let Some((row, status)) = row.optional()? else {
            return Ok(None);
        };
        let status = match status.as_str() {
            "promoted" => GenerationStatus::Promoted,
            "rejected" => GenerationStatus::Rejected,
            other => {
                let id = &row.id;
                return Err(StateError::Row(format!(
                    "generation {id} has status {other:?}"
                )));
            }
        };
        Ok(Some(GenerationRow { status, ..row }))
    }
}
