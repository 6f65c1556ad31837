//! The database as the oracle's cache of verdicts, judge scores and corrective responses.

use rusqlite::{OptionalExtension, params};

use super::retention::record_use;
use super::{StateDb, StateError};
use realign_align::oracle::corrective::ResponseCache;
use realign_align::oracle::{ScoreCache, VerdictCache, VerdictKey};
use realign_core::clock::unix_seconds;

impl VerdictCache for StateDb {
    /// A failing database slows triage down but never makes it wrong: the verdicts are computed
    /// again.
    fn get_many(&self, keys: &[VerdictKey]) -> Vec<Option<bool>> {
        let raw: Vec<[u8; 32]> = keys.iter().map(|key| key.0).collect();
        self.get_verdicts(&raw).unwrap_or_else(|error| {
            tracing::warn!(%error, "stored verdicts cannot be read; judging again");
            vec![None; keys.len()]
        })
    }

    fn put_many(&self, verdicts: &[(VerdictKey, bool)]) {
        let raw: Vec<([u8; 32], bool)> = verdicts.iter().map(|(key, v)| (key.0, *v)).collect();
        if let Err(error) = self.put_verdicts(&raw) {
            tracing::warn!(%error, "verdicts cannot be stored; they will be judged again");
        }
    }
}

impl ScoreCache for StateDb {
    fn get(&self, key: &[u8; 32]) -> Option<f64> {
        self.judge_score(key).unwrap_or_else(|error| {
            tracing::warn!(%error, "a stored judge score cannot be read; asking the judge again");
            None
        })
    }

    fn put(&self, key: &[u8; 32], probability: f64) {
        if let Err(error) = self.put_judge_score(key, probability) {
            tracing::warn!(%error, "a judge score cannot be stored; the judge will be asked again");
        }
    }
}

impl ResponseCache for StateDb {
    fn get(&self, key: &[u8; 32]) -> Option<String> {
        self.corrective_response(key).unwrap_or_else(|error| {
            tracing::warn!(%error, "a stored corrective response cannot be read; requesting it again");
            None
        })
    }

    fn put(&self, key: &[u8; 32], response: &str) {
        if let Err(error) = self.put_corrective_response(key, response) {
            tracing::warn!(%error, "a corrective response cannot be stored; it will be requested again");
        }
    }
}

impl StateDb {
    /// Adds verdicts that were judged elsewhere, in one transaction, and returns how many were not there. Those that are there
    /// stay, so adding the same again changes nothing.
    ///
    /// # Errors
    /// [`StateError::Sql`]; nothing was added then.
    pub fn add_verdicts(&self, verdicts: &[(VerdictKey, bool)]) -> Result<usize, StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let mut added = 0;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO verdicts (key, violates, used_at) VALUES (?1, ?2, ?3) ON CONFLICT (key) DO NOTHING",
            )?;
            let now = unix_seconds();
            for (key, violates) in verdicts {
                added += insert.execute(params![&key.0[..], violates, now])?;
            }
        }
        transaction.commit()?;
        Ok(added)
    }

    /// The corrective response stored under `key`, if any.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn corrective_response(&self, key: &[u8; 32]) -> Result<Option<String>, StateError> {
        let connection = self.lock();
        let mut query = connection
            .prepare_cached("SELECT response, used_at FROM corrective_responses WHERE key = ?1")?;
        let row = query.query_row([&key[..]], |row| Ok((row.get(0)?, row.get(1)?)));
        let Some((response, at)) = row.optional()? else {
            return Ok(None);
        };
        record_use(
            &connection,
            "corrective_responses",
            &[(*key, at)],
            unix_seconds(),
        );
        Ok(Some(response))
    }

    /// Stores a corrective response, replacing an earlier one.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn put_corrective_response(
        &self,
        key: &[u8; 32],
        response: &str,
    ) -> Result<(), StateError> {
        self.lock().execute(
            "INSERT OR REPLACE INTO corrective_responses (key, response, used_at)
             VALUES (?1, ?2, ?3)",
            params![&key[..], response, unix_seconds()],
        )?;
        Ok(())
    }

    /// The judge's probability stored under `key`, if any.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn judge_score(&self, key: &[u8; 32]) -> Result<Option<f64>, StateError> {
        let connection = self.lock();
        let mut query = connection
            .prepare_cached("SELECT probability, used_at FROM judge_scores WHERE key = ?1")?;
        let row = query.query_row([&key[..]], |row| Ok((row.get(0)?, row.get(1)?)));
        let Some((probability, at)) = row.optional()? else {
            return Ok(None);
        };
        record_use(&connection, "judge_scores", &[(*key, at)], unix_seconds());
        Ok(Some(probability))
    }

    /// Stores a judge's probability, replacing an earlier one.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn put_judge_score(
        &self,
        key: &[u8; 32],
        probability: f64,
    ) -> Result<(), StateError> {
        self.lock().execute(
            "INSERT OR REPLACE INTO judge_scores (key, probability, used_at) VALUES (?1, ?2, ?3)",
            params![&key[..], probability, unix_seconds()],
        )?;
        Ok(())
    }
}
