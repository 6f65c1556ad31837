//! `manifest.json`: where a generation comes from.

use realign_core::TriageCounts;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::generation::GenerationId;
use crate::Fingerprint;

/// Everything a generation was made from, and the gate's verdict.
///
/// `generation`, `adapter_sha256`, `created_at` and `realign_version` are filled in by the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The generation's id; see [`content_id`](super::content_id).
    #[serde(default)]
    pub generation: Option<GenerationId>,
    /// The generation that served when this one was trained.
    pub parent: Option<GenerationId>,
    /// The base model's hash, 64 hex digits.
    pub base_hash: String,
    /// The base model's name, as `base_model_name_or_path` gives it.
    pub base_name: String,
    /// Revision of the policy set it was trained for.
    pub policy_revision: Option<String>,
    /// Digest of the preference data it was trained on.
    pub dataset_digest: Option<String>,
    /// The training recipe, resolved.
    pub recipe: Value,
    /// What computed the steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_by: Option<TrainedBy>,
    /// Seed of the training run.
    pub seed: u64,
    /// Hash of all inputs.
    pub inputs_hash: String,
    /// Preference pairs per triage category.
    pub triage: TriageCounts,
    /// What the server gathered to train on: prompts and pairs by source, and the rules it was for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gathered: Option<Value>,
    /// The gate's report: measurements and verdict, or why there are none.
    pub gate: Value,
    /// What the server computed with it that wrote it into a shared store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
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

/// What computed an adapter's steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedBy {
    /// As `train.engine` names it: `local`, or `tinker`.
    pub engine: String,
    /// The address of a distributed engine, without credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Name of the recipe of an adapter that was not trained here.
const IMPORTED: &str = "imported";

impl Manifest {
    /// The recipe of an imported adapter, with the base model that it names itself.
    pub fn imported_recipe(base_model: Option<&str>) -> Value {
        serde_json::json!({"name": IMPORTED, "base_model": base_model})
    }

    /// Whether an operator imported the adapter, so that it cannot be trained again.
    pub fn is_imported(&self) -> bool {
        self.recipe["name"] == IMPORTED
    }
}
