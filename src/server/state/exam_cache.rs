//! Answers and likelihoods of exams, kept in the state database.

use rusqlite::{OptionalExtension, params};

use super::retention::record_use;
use super::{StateDb, StateError};
use realign_align::exam::ExamCache;
use realign_core::clock::unix_seconds;

impl StateDb {
    fn exam_values(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<String>>, StateError> {
        let connection = self.lock();
        let mut query =
            connection.prepare_cached("SELECT value, used_at FROM exam_cache WHERE key = ?1")?;
        let mut used = Vec::new();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let row = query.query_row([&key[..]], |row| Ok((row.get(0)?, row.get(1)?)));
            let row: Option<(String, u64)> = row.optional()?;
            used.extend(row.as_ref().map(|(_, at)| (*key, *at)));
            found.push(row.map(|(value, _)| value));
        }
        record_use(&connection, "exam_cache", &used, unix_seconds());
        Ok(found)
    }

    fn put_exam_values(&self, values: &[([u8; 32], String)]) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO exam_cache (key, value, used_at) VALUES (?1, ?2, ?3)",
            )?;
            let now = unix_seconds();
            for (key, value) in values {
                insert.execute(params![&key[..], value, now])?;
            }
        }
        Ok(transaction.commit()?)
    }
}

/// A value that cannot be read or written costs computing it again.
impl ExamCache for StateDb {
    fn get_many(&self, keys: &[[u8; 32]]) -> Vec<Option<String>> {
        self.exam_values(keys).unwrap_or_else(|error| {
            tracing::warn!(%error, "stored answers of exams cannot be read; asking again");
            vec![None; keys.len()]
        })
    }

    fn put_many(&self, values: &[([u8; 32], String)]) {
        if let Err(error) = self.put_exam_values(values) {
            tracing::warn!(%error, "answers of an exam cannot be stored; they will be asked again");
        }
    }
}
