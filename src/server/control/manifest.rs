//! Writes a trained adapter to the store, with its manifest and loss curve.

use serde_json::Value;

use realign_align::gather;
use realign_align::pipeline::Inputs;
use realign_align::train::curve::{LINES_FILE, PLOT_FILE};
use realign_align::train::{Curve, Recipe};
use realign_core::TriageCounts;
use realign_engine::adapter::generation::GenerationId;
use realign_engine::adapter::{AdapterError, AdapterStore, Manifest, TrainedBy};
use realign_model::{LoadedModel, LoraWeights};

/// Everything that an adapter was trained from, as recorded in its manifest.
pub struct Origin<'a> {
    /// The generation that was current during training.
    pub parent: Option<GenerationId>,
    /// The base model.
    pub loaded: &'a LoadedModel,
    /// Preference data and policies.
    pub inputs: &'a Inputs,
    /// The training recipe.
    pub recipe: &'a Recipe,
    /// Number of preference pairs in each category.
    pub triage: TriageCounts,
    /// What was gathered, if anything was.
    pub gathered: Option<&'a gather::Report>,
    /// What computed the steps.
    pub trained_by: TrainedBy,
}

impl Origin<'_> {
    /// Writes an adapter to the store, with `gate` as the gate's report, and returns its id.
    ///
    /// # Errors
    /// [`AdapterError`].
    pub fn publish(
        &self,
        store: &AdapterStore,
        weights: &LoraWeights,
        curve: &Curve,
        gate: Value,
    ) -> Result<GenerationId, AdapterError> {
        let files = [(LINES_FILE, curve.jsonl()), (PLOT_FILE, curve.svg())];
        store.write_beside(weights, self.manifest(gate), &files)
    }

    fn manifest(&self, gate: Value) -> Manifest {
        Manifest {
            parent: self.parent.clone(),
            base_hash: self.loaded.base_hash.to_string(),
            base_name: self.loaded.name.to_string(),
            policy_revision: Some(self.inputs.policy_revision.clone()),
            dataset_digest: Some(self.inputs.dataset.digest.clone()),
            // A recipe is plain data, which always serialises.
            recipe: serde_json::to_value(self.recipe).unwrap_or_default(),
            trained_by: Some(self.trained_by.clone()),
            seed: self.recipe.seed,
            inputs_hash: self.inputs.hash.clone(),
            triage: self.triage,
            // A report is plain data, which always serialises.
            gathered: self
                .gathered
                .and_then(|report| serde_json::to_value(report).ok()),
            gate,
            ..Manifest::default()
        }
    }
}
