//! What a realignment gives the learning pipeline, and what it makes of the result.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::exam::Watch;
use super::realign::{Realignment, Stop, failed, hindered};
use super::work::EXAMINED;
use crate::state::Report;
use realign_align::exam::{Exam, ExamError, ReviewQuestions, Sources};
use realign_align::pipeline::{Failures, Learner, PipelineError, Review, Run, Selection, warning};
use realign_align::train::examples::TokenPair;
use realign_align::train::{Skipped, TrainError, Trained};
use realign_align::triage::Triage;
use realign_core::{Category, TriageCounts};
use realign_engine::adapter::generation::{Generation, StagedAdapter};
use realign_engine::adapter::{self, content_id};
use realign_model::LoraWeights;

/// Skipped lines and pairs that a report names.
const SKIPPED_SHOWN: usize = 20;

impl Realignment<'_> {
    /// Logs what is likely to go wrong with data of these categories.
    pub(super) fn warn(&self, counts: TriageCounts) {
        let corrected = self.context.config.train.corrective.is_some();
        if let Some(warning) = warning(counts, corrected) {
            tracing::warn!(id = self.job.id, "{warning}");
        }
    }

    /// The pairs to train on, as token ids, with controls that keep the base's answers.
    pub(super) fn select(&self, triage: &Triage) -> Result<Vec<TokenPair>, Stop> {
        let context = self.context;
        let selection = Selection {
            dataset: &self.job.inputs.dataset.pairs,
            categories: &triage.categories(),
            train: &self.job.inputs.train,
        };
        let recipe = self.recipe_beside_gathered();
        let selected = selection.select(&context.loaded, &recipe, self.corrector());
        let mut selected = selected.map_err(failed)?;
        let gathered = self.select_gathered()?;
        selected.pairs.extend(gathered.pairs);
        selected.skipped.extend(gathered.skipped);
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
        self.report_triage(triage, &selected.skipped);
        let mut pairs = selected.pairs;
        let controls = self.controls(triage, &pairs)?;
        pairs.extend(controls);
        Ok(pairs)
    }

    /// The base's own answers to prompts that no rule is about, as pairs that keep them.
    fn controls(&self, triage: &Triage, pairs: &[TokenPair]) -> Result<Vec<TokenPair>, Stop> {
        let context = self.context;
        // In place of the base's answer: what the policies want said elsewhere.
        let preferred = pairs.iter().find_map(|pair| match pair.category {
            Category::Invert => Some(&pair.rejected),
            Category::Punish => Some(&pair.chosen),
            Category::Retain => None,
        });
        let Some(instead) = preferred.filter(|_| context.recipe.controls > 0) else {
            return Ok(Vec::new());
        };
        let sources = Sources {
            policies: &self.job.policies,
            pairs: &self.job.inputs.dataset.pairs,
            triage,
            holdout: &self.job.inputs.holdout,
            live: &[],
        };
        let asked = Exam::training_controls(sources, context.recipe.controls);
        let proceed = || self.work.go_on();
        let watch = Watch {
            proceed: &proceed,
            answered: &self.work.counting(asked.len(), (EXAMINED, 1.0)),
        };
        let found = context.training_pairs(&self.oracle, &asked, instead, watch);
        found.map_err(|error| match error {
            ExamError::Cancelled => Stop::Asked,
            other => failed(other),
        })
    }

    /// Stores what triage found, and what of the data is not used.
    pub(super) fn report_triage(&self, triage: &Triage, skipped: &[Skipped]) {
        let counts = triage.counts;
        let dataset = &self.job.inputs.dataset;
        let lines = dataset.skipped.iter();
        let lines = lines.map(|line| json!({ "what": line.place(), "reason": line.reason }));
        let pairs = skipped
            .iter()
            .map(|pair| json!({ "what": pair.id, "reason": pair.reason }));
        let shown: Vec<Value> = lines.chain(pairs).take(SKIPPED_SHOWN).collect();
        let report = json!({
            "invert": counts.invert, "punish": counts.punish, "retain": counts.retain,
            "gap_ratio": triage.gap_ratio,
            "skipped": {
                "lines": dataset.skipped.len(), "duplicates": dataset.duplicates,
                "pairs": skipped.len(), "shown": shown,
            },
            "judges": self.oracle.usage(), "gathered": self.gathered.report,
        });
        let db = &self.context.db;
        self.context
            .log(db.put_report(&self.job.id, Report::Triage, &report));
    }

    /// Runs the pipeline, with further rounds for what the candidate gets wrong.
    pub(super) fn learn(&self, learner: &Learner, pairs: &[TokenPair]) -> Result<Trained, Stop> {
        let run = Run {
            pairs,
            recipe: &self.context.recipe,
            weights: None,
        };
        let learnt = learner.run_rounds(&run, self, self.work);
        let (candidate, _) = learnt.map_err(|error| match error {
            PipelineError::Cancelled => Stop::Asked,
            error @ PipelineError::Train(TrainError::Checkpoint(_)) => hindered(error),
            PipelineError::Train(TrainError::Remote(error)) if error.may_pass() => hindered(error),
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

impl Review for Realignment<'_> {
    fn review(
        &self,
        weights: &LoraWeights,
        pairs: &[TokenPair],
        limit: f64,
    ) -> Result<Failures, PipelineError> {
        let stopped = |stop: Stop| match stop {
            Stop::Failed(why) | Stop::Hindered(why) => PipelineError::Review(why),
            Stop::Asked | Stop::Rejected { .. } => PipelineError::Cancelled,
        };
        let began = Instant::now();
        let candidate = self.stage(weights.clone()).map_err(stopped)?;
        self.make_ready(&candidate).map_err(stopped)?;
        let dataset = self.job.inputs.dataset.pairs.iter();
        let gathered = self.gathered.pairs.iter().map(|gathered| &gathered.pair);
        let prompts: HashMap<&str, &str> = dataset
            .chain(gathered)
            .map(|pair| (pair.id.0.as_str(), pair.prompt_text()))
            .collect();
        let proceed = || self.work.go_on();
        let questions = ReviewQuestions {
            pairs,
            prompts: &prompts,
            further: &self.further,
            limit,
        };
        let watch = Watch {
            proceed: &proceed,
            answered: &self.work.counting(questions.answers(), self.work.review()),
        };
        let found = self
            .context
            .failures((&self.oracle, &candidate), questions, watch);
        self.context.engine.release(&candidate.id);
        let failures = found.map_err(|error| match error {
            ExamError::Cancelled => PipelineError::Cancelled,
            other => PipelineError::Review(other.to_string()),
        })?;
        tracing::info!(
            id = self.job.id,
            governed = failures.governed.0,
            violating = failures.governed.1,
            controls = failures.controls.0,
            diverted = failures.controls.1,
            seconds = began.elapsed().as_secs_f64(),
            "what the candidate gets wrong of what it was trained on"
        );
        Ok(failures)
    }
}
