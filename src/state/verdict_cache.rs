//! The database as the oracle's verdict cache.

use super::StateDb;
use crate::oracle::{VerdictCache, VerdictKey};

impl VerdictCache for StateDb {
    /// A database that fails makes triage slower, never wrong: the verdicts are computed again.
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
