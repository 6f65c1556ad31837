//! What a realignment gives the learning pipeline, and what it makes of the result.

use std::sync::Arc;

use super::realign::{Realignment, Stop, failed};
use realign_align::pipeline::{
    Corrector, Learner, PipelineError, Renderer, Run, Selection, warning,
};
use realign_align::preferences::Pair;
use realign_align::train::Trained;
use realign_align::train::examples::TokenPair;
use realign_align::triage::Triage;
use realign_core::TriageCounts;
use realign_engine::adapter::generation::{Generation, StagedAdapter};
use realign_engine::adapter::{self, content_id};
use realign_model::LoraWeights;

impl Realignment<'_> {
    /// Logs what is likely to go wrong with data of these categories.
    pub(super) fn warn(&self, counts: TriageCounts) {
        let corrected = self.context.config.train.corrective.is_some();
        if let Some(warning) = warning(counts, corrected) {
            tracing::warn!(id = self.job.id, "{warning}");
        }
    }

    /// The pairs to train on, as token ids.
    pub(super) fn select(&self, triage: &Triage) -> Result<Vec<TokenPair>, Stop> {
        let context = self.context;
        let spec = context.config.train.corrective.as_ref();
        let corrector = spec.map(|spec| Corrector {
            spec,
            policies: &self.job.policies,
            oracle: &self.oracle,
            cache: context.db.clone(),
        });
        let selection = Selection {
            dataset: &self.job.inputs.dataset.pairs,
            categories: &triage.categories(),
            train: &self.job.inputs.train,
        };
        let selected = selection.select(&context.loaded, &context.recipe, corrector);
        let selected = selected.map_err(failed)?;
        let corrections = selected.corrections;
        if corrections.asked > 0 {
            tracing::info!(
                id = self.job.id,
                asked = corrections.asked,
                corrected = corrections.written,
                calls = corrections.usage.calls,
                cached = corrections.usage.cached,
                "corrective responses"
            );
        }
        for skipped in &selected.skipped {
            tracing::warn!(
                pair = skipped.id,
                reason = skipped.reason,
                "skipping a training pair"
            );
        }
        Ok(selected.pairs)
    }

    pub(super) fn prompt(&self, pair: &Pair) -> Result<Vec<u32>, Stop> {
        let renderer = Renderer::new(&self.context.loaded);
        renderer.prompt(pair).map_err(failed)
    }

    /// Runs the pipeline.
    pub(super) fn learn(&self, learner: &Learner, pairs: &[TokenPair]) -> Result<Trained, Stop> {
        let run = Run {
            pairs,
            recipe: &self.context.recipe,
            weights: None,
        };
        let candidate = learner.run(&run, self.work).map_err(|error| match error {
            PipelineError::Cancelled => Stop::Asked,
            other => failed(other),
        })?;
        Ok(candidate.trained)
    }

    /// An adapter as a generation on the serving device.
    pub(super) fn stage(&self, weights: LoraWeights) -> Result<Arc<Generation>, Stop> {
        let base_hash = self.context.loaded.base_hash.to_string();
        let backend = &*self.context.loaded.backend;
        let spec = backend.spec();
        adapter::validate(&weights, &|site| spec.site_shape(site)).map_err(failed)?;
        Ok(Arc::new(Generation {
            id: content_id(&base_hash, &weights).map_err(failed)?,
            base_hash,
            policy_revision: Some(self.job.policies.revision().into()),
            adapter: Some(StagedAdapter::new(backend, weights).map_err(failed)?),
        }))
    }
}
