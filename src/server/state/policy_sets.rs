//! The policy sets that were accepted, with their files: what a start begins from if the directory
//! cannot be used.

use rusqlite::{OptionalExtension, params};

use super::{StateDb, StateError};
use realign_align::policy::Snapshot;

/// Accepted sets that are kept.
const KEPT: i64 = 32;
/// The files of the newest one.
const NEWEST: &str = "SELECT files FROM policy_sets ORDER BY seq DESC LIMIT 1";

impl StateDb {
    /// Records the newest accepted set; `now` is in Unix seconds. A set like the newest one is not
    /// recorded again.
    ///
    /// # Errors
    /// [`StateError::Sql`] or [`StateError::Gone`].
    pub(crate) fn accept_policies(
        &self,
        revision: &str,
        snapshot: &Snapshot,
        now: u64,
    ) -> Result<(), StateError> {
        self.check_place()?;
        let files = snapshot.to_json();
        let mut connection = self.lock();
        let change = connection.transaction()?;
        let newest: Option<String> = change
            .prepare_cached(NEWEST)?
            .query_row([], |row| row.get(0))
            .optional()?;
        if newest.as_deref() == Some(files.as_str()) {
            return Ok(());
        }
        change
            .prepare_cached("INSERT INTO policy_sets (at, revision, files) VALUES (?1, ?2, ?3)")?
            .execute(params![now, revision, files])?;
        let oldest = change.last_insert_rowid() - KEPT;
        change
            .prepare_cached("DELETE FROM policy_sets WHERE seq <= ?1")?
            .execute([oldest])?;
        Ok(change.commit()?)
    }

    /// The newest accepted set's files; `None` if none was ever accepted.
    ///
    /// # Errors
    /// [`StateError::Sql`] or [`StateError::Row`].
    pub(crate) fn accepted_policies(&self) -> Result<Option<Snapshot>, StateError> {
        let files: Option<String> = self
            .lock()
            .prepare_cached(NEWEST)?
            .query_row([], |row| row.get(0))
            .optional()?;
        files
            .map(|text| {
                Snapshot::from_json(&text)
                    .map_err(|error| StateError::Row(format!("accepted policies: {error}")))
            })
            .transpose()
    }
}
