//! The pairs that this machine judges: all of them, or a shard whose verdicts are kept.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::verdicts::{Verdicts, VerdictsError};
use realign_align::oracle::{MemoryVerdictCache, RuleOracle};
use realign_align::preferences::Pair;
use realign_align::triage::{Shard, Triage, triage, triage_cached};

/// All pairs, or a shard of them.
#[derive(Debug, Default)]
pub(super) struct Part {
    shard: Option<Shard>,
    verdicts: MemoryVerdictCache,
}

/// What a shard found, and where its verdicts are.
#[derive(Debug, Serialize)]
pub struct ShardReport<T> {
    /// Which one, as `0/4`.
    pub(crate) shard: String,
    /// The file of its verdicts.
    pub(crate) file: PathBuf,
    /// How many there are.
    pub(crate) verdicts: usize,
    /// What its pairs come to.
    #[serde(flatten)]
    pub(crate) triage: T,
}

impl Part {
    pub(super) fn new(shard: Option<Shard>) -> Self {
        Self {
            shard,
            verdicts: MemoryVerdictCache::default(),
        }
    }

    /// Whether a pair is judged here.
    pub(super) fn has(&self, pair: &Pair) -> bool {
        self.shard.is_none_or(|shard| shard.has(&pair.id))
    }

    /// Judges pairs; a shard keeps the verdicts.
    pub(super) fn triage(&self, pairs: &[Pair], oracle: &RuleOracle) -> Triage {
        match self.shard {
            None => triage(pairs, oracle),
            Some(_) => triage_cached(pairs, oracle, &self.verdicts).0,
        }
    }

    /// Writes what a shard found, with its number of pairs; `None` where all pairs were judged.
    pub(super) fn write<T>(
        &self,
        dir: &Path,
        oracle: &RuleOracle,
        (pairs, triage): (usize, T),
    ) -> Result<Option<ShardReport<T>>, VerdictsError> {
        let Some(shard) = self.shard else {
            return Ok(None);
        };
        let verdicts = Verdicts::new(shard, pairs, oracle, self.verdicts.sorted());
        let file = verdicts.write(dir)?;
        Ok(Some(ShardReport {
            shard: shard.to_string(),
            verdicts: verdicts.all.len(),
            file,
            triage,
        }))
    }
}

impl<T> ShardReport<T> {
    /// The report as text for a terminal, before that of its pairs.
    pub(super) fn text(&self, triage: &str) -> String {
        format!(
            "shard {}: {} verdicts in {}\n{triage}",
            self.shard,
            self.verdicts,
            self.file.display()
        )
    }
}
