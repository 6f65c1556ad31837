//! Collects the inputs of a realignment, and locates its checkpoints, according to the
//! configuration.

use std::path::PathBuf;

use crate::config::Config;
use realign_align::pipeline::{Inputs, Sources};
use realign_align::policy::PolicySet;
use realign_align::preferences::DatasetError;
use realign_align::train::Recipe;

/// Collects the inputs of a realignment to `policies`, reading the preference data that `config`
/// names.
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
        gather: config.gather.enabled.then(|| config.gather_settings()),
    };
    Inputs::collect(sources, base_hash, policies, recipe)
}

/// The directory of a realignment's training checkpoints, named after the hash of its inputs.
pub fn checkpoints(config: &Config, inputs: &Inputs) -> PathBuf {
    let directory = config.paths.state.join("checkpoints");
    directory.join(&inputs.hash[..16])
}
