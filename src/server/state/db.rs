//! The connection, verdicts, scores and generations.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::{StateError, schema};

/// From this many keys on, a sweep over the rules' verdicts is faster than a search per key.
const SWEEP_FROM: usize = 1024;
/// Another process (a command beside a server) may hold the write lock this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the gate let a generation pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationStatus {
    /// It passed; a revert re-activates it.
    Promoted,
    /// It was refused; training it again would be refused again.
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

/// A generation that some inputs led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationRow {
    /// Generation id.
    pub id: String,
    /// Hash of base model, data, policy set, recipe and seed.
    pub inputs_hash: String,
    /// Revision of the policy set.
    pub policy_revision: String,
    /// Unix seconds.
    pub created_at: u64,
    /// The gate's verdict.
    pub status: GenerationStatus,
    /// Its directory.
    pub path: String,
}

/// The impact score of a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRow {
    /// Content id of the pair.
    pub pair_id: String,
    /// Inner product with the gold gradient, before clamping.
    pub raw: f64,
    /// Weight after clamping and normalising.
    pub weight: f64,
}

/// The half of a verdict's key that names the response.
fn tail(key: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&key[16..]);
    out
}

/// The state database. Shared between threads; calls are short and run one after another.
#[derive(Debug)]
pub struct StateDb {
    connection: Mutex<Connection>,
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
        Self::open_file(path).map_err(|error| match error {
            StateError::Sql(error) => match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => StateError::Corrupt {
                    path: path.into(),
                    reason: error.to_string(),
                },
                _ => StateError::Sql(error),
            },
            other => other,
        })
    }

    fn open_file(path: &Path) -> Result<Self, StateError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A row that says "promoted" must not outlive a power cut that loses the row before it.
        connection.pragma_update(None, "synchronous", "FULL")?;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(StateError::Corrupt {
                path: path.into(),
                reason: check,
            });
        }
        schema::migrate(&mut connection)?;
        Ok(Self {
            connection: Mutex::new(connection),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock is held drops its transaction, which rolls it back.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Stored verdicts by key, `None` where there is none. `true` is a violation.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub fn get_verdicts(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<bool>>, StateError> {
        if keys.len() >= SWEEP_FROM {
            return self.sweep_verdicts(keys);
        }
        let connection = self.lock();
        let mut query =
            connection.prepare_cached("SELECT violates FROM verdicts WHERE key = ?1")?;
        keys.iter()
            .map(|key| Ok(query.query_row([&key[..]], |row| row.get(0)).optional()?))
            .collect()
    }

    /// As [`StateDb::get_verdicts`], by reading all verdicts of each run of keys that begin alike
    /// (one rule's): one pass over neighbouring rows instead of a search for each.
    fn sweep_verdicts(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<bool>>, StateError> {
        let connection = self.lock();
        let mut query = connection
            .prepare_cached("SELECT key, violates FROM verdicts WHERE key BETWEEN ?1 AND ?2")?;
        let mut found = Vec::with_capacity(keys.len());
        for run in keys.chunk_by(|a, b| a[..16] == b[..16]) {
            let (mut low, mut high) = (run[0], run[0]);
            low[16..].fill(0);
            high[16..].fill(0xff);
            let mut wanted: HashMap<[u8; 16], Option<bool>> =
                run.iter().map(|key| (tail(key), None)).collect();
            let mut rows = query.query(params![&low[..], &high[..]])?;
            while let Some(row) = rows.next()? {
                let key = row.get_ref(0)?.as_blob().unwrap_or_default();
                if let Some(slot) = key.get(16..).and_then(|t| wanted.get_mut(t)) {
                    *slot = Some(row.get(1)?);
                }
            }
            found.extend(
                run.iter()
                    .map(|key| wanted.get(&tail(key)).copied().flatten()),
            );
        }
        Ok(found)
    }

    /// Stores verdicts, all or none.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub fn put_verdicts(&self, verdicts: &[([u8; 32], bool)]) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO verdicts (key, violates) VALUES (?1, ?2)",
            )?;
            for (key, violates) in verdicts {
                insert.execute(params![&key[..], violates])?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// The scores stored for some inputs, by pair id; empty if there are none.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub fn scores(&self, inputs_hash: &str) -> Result<Vec<ScoreRow>, StateError> {
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

    /// Replaces the scores of some inputs, all or none.
    ///
    /// # Errors
    /// [`StateError::Sql`], also for values that are not finite.
    pub fn put_scores(&self, inputs_hash: &str, scores: &[ScoreRow]) -> Result<(), StateError> {
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

    /// Records what some inputs led to, in place of what they led to before. Different inputs may
    /// lead to one generation: two policy sets without a conflict both lead to the base model.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub fn put_generation(&self, row: &GenerationRow) -> Result<(), StateError> {
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

    /// The generation that some inputs led to: what makes a revert instant.
    ///
    /// # Errors
    /// [`StateError::Sql`] or [`StateError::Row`].
    pub fn generation_by_inputs(
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
