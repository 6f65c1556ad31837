//! The table of realignments: running, finished and interrupted ones.

use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::Value;

use super::{StateDb, StateError};
use crate::telemetry::{Outcome, Stage};

/// A row of the realignments table. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RealignmentRow {
    /// The realignment's id.
    pub(crate) id: String,
    /// Hash of base model, data, policy set, recipe and seed.
    pub(crate) inputs_hash: String,
    /// Revision of the policy set.
    pub(crate) policy_revision: String,
    /// The current or last stage.
    pub(crate) stage: Stage,
    /// How it ended; `None` while it runs, or if it was interrupted.
    pub(crate) outcome: Option<Outcome>,
    /// Completed fraction, 0 to 1.
    pub(crate) progress: f64,
    /// When it began.
    pub(crate) created_at: u64,
    /// When the row was last updated.
    pub(crate) updated_at: u64,
    /// When it ended.
    pub(crate) finished_at: Option<u64>,
    /// Report of triage, as JSON.
    pub(crate) triage: Option<Value>,
    /// Losses of the latest training step, as JSON.
    pub(crate) losses: Option<Value>,
    /// The gate's report, as JSON.
    pub(crate) gate: Option<Value>,
    /// One sentence for an operator if it did not succeed.
    pub(crate) error: Option<String>,
    /// Id of the resulting generation.
    pub(crate) generation: Option<String>,
}

/// The kinds of report stored with a realignment.
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
    /// Inserts a realignment, in stage triage. `now` is in Unix seconds.
    ///
    /// # Errors
    /// [`StateError::Sql`], also if the id exists already.
    pub(crate) fn begin_realignment(
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

    /// Updates stage and progress (0 to 1) of a running realignment.
    ///
    /// # Errors
    /// [`StateError::Row`] if the realignment does not exist or has ended.
    pub(crate) fn advance_realignment(
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
        require_changed(changed, id)
    }

    /// Stores a report with a realignment, replacing an earlier one of the same kind.
    ///
    /// # Errors
    /// [`StateError::Row`] if the realignment does not exist.
    pub(crate) fn put_report(
        &self,
        id: &str,
        report: Report,
        value: &Value,
    ) -> Result<(), StateError> {
        let statement = match report {
            Report::Triage => "UPDATE realignments SET triage = ?2 WHERE id = ?1",
            Report::Losses => "UPDATE realignments SET losses = ?2 WHERE id = ?1",
            Report::Gate => "UPDATE realignments SET gate = ?2 WHERE id = ?1",
        };
        let changed = self
            .lock()
            .execute(statement, params![id, value.to_string()])?;
        require_changed(changed, id)
    }

    /// Records the outcome of a running realignment; `result` is the resulting generation and the
    /// error, each if there is one.
    ///
    /// # Errors
    /// [`StateError::Row`] if the realignment does not exist or has ended.
    pub(crate) fn finish_realignment(
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
        require_changed(changed, id)
    }

    /// The realignment with this id, if it exists.
    ///
    /// # Errors
    /// [`StateError::Sql`] or [`StateError::Row`].
    pub(crate) fn realignment(&self, id: &str) -> Result<Option<RealignmentRow>, StateError> {
        let sql = format!("SELECT {COLUMNS} FROM realignments WHERE id = ?1");
        Ok(self.lock().query_row(&sql, [id], read_row).optional()?)
    }

    /// The number of the next realignment, from 1.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn next_realignment(&self) -> Result<u64, StateError> {
        let sql = "SELECT coalesce(max(rowid), 0) + 1 FROM realignments";
        Ok(self.lock().query_row(sql, [], |row| row.get(0))?)
    }

    /// The latest `limit` realignments, newest first.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn realignments(&self, limit: usize) -> Result<Vec<RealignmentRow>, StateError> {
        let sql = format!("SELECT {COLUMNS} FROM realignments ORDER BY rowid DESC LIMIT {limit}");
        let connection = self.lock();
        let mut query = connection.prepare_cached(&sql)?;
        let rows = query.query_map([], read_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Realignments that have not ended, oldest first. At startup these were interrupted: the
    /// caller resumes the one whose inputs are still current and finishes the others as superseded.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn unfinished_realignments(&self) -> Result<Vec<RealignmentRow>, StateError> {
        let sql =
            format!("SELECT {COLUMNS} FROM realignments WHERE status = 'running' ORDER BY rowid");
        let connection = self.lock();
        let mut query = connection.prepare_cached(&sql)?;
        let rows = query.query_map([], read_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Fails if an update changed no row.
fn require_changed(changed: usize, id: &str) -> Result<(), StateError> {
    if changed == 0 {
        return Err(StateError::Row(format!(
            "realignment {id} is unknown or has ended"
        )));
    }
    Ok(())
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
