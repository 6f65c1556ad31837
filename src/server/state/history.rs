//! What served, in order, who decided it, and what an operator pinned.
//!
//! Rows are ordered by sequence number. Times are for people to read: a clock may be set back.

use rusqlite::{OptionalExtension, Row, params};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{StateDb, StateError};

/// Activations that are kept.
const KEPT: u64 = 10_000;

/// Who or what made a generation serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// An operator activated it.
    Activate,
    /// An operator went back to it.
    Rollback,
    /// A realignment led to it.
    Realign,
    /// The server found it at its start, or had to leave an unusable generation.
    Recover,
    /// The store that servers share names it.
    Follow,
}

impl Act {
    fn as_str(self) -> &'static str {
        match self {
            Act::Activate => "activate",
            Act::Rollback => "rollback",
            Act::Realign => "realign",
            Act::Recover => "recover",
            Act::Follow => "follow",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let all = [
            Act::Activate,
            Act::Rollback,
            Act::Realign,
            Act::Recover,
            Act::Follow,
        ];
        all.into_iter().find(|act| act.as_str() == text)
    }
}

/// One change of what serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Activation {
    /// Counts up; the order of activations.
    pub(crate) seq: u64,
    /// When, in Unix seconds.
    pub(crate) at: u64,
    /// Who decided it.
    pub(crate) act: Act,
    /// Why, in a sentence.
    pub(crate) reason: String,
    /// Served until then.
    pub(crate) from: String,
    /// Served from then on.
    pub(crate) to: String,
}

/// A generation that automatic realignments may not replace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Pin {
    /// The pinned generation.
    pub(crate) generation: String,
    /// What pinned it.
    pub(crate) reason: String,
    /// Since when, in Unix seconds.
    pub(crate) at: u64,
}

impl StateDb {
    /// Appends an activation and returns its sequence number. `seq` of the argument is ignored.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn add_activation(&self, activation: &Activation) -> Result<u64, StateError> {
        let Activation {
            at,
            act,
            reason,
            from,
            to,
            ..
        } = activation;
        let mut connection = self.lock();
        let change = connection.transaction()?;
        change
            .prepare_cached(
                "INSERT INTO activations (at, act, reason, origin, target)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![at, act.as_str(), reason, from, to])?;
        let seq = u64::try_from(change.last_insert_rowid()).unwrap_or(0);
        let oldest = seq.saturating_sub(KEPT);
        change
            .prepare_cached("DELETE FROM activations WHERE seq <= ?1")?
            .execute([oldest])?;
        change.commit()?;
        Ok(seq)
    }

    /// Takes an activation back that did not come about.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn remove_activation(&self, seq: u64) -> Result<(), StateError> {
        self.lock()
            .execute("DELETE FROM activations WHERE seq = ?1", [seq])?;
        Ok(())
    }

    /// The latest `limit` activations, newest first.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn activations(&self, limit: usize) -> Result<Vec<Activation>, StateError> {
        let connection = self.lock();
        // Not a parameter: SQLite plans for the limit, and would prepare the statement again each time.
        let sql = format!(
            "SELECT seq, at, act, reason, origin, target FROM activations
             ORDER BY seq DESC LIMIT {limit}"
        );
        let mut query = connection.prepare_cached(&sql)?;
        let rows = query.query_map([], read_activation)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What an operator pinned, if anything.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn pin(&self) -> Result<Option<Pin>, StateError> {
        let sql = "SELECT generation, reason, at FROM pins";
        let read = |row: &Row<'_>| {
            Ok(Pin {
                generation: row.get(0)?,
                reason: row.get(1)?,
                at: row.get(2)?,
            })
        };
        let connection = self.lock();
        let mut query = connection.prepare_cached(sql)?;
        Ok(query.query_row([], read).optional()?)
    }

    /// Replaces the pin; `None` removes it.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub(crate) fn set_pin(&self, pin: Option<&Pin>) -> Result<(), StateError> {
        let connection = self.lock();
        match pin {
            Some(pin) => connection.execute(
                "INSERT OR REPLACE INTO pins (only, generation, reason, at) VALUES (1, ?1, ?2, ?3)",
                params![pin.generation, pin.reason, pin.at],
            )?,
            None => connection.execute("DELETE FROM pins", [])?,
        };
        Ok(())
    }
}

fn read_activation(row: &Row<'_>) -> rusqlite::Result<Activation> {
    let act: String = row.get(2)?;
    Ok(Activation {
        seq: row.get(0)?,
        at: row.get(1)?,
        act: Act::parse(&act).ok_or_else(|| {
            let text = rusqlite::types::Type::Text;
            let error = format!("{act:?} is no kind of activation");
            rusqlite::Error::FromSqlConversionFailure(2, text, error.into())
        })?,
        reason: row.get(3)?,
        from: row.get(4)?,
        to: row.get(5)?,
    })
}
