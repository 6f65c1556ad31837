//! What the database forgets, and what it says about generations that may go.
//!
//! Records are ordered by row number, not by clock. Cached results carry the day they were last
//! used; what was used within [`RECENT`] always stays.

use rusqlite::{Connection, Transaction, params};

use super::{StateDb, StateError};
use realign_core::Collectable;

/// Cached results used within this time stay, in seconds. Uses are recorded once a day.
const RECENT: u64 = 2 * DAY;
/// How old a recorded use has to be before the next one is recorded, in seconds.
pub(super) const DAY: u64 = 24 * 60 * 60;
/// Runs that ended early whose checkpoints stay, because they may be started again.
const RESUMABLE_RUNS: usize = 2;

/// The tables of cached results.
const CACHES: [(&str, Collectable); 4] = [
    ("verdicts", Collectable::Verdict),
    ("exam_cache", Collectable::ExamAnswer),
    ("judge_scores", Collectable::JudgeScore),
    ("corrective_responses", Collectable::CorrectiveResponse),
];

/// What the database keeps at most; `None` is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DbLimits {
    /// Generations that stay; their number also bounds the runs whose scores stay.
    pub(crate) runs: Option<usize>,
    /// Newest realignments, and newest refusals.
    pub(crate) realignments: Option<usize>,
    /// Rows of each table of cached results.
    pub(crate) cached: Option<usize>,
    /// Age of records and time without use of cached results, in seconds.
    pub(crate) max_age: Option<u64>,
}

impl StateDb {
    /// Forgets records and cached results beyond the limits, in one transaction, and returns how
    /// many of each kind. With `apply` false nothing changes.
    ///
    /// # Errors
    /// [`StateError::Sql`]; nothing changed then.
    pub(crate) fn trim(
        &self,
        limits: DbLimits,
        now: u64,
        apply: bool,
    ) -> Result<Vec<(Collectable, u64)>, StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let mut trimmed = vec![
            (
                Collectable::Realignment,
                trim_realignments(&transaction, limits, now)?,
            ),
            (Collectable::Score, trim_scores(&transaction, limits)?),
            (Collectable::Refusal, trim_refusals(&transaction, limits)?),
        ];
        for (table, kind) in CACHES {
            trimmed.push((kind, trim_cache(&transaction, table, limits, now)?));
        }
        if apply {
            transaction.commit()?;
        }
        Ok(trimmed)
    }

    /// Forgets that any inputs led to a generation: its files are about to go, and the same inputs
    /// must train again.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn forget_generation(&self, id: &str) -> Result<(), StateError> {
        self.lock()
            .execute("DELETE FROM generations WHERE id = ?1", [id])?;
        Ok(())
    }

    /// The generations that realignments led to and when, in the order in which they were last led
    /// to.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn generation_uses(&self) -> Result<Vec<(String, u64)>, StateError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT generation, max(updated_at) FROM realignments
             WHERE generation IS NOT NULL AND status IN ('succeeded', 'no_conflict')
             GROUP BY generation ORDER BY max(rowid)",
        )?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The generations that the newest realignment's inputs led to, and the newest one of a policy
    /// set: going back to them must not train.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn generations_in_force(&self, revision: &str) -> Result<Vec<String>, StateError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT id FROM generations WHERE inputs_hash =
                 (SELECT inputs_hash FROM realignments ORDER BY rowid DESC LIMIT 1)
             UNION SELECT id FROM (SELECT id FROM generations
                 WHERE policy_revision = ?1 AND status = 'promoted' ORDER BY rowid DESC LIMIT 1)",
        )?;
        let rows = query.query_map([revision], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Hashes of the inputs whose training may be resumed: of realignments that have not ended, and
    /// of the newest ones that ended early.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn resumable_inputs(&self) -> Result<Vec<String>, StateError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT inputs_hash FROM realignments WHERE status = 'running'
             UNION SELECT inputs_hash FROM (
                 SELECT inputs_hash FROM realignments
                 WHERE status IN ('superseded', 'cancelled', 'failed')
                 GROUP BY inputs_hash ORDER BY max(rowid) DESC LIMIT ?1)",
        )?;
        let rows = query.query_map([RESUMABLE_RUNS], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// SQLite's number for "no limit".
fn rows(limit: Option<usize>) -> i64 {
    limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX))
}

/// The newest record stays: a start looks at it, and numbers go on from it.
fn trim_realignments(
    transaction: &Transaction<'_>,
    limits: DbLimits,
    now: u64,
) -> Result<u64, StateError> {
    let oldest = limits.max_age.map_or(0, |age| now.saturating_sub(age));
    let deleted = transaction.execute(
        "DELETE FROM realignments WHERE status != 'running'
         AND rowid < (SELECT max(rowid) FROM realignments)
         AND (updated_at < ?2 OR rowid NOT IN
              (SELECT rowid FROM realignments ORDER BY rowid DESC LIMIT ?1))",
        params![rows(limits.realignments.map(|n| n.max(1))), oldest],
    )?;
    Ok(deleted as u64)
}

/// Scores save an interrupted run its impact stage; nothing else reads them.
fn trim_scores(transaction: &Transaction<'_>, limits: DbLimits) -> Result<u64, StateError> {
    let deleted = transaction.execute(
        "DELETE FROM scores WHERE inputs_hash NOT IN (
             SELECT inputs_hash FROM realignments WHERE status = 'running'
             UNION SELECT inputs_hash FROM (
                 SELECT inputs_hash FROM realignments ORDER BY rowid DESC LIMIT ?1))",
        [rows(limits.runs)],
    )?;
    Ok(deleted as u64)
}

fn trim_refusals(transaction: &Transaction<'_>, limits: DbLimits) -> Result<u64, StateError> {
    let deleted = transaction.execute(
        "DELETE FROM generations WHERE status = 'rejected' AND rowid NOT IN (
             SELECT rowid FROM generations WHERE status = 'rejected'
             ORDER BY rowid DESC LIMIT ?1)",
        [rows(limits.realignments)],
    )?;
    Ok(deleted as u64)
}

fn trim_cache(
    transaction: &Transaction<'_>,
    table: &str,
    limits: DbLimits,
    now: u64,
) -> Result<u64, StateError> {
    let recent = now.saturating_sub(RECENT);
    let mut deleted = 0;
    if let Some(age) = limits.max_age {
        let oldest = now.saturating_sub(age).min(recent);
        let sql = format!("DELETE FROM {table} WHERE used_at < ?1");
        deleted += transaction.execute(&sql, [oldest])?;
    }
    if let Some(most) = limits.cached {
        let sql = format!("SELECT count(*) FROM {table}");
        let count: u64 = transaction.query_row(&sql, [], |row| row.get(0))?;
        let excess = count.saturating_sub(most as u64);
        if excess > 0 {
            let sql = format!(
                "DELETE FROM {table} WHERE key IN (
                     SELECT key FROM {table} WHERE used_at < ?1 ORDER BY used_at LIMIT ?2)"
            );
            deleted += transaction.execute(&sql, params![recent, excess])?;
        }
    }
    Ok(deleted as u64)
}

/// Records that results were used, for those whose recorded use is older than a day. `used` is each
/// result's key with that time. A database that cannot be written costs their place in the queue.
pub(super) fn record_use(connection: &Connection, table: &str, used: &[([u8; 32], u64)], now: u64) {
    let stale = now.saturating_sub(DAY);
    let mut stale = used.iter().filter(|(_, at)| *at < stale).peekable();
    if stale.peek().is_none() {
        return;
    }
    let record = || -> rusqlite::Result<()> {
        let transaction = connection.unchecked_transaction()?;
        {
            let sql = format!("UPDATE {table} SET used_at = ?2 WHERE key = ?1");
            let mut update = transaction.prepare_cached(&sql)?;
            for (key, _) in stale {
                update.execute(params![&key[..], now])?;
            }
        }
        transaction.commit()
    };
    if let Err(error) = record() {
        tracing::debug!(%error, table, "uses of stored results are not recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{GenerationRow, GenerationStatus, ScoreRow};
    use crate::telemetry::Outcome;

    const NOW: u64 = 1_000 * DAY;

    fn db() -> (tempfile::TempDir, StateDb) {
        let dir = tempfile::tempdir().unwrap();
        let db = StateDb::open(&dir.path().join("realign.db")).unwrap();
        (dir, db)
    }

    /// Ended realignments `r1`…, each with scores; the last one runs.
    fn with_realignments(db: &StateDb, count: u64) {
        for n in 1..=count {
            let (id, inputs) = (format!("r{n}"), format!("i{n}"));
            db.begin_realignment(&id, &inputs, "p", n).unwrap();
            let score = ScoreRow {
                pair_id: "a".into(),
                raw: 1.0,
                weight: 1.0,
            };
            db.put_scores(&inputs, &[score]).unwrap();
            if n < count {
                let result = (Some("g"), None);
                db.finish_realignment(&id, Outcome::Superseded, result, n)
                    .unwrap();
            }
        }
    }

    fn count(trimmed: &[(Collectable, u64)], kind: Collectable) -> u64 {
        let of = trimmed.iter().filter(|(k, _)| *k == kind);
        of.map(|(_, n)| n).sum()
    }

    #[test]
    fn old_records_go_and_numbers_go_on() {
        let (_dir, db) = db();
        with_realignments(&db, 10);
        let limits = DbLimits {
            runs: Some(2),
            realignments: Some(3),
            ..DbLimits::default()
        };
        let shown = db.trim(limits, NOW, false).unwrap();
        assert_eq!(db.realignments(100).unwrap().len(), 10, "only shown");
        let trimmed = db.trim(limits, NOW, true).unwrap();
        assert_eq!(shown, trimmed);
        assert_eq!(count(&trimmed, Collectable::Realignment), 7);
        assert_eq!(count(&trimmed, Collectable::Score), 8);
        assert_eq!(db.next_realignment().unwrap(), 11);
        assert!(db.scores("i8").unwrap().is_empty());
        assert_eq!(db.scores("i9").unwrap().len(), 1);
        let age = DbLimits {
            max_age: Some(DAY),
            ..DbLimits::default()
        };
        db.trim(age, NOW, true).unwrap();
        let left = db.realignments(100).unwrap();
        assert_eq!(left.len(), 1, "the newest stays");
        let none = db.trim(DbLimits::default(), NOW, true).unwrap();
        assert_eq!(none.iter().map(|(_, n)| n).sum::<u64>(), 0);
    }

    #[test]
    fn only_runs_that_may_go_on_keep_their_checkpoints() {
        let (_dir, db) = db();
        with_realignments(&db, 5);
        assert_eq!(db.resumable_inputs().unwrap(), ["i3", "i4", "i5"]);
    }

    #[test]
    fn cached_results_go_by_their_last_use() {
        let (_dir, db) = db();
        let keys: Vec<[u8; 32]> = (1..=4).map(|n| [n; 32]).collect();
        let verdicts: Vec<_> = keys.iter().map(|key| (*key, true)).collect();
        db.put_verdicts(&verdicts).unwrap();
        let used = |key: u8, at: u64| {
            let sql = "UPDATE verdicts SET used_at = ?2 WHERE key = ?1";
            let changed = db.lock().execute(sql, params![&[key; 32][..], at]);
            assert_eq!(changed.unwrap(), 1);
        };
        (1..=3).for_each(|key| used(key, NOW - 10 * DAY - u64::from(key)));
        used(4, NOW);
        let most = |cached| DbLimits {
            cached: Some(cached),
            ..DbLimits::default()
        };
        let verdicts =
            |limits, now| count(&db.trim(limits, now, true).unwrap(), Collectable::Verdict);
        assert_eq!(verdicts(most(4), NOW), 0);
        assert_eq!(verdicts(most(3), NOW), 1, "the least recently used");
        assert_eq!(db.get_verdicts(&keys).unwrap()[2], None);
        let old = DbLimits {
            max_age: Some(5 * DAY),
            ..DbLimits::default()
        };
        assert_eq!(verdicts(old, NOW), 0, "reading is a use, by the real clock");
        used(1, NOW - 10 * DAY);
        assert_eq!(verdicts(old, NOW), 1);
        used(2, NOW - 10 * DAY);
        assert_eq!(verdicts(most(0), NOW), 1, "what is in use stays");
        assert_eq!(db.get_verdicts(&keys).unwrap()[3], Some(true));
    }

    #[test]
    fn what_is_in_force_is_found_and_a_removed_generation_is_not() {
        let (_dir, db) = db();
        let put = |id: &str, inputs: &str, revision: &str| {
            let row = GenerationRow {
                id: id.into(),
                inputs_hash: inputs.into(),
                policy_revision: revision.into(),
                created_at: 1,
                status: GenerationStatus::Promoted,
                path: String::new(),
            };
            db.put_generation(&row).unwrap();
        };
        put("old", "i1", "p");
        put("new", "i2", "p");
        put("other", "i3", "q");
        db.begin_realignment("r1", "i3", "q", 1).unwrap();
        assert_eq!(db.generations_in_force("p").unwrap(), ["new", "other"]);
        db.finish_realignment("r1", Outcome::Succeeded, (Some("other"), None), 7)
            .unwrap();
        assert_eq!(db.generation_uses().unwrap(), [("other".to_string(), 7)]);
        db.forget_generation("new").unwrap();
        assert_eq!(db.generation_by_inputs("i2").unwrap(), None);
        assert_eq!(db.generations_in_force("p").unwrap(), ["old", "other"]);
    }
}
