//! Realignments: what runs, what ran, what was interrupted.

use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::Value;

use super::{StateDb, StateError};
use crate::telemetry::{Outcome, Stage};

/// A realignment as stored. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RealignmentRow {
    /// Its id.
    pub id: String,
    /// Hash of base model, data, policy set, recipe and seed.
    pub inputs_hash: String,
    /// Revision of the policy set.
    pub policy_revision: String,
    /// The stage it is in, or ended in.
    pub stage: Stage,
    /// How it ended; `None` while it runs (or was interrupted).
    pub outcome: Option<Outcome>,
    /// Done share, 0 to 1.
    pub progress: f64,
    /// When it began.
    pub created_at: u64,
    /// When anything changed last.
    pub updated_at: u64,
    /// When it ended.
    pub finished_at: Option<u64>,
    /// Triage counts.
    pub triage: Option<Value>,
    /// Losses so far.
    pub losses: Option<Value>,
    /// The gate's report.
    pub gate: Option<Value>,
    /// What went wrong.
    pub error: Option<String>,
    /// The generation it led to.
    pub generation: Option<String>,
}

/// A report stored with a realignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Triage counts.
    Triage,
    /// Training losses.
    Losses,
    /// The gate's measurements and verdict.
    Gate,
}

const RUNNING: &str = "running";
const COLUMNS: &str = "id, inputs_hash, policy_revision, stage, status, progress, created_at, \
                       updated_at, finished_at, triage, losses, gate, error, generation";

impl StateDb {
    /// Records that a realignment begins, in stage triage.
    ///
    /// # Errors
    /// [`StateError::Sql`], also if the id is taken.
    pub fn begin_realignment(
        &self,
        id: &str,
        inputs_hash: &str,
        policy_revision: &str,
        now: u64,
    ) -> Result<(), StateError> {
        self.lock().execute(
            "INSERT INTO realignments
             (id, inputs_hash, policy_revision, stage, status, created_at, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
            params![
                id,
                inputs_hash,
                policy_revision,
                Stage::Triage.as_str(),
                RUNNING,
                now
            ],
        )?;
        Ok(())
    }

    /// Records how far a running realignment is.
    ///
    /// # Errors
    /// [`StateError::Row`] if no such realignment runs.
    pub fn advance_realignment(
        &self,
        id: &str,
        stage: Stage,
        progress: f64,
        now: u64,
    ) -> Result<(), StateError> {
        let changed = self.lock().execute(
            "UPDATE realignments SET stage = ?2, progress = ?3, updated_at = ?4
             WHERE id = ?1 AND status = 'running'",
            params![id, stage.as_str(), progress, now],
        )?;
        require(changed, id)
    }

    /// Stores a report with a realignment, in place of an earlier one of its kind.
    ///
    /// # Errors
    /// [`StateError::Row`] if there is no such realignment.
    pub fn put_report(&self, id: &str, report: Report, value: &Value) -> Result<(), StateError> {
        let statement = match report {
            Report::Triage => "UPDATE realignments SET triage = ?2 WHERE id = ?1",
            Report::Losses => "UPDATE realignments SET losses = ?2 WHERE id = ?1",
            Report::Gate => "UPDATE realignments SET gate = ?2 WHERE id = ?1",
        };
        let changed = self
            .lock()
            .execute(statement, params![id, value.to_string()])?;
        require(changed, id)
    }

    /// Records how a running realignment ended: what went wrong, or the generation it led to.
    ///
    /// # Errors
    /// [`StateError::Row`] if no such realignment runs.
    pub fn finish_realignment(
        &self,
        id: &str,
        outcome: Outcome,
        result: (Option<&str>, Option<&str>),
        now: u64,
    ) -> Result<(), StateError> {
        let (generation, error) = result;
        let changed = self.lock().execute(
            "UPDATE realignments SET status = ?2, generation = ?3, error = ?4,
             updated_at = ?5, finished_at = ?5 WHERE id = ?1 AND status = 'running'",
            params![id, outcome.as_str(), generation, error, now],
        )?;
        require(changed, id)
    }

    /// One realignment.
    ///
    /// # Errors
    /// [`StateError::Sql`] or [`StateError::Row`].
    pub fn realignment(&self, id: &str) -> Result<Option<RealignmentRow>, StateError> {
        let sql = format!("SELECT {COLUMNS} FROM realignments WHERE id = ?1");
        Ok(self.lock().query_row(&sql, [id], read_row).optional()?)
    }

    /// How many realignments have begun so far.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub fn count_realignments(&self) -> Result<u64, StateError> {
        let sql = "SELECT count(*) FROM realignments";
        Ok(self.lock().query_row(sql, [], |row| row.get(0))?)
    }

    /// The newest realignments, newest first.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub fn realignments(&self, limit: usize) -> Result<Vec<RealignmentRow>, StateError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM realignments ORDER BY created_at DESC, rowid DESC LIMIT {limit}"
        );
        let connection = self.lock();
        let mut query = connection.prepare_cached(&sql)?;
        let rows = query.query_map([], read_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Realignments that have not ended, oldest first. At start these were interrupted: resume the
    /// one whose inputs are still wanted and finish the others as superseded.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub fn unfinished_realignments(&self) -> Result<Vec<RealignmentRow>, StateError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM realignments WHERE status = 'running' ORDER BY created_at, rowid"
        );
        let connection = self.lock();
        let mut query = connection.prepare_cached(&sql)?;
        let rows = query.query_map([], read_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn require(changed: usize, id: &str) -> Result<(), StateError> {
    match changed {
        0 => Err(StateError::Row(format!(
            "realignment {id} is unknown or has ended"
        ))),
        _ => Ok(()),
    }
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<RealignmentRow> {
    let status: String = row.get(4)?;
    let outcome = if status == RUNNING {
        None
    } else {
        Some(parse(4, &status)?)
    };
    Ok(RealignmentRow {
        id: row.get(0)?,
        inputs_hash: row.get(1)?,
        policy_revision: row.get(2)?,
        stage: parse(3, &row.get::<_, String>(3)?)?,
        outcome,
        progress: row.get(5)?,
        created_at: row.get(6)?,
        updated_at: row.get(7)?,
        finished_at: row.get(8)?,
        triage: json(row, 9)?,
        losses: json(row, 10)?,
        gate: json(row, 11)?,
        error: row.get(12)?,
        generation: row.get(13)?,
    })
}

fn parse<T: std::str::FromStr>(column: usize, text: &str) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|error| unreadable(column, error))
}

fn json(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Value>> {
    let text: Option<String> = row.get(column)?;
    text.map(|t| serde_json::from_str(&t).map_err(|e| unreadable(column, e)))
        .transpose()
}

fn unreadable(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    let text = rusqlite::types::Type::Text;
    rusqlite::Error::FromSqlConversionFailure(column, text, Box::new(error))
}
