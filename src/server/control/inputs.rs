//! What a realignment is a function of, and its hash.

use sha2::{Digest, Sha256};

use crate::config::Config;
use realign_align::policy::PolicySet;
use realign_align::preferences::{Dataset, DatasetError, Pair, split};
use realign_align::train::Recipe;

/// Changes when the same inputs would give another adapter: part of every hash.
const ALGORITHM: &str = "realign/1";

/// The inputs of one realignment.
pub struct Inputs {
    /// SHA-256 over base model, preference data, policy revision, recipe, hold-out share and who
    /// corrects.
    pub hash: String,
    /// The preference data.
    pub dataset: Dataset,
    /// Pairs to train on.
    pub train: Vec<usize>,
    /// Pairs to measure on.
    pub holdout: Vec<usize>,
}

impl Inputs {
    /// Reads the preference data and hashes everything.
    ///
    /// # Errors
    /// If the data cannot be read.
    pub fn collect(
        config: &Config,
        base_hash: &str,
        policies: &PolicySet,
        recipe: &Recipe,
    ) -> Result<Self, DatasetError> {
        let paths = &config.paths;
        let dataset = Dataset::load_dir_within(&paths.preferences, paths.max_preferences_bytes)?;
        for line in &dataset.skipped {
            tracing::warn!(source = %line.source, reason = line.reason, "skipping a line of preference data");
        }
        let ratio = holdout_ratio(&dataset.pairs, config.gate.holdout_ratio);
        let parts = split(&dataset.pairs, ratio, recipe.seed);
        let recipe = serde_json::to_string(recipe).unwrap_or_default();
        // What cannot be asked is found when it is asked; here it only has to differ.
        let corrective = match super::corrective(&config.train) {
            Ok(Some(spec)) => spec.identity(),
            Ok(None) | Err(_) => String::new(),
        };
        let mut hash = Sha256::new();
        for part in [
            ALGORITHM,
            base_hash,
            &dataset.digest,
            policies.revision(),
            &recipe,
            &ratio.to_string(),
            &corrective,
        ] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Ok(Self {
            hash: hex::encode(hash.finalize()),
            dataset,
            train: parts.train,
            holdout: parts.holdout,
        })
    }
}

/// The share of prompts to draw for measuring. Data that names its own held-out part means the
/// rest for training: then none is drawn.
pub fn holdout_ratio(pairs: &[Pair], configured: f64) -> f64 {
    let named = pairs.iter().any(|pair| pair.holdout == Some(true));
    if named { 0.0 } else { configured }
}
