//! What a configuration says about the inputs of a realignment and its checkpoints.

use std::path::PathBuf;

use crate::config::Config;
use realign_align::pipeline::{Inputs, Sources};
use realign_align::policy::PolicySet;
use realign_align::preferences::DatasetError;
use realign_align::train::Recipe;

/// The inputs of a realignment to a policy set, read as the configuration says.
///
/// # Errors
/// If the preference data cannot be read.
pub fn inputs(
    config: &Config,
    base_hash: &str,
    policies: &PolicySet,
    recipe: &Recipe,
) -> Result<Inputs, DatasetError> {
    let sources = Sources {
        preferences: &config.paths.preferences,
        max_bytes: config.paths.max_preferences_bytes,
        holdout: config.gate.holdout_ratio,
        corrective: config.train.corrective.as_ref(),
    };
    Inputs::collect(sources, base_hash, policies, recipe)
}

/// Where the training checkpoints of a realignment are, by the hash of its inputs.
pub fn checkpoints(config: &Config, inputs: &Inputs) -> PathBuf {
    let all = config.paths.state.join("checkpoints");
    all.join(&inputs.hash[..16])
}
