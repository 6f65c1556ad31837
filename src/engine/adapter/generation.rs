//! A generation: one immutable (base model, adapter) couple that can produce responses.

use std::fmt;
use std::sync::Arc;

use realign_model::lora::LoraWeights;

/// The first 12 hex digits of the SHA-256 over base hash and adapter content.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct GenerationId(pub String);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a sequence leases when it is accepted, and keeps to its last token.
///
/// Leases are `Arc` clones: the registry forgets a retired generation, and its memory goes when
/// the last sequence that holds it ends.
#[derive(Debug)]
pub struct Generation {
    /// Content hash, also the key of everything cached from this generation's compute.
    pub id: GenerationId,
    /// The base model's hash (64 hex digits), whose first 8 digits stand in `system_fingerprint`.
    pub base_hash: String,
    /// Revision of the policy set it was trained for; `None` for the base itself.
    pub policy_revision: Option<String>,
    /// The adapter's weights on the serving device; `None` is the base model.
    pub adapter: Option<Arc<LoraWeights>>,
}

impl Generation {
    /// The value of `system_fingerprint`: `fp_<base8>_<generation12>`.
    pub fn fingerprint(&self) -> String {
        let base8: String = self.base_hash.chars().take(8).collect();
        format!("fp_{base8}_{}", self.id)
    }
}
