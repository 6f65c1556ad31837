//! `manifest.json`: where a generation comes from.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::generation::GenerationId;

/// Preference pairs by category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriageCounts {
    /// The policy turns the preference around.
    pub invert: usize,
    /// Both responses violate.
    pub punish: usize,
    /// The preference stands.
    pub retain: usize,
}

/// Everything a generation was made from, and what the gate said.
///
/// `generation`, `adapter_sha256`, `created_at` and `realign_version` are filled in by the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The generation's id.
    #[serde(default)]
    pub generation: Option<GenerationId>,
    /// The generation that served when this one was trained.
    pub parent: Option<GenerationId>,
    /// The base model's hash.
    pub base_hash: String,
    /// The base model's name, as `base_model_name_or_path` gives it.
    pub base_name: String,
    /// Revision of the policy set.
    pub policy_revision: Option<String>,
    /// Digest of the preference data.
    pub dataset_digest: Option<String>,
    /// The training recipe, resolved.
    pub recipe: Value,
    /// Seed of the run.
    pub seed: u64,
    /// Hash of all inputs.
    pub inputs_hash: String,
    /// Triage counts.
    pub triage: TriageCounts,
    /// The gate's report.
    pub gate: Value,
    /// SHA-256 of the tensor file.
    #[serde(default)]
    pub adapter_sha256: String,
    /// When it was published, in Unix seconds.
    #[serde(default)]
    pub created_at: u64,
    /// The version of realign that wrote it.
    #[serde(default)]
    pub realign_version: String,
}

/// Seconds since 1970; 0 on a machine whose clock stands before that.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
