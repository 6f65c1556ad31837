//! How often the process died while it ran a realignment, by the hash of its inputs.

use rusqlite::{OptionalExtension, params};

use super::{StateDb, StateError};
use crate::telemetry::Stage;

/// Deaths of the process in one stage of a realignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deaths {
    /// The stage, as it is spelled everywhere.
    pub(crate) stage: String,
    /// How many in a row.
    pub(crate) count: u64,
    /// The memory that was free when the last attempt began, in words; empty if unknown.
    pub(crate) room: String,
}

impl StateDb {
    /// An attempt begins. Until it is closed, the end of the process is a death. `room` says how much
    /// memory is free.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn open_attempt(&self, inputs_hash: &str, room: &str) -> Result<(), StateError> {
        self.lock().execute(
            "INSERT INTO attempts (inputs_hash, open, stage, deaths, progress, room)
             VALUES (?1, 1, '', 0, 0, ?2)
             ON CONFLICT (inputs_hash) DO UPDATE SET open = 1, room = ?2",
            params![inputs_hash, room],
        )?;
        Ok(())
    }

    /// Attempts have ended, or the process is about to end because it was told to; those of all
    /// inputs if none are given.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn close_attempts(&self, inputs_hash: Option<&str>) -> Result<(), StateError> {
        self.lock().execute(
            "UPDATE attempts SET open = 0 WHERE inputs_hash = ?1 OR ?1 IS NULL",
            [inputs_hash],
        )?;
        Ok(())
    }

    /// Counts a death in `stage` if the last attempt was not closed. One that came further than the
    /// death before (`progress` of the whole, 0 to 1) begins the count anew.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn count_death(
        &self,
        inputs_hash: &str,
        (stage, progress): (Stage, f64),
    ) -> Result<(), StateError> {
        self.lock().execute(
            "UPDATE attempts SET open = 0, stage = ?2, progress = ?3,
             deaths = CASE WHEN stage = ?2 AND ?3 <= progress THEN deaths + 1 ELSE 1 END
             WHERE inputs_hash = ?1 AND open = 1",
            params![inputs_hash, stage.as_str(), progress],
        )?;
        Ok(())
    }

    /// The deaths of a realignment with these inputs, if there were any.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn deaths(&self, inputs_hash: &str) -> Result<Option<Deaths>, StateError> {
        let row = self.lock().query_row(
            "SELECT stage, deaths, room FROM attempts WHERE inputs_hash = ?1 AND deaths > 0",
            [inputs_hash],
            |row| {
                Ok(Deaths {
                    stage: row.get(0)?,
                    count: row.get(1)?,
                    room: row.get(2)?,
                })
            },
        );
        Ok(row.optional()?)
    }

    /// Forgets the deaths of a realignment with these inputs.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn forget_deaths(&self, inputs_hash: &str) -> Result<(), StateError> {
        self.lock()
            .execute("DELETE FROM attempts WHERE inputs_hash = ?1", [inputs_hash])?;
        Ok(())
    }
}
