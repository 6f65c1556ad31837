//! The inputs of a realignment, and their hash.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::gather;
use crate::oracle::corrective::CorrectiveSpec;
use crate::policy::PolicySet;
use crate::preferences::{Dataset, DatasetError, Pair, split};
use crate::train::Recipe;
use crate::train::examples::TokenPair;

/// Version of the algorithm, part of every hash: changed when the same inputs would give another
/// adapter.
const ALGORITHM: &str = "realign/1";
/// Skipped lines that are logged one by one.
const MAX_LOGGED: usize = 20;

/// Where the preference data is, how it is split, and which endpoint corrects it.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Directory of preference data.
    pub preferences: &'a Path,
    /// Maximum memory of what is loaded from it, bytes.
    pub max_bytes: u64,
    /// Share of prompts to hold out if the data marks none, 0 to 1.
    pub holdout: f64,
    /// The endpoint that writes compliant responses to PUNISH pairs.
    pub corrective: Option<&'a CorrectiveSpec>,
    /// How pairs are gathered, if they are.
    pub gather: Option<gather::Settings>,
}

/// The inputs of one realignment.
pub struct Inputs {
    /// SHA-256 (hex) over base model, preference data, policy revision, recipe, hold-out share,
    /// corrective endpoint and settings of gathering.
    pub hash: String,
    /// Revision of the policy set.
    pub policy_revision: String,
    /// The preference data.
    pub dataset: Dataset,
    /// Indices of the pairs to train on.
    pub train: Vec<usize>,
    /// Indices of the pairs to measure on.
    pub holdout: Vec<usize>,
}

impl Inputs {
    /// Reads the preference data and hashes everything.
    ///
    /// # Errors
    /// [`DatasetError`] if the data cannot be read or is too large.
    pub fn collect(
        sources: Sources<'_>,
        base_hash: &str,
        policies: &PolicySet,
        recipe: &Recipe,
    ) -> Result<Self, DatasetError> {
        let dataset = Dataset::load_dir_within(sources.preferences, sources.max_bytes)?;
        for line in dataset.skipped.iter().take(MAX_LOGGED) {
            tracing::warn!(source = %line.source, reason = line.reason, "skipping a line of preference data");
        }
        if dataset.skipped.len() > MAX_LOGGED {
            let more = dataset.skipped.len() - MAX_LOGGED;
            tracing::warn!(
                more,
                "skipping further lines of preference data; `realign triage` lists them"
            );
        }
        let ratio = holdout_ratio(&dataset.pairs, sources.holdout);
        let parts = split(&dataset.pairs, ratio, recipe.seed);
        let recipe = serde_json::to_string(recipe).unwrap_or_default();
        let corrective = sources.corrective.map(CorrectiveSpec::identity);
        let gather = serde_json::to_string(&sources.gather).unwrap_or_default();
        let mut hash = Sha256::new();
        for part in [
            ALGORITHM,
            base_hash,
            &dataset.digest,
            policies.revision(),
            &recipe,
            &ratio.to_string(),
            &corrective.unwrap_or_default(),
            &gather,
        ] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Ok(Self {
            hash: hex::encode(hash.finalize()),
            policy_revision: policies.revision().to_owned(),
            dataset,
            train: parts.train,
            holdout: parts.holdout,
        })
    }
}

/// SHA-256 (hex) over what training is a function of: base model, recipe and the pairs in their order.
/// Policies that sort the data alike have the same one.
pub fn training_key(base_hash: &str, recipe: &Recipe, pairs: &[TokenPair]) -> String {
    let recipe = serde_json::to_string(recipe).unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [ALGORITHM, "training", base_hash, &recipe] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    for pair in pairs {
        hash.update([pair.category as u8]);
        for tokens in [&pair.prompt, &pair.chosen, &pair.rejected] {
            hash.update((tokens.len() as u64).to_le_bytes());
            for token in tokens {
                hash.update(token.to_le_bytes());
            }
        }
    }
    hex::encode(hash.finalize())
}

/// The share of prompts to hold out at random: `configured`, or 0 if the data marks its own
/// held-out pairs.
pub fn holdout_ratio(pairs: &[Pair], configured: f64) -> f64 {
    let marked = pairs.iter().any(|pair| pair.holdout == Some(true));
    if marked { 0.0 } else { configured }
}
