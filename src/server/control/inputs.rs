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

/// Beginning of the name of the checkpoints of a run by hand.
const COMMAND_PREFIX: &str = "train-";

/// The directory of all training checkpoints.
pub(super) fn checkpoint_root(config: &Config) -> PathBuf {
    config.paths.state.join("checkpoints")
}

/// The directory of a realignment's training checkpoints, named after the hash of its inputs.
pub(super) fn checkpoints(config: &Config, inputs: &Inputs) -> PathBuf {
    checkpoint_root(config).join(&inputs.hash[..16])
}

/// The same for `realign train`, which may run next to a server that trains from the same inputs.
pub fn command_checkpoints(config: &Config, inputs: &Inputs) -> PathBuf {
    let name = format!("{COMMAND_PREFIX}{}", &inputs.hash[..16]);
    checkpoint_root(config).join(name)
}

/// The part of the inputs' hash in the name of a directory of [`command_checkpoints`].
pub(super) fn command_run(name: &str) -> Option<&str> {
    name.strip_prefix(COMMAND_PREFIX)
}
