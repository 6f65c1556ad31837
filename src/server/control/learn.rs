//! The learning half of a realignment: pairs → reference → impact → adapter, with what the state
//! database remembers of it.

use std::path::PathBuf;

use super::corrective::{Corrections, corrections, corrective};
use super::realign::{Realignment, Stop, failed};
use crate::state::ScoreRow;
use realign_align::learn::{Learner, RawScores, thin};
use realign_align::oracle::Oracle;
use realign_align::preferences::Pair;
use realign_align::train::examples::TokenPair;
use realign_align::train::{self, TrainError, TrainExample, WeightScale};
use realign_align::triage::Triage;

impl Realignment<'_> {
    pub(super) fn learner(&self) -> Learner<'_> {
        Learner {
            loaded: &self.context.loaded,
            recipe: &self.context.recipe,
        }
    }

    /// The training pairs as token ids, thinned to the recipe's `max_pairs`.
    pub(super) fn token_pairs(&self, triage: &Triage) -> Result<Vec<TokenPair>, Stop> {
        let dataset = &self.job.inputs.dataset.pairs;
        let category = |index: usize| triage.items[index].category;
        let limit = self.context.recipe.max_pairs;
        let kept = thin(&self.job.inputs.train, category, dataset, limit);
        let corrected = self.corrections(&kept, triage)?;
        let pairs = kept.iter().map(|i| {
            let response = corrected.responses.get(i).map(String::as_str);
            (&dataset[*i], category(*i), response)
        });
        let prepared = self.learner().corrected_pairs(pairs).map_err(failed)?;
        for skipped in &prepared.skipped {
            tracing::warn!(
                pair = skipped.id,
                reason = skipped.reason,
                "skipping a training pair"
            );
        }
        Ok(prepared.pairs)
    }

    /// Compliant responses to the PUNISH pairs' prompts, if somebody writes them.
    fn corrections(&self, kept: &[usize], triage: &Triage) -> Result<Corrections, Stop> {
        let context = self.context;
        let spec = corrective(&context.config.train).map_err(failed)?;
        let oracle: &dyn Oracle = &self.oracle;
        let indices = kept.iter().map(|&i| (i, triage.items[i].category));
        let made = corrections(
            spec.as_ref(),
            (&self.job.policies, oracle),
            &self.job.inputs.dataset.pairs,
            indices,
            context.db.clone(),
        );
        let made = made.map_err(failed)?;
        if made.asked > 0 {
            tracing::info!(
                id = self.job.id,
                asked = made.asked,
                corrected = made.responses.len(),
                calls = made.usage.calls,
                cached = made.usage.cached,
                "corrective responses"
            );
        }
        Ok(made)
    }

    pub(super) fn prompt(&self, pair: &Pair) -> Result<Vec<u32>, Stop> {
        self.learner().prompt(pair).map_err(failed)
    }

    /// Reference log-probabilities of all pairs, and the conflicts' weights.
    pub(super) fn impact(&self, pairs: &[TokenPair]) -> Result<Vec<TrainExample>, Stop> {
        let learner = self.learner();
        let passes = Learner::passes(pairs);
        let uniform = self.context.recipe.weight_scale == WeightScale::Uniform;
        let known = self
            .context
            .log(self.context.db.scores(&self.job.inputs.hash))
            .and_then(|rows| known_scores(pairs, &rows));
        let conflicts = uniform || known.is_some();
        let mut examples = learner
            .reference(pairs, conflicts, self.work.batches(passes, (0.0, 0.3)))
            .map_err(failed)?
            .ok_or(Stop::Asked)?;
        if uniform {
            return Ok(examples);
        }
        let raw = match known {
            Some(raw) => raw,
            None => learner
                .score(
                    pairs,
                    &mut examples,
                    self.work.batches(3 * passes, (0.3, 1.0)),
                )
                .map_err(failed)?
                .ok_or(Stop::Asked)?,
        };
        let weights = learner.weigh(&mut examples, &raw).map_err(failed)?;
        tracing::info!(
            id = self.job.id,
            conflicts = raw.len(),
            clamped = weights.clamped_ratio,
            "impact"
        );
        let rows: Vec<ScoreRow> = raw
            .iter()
            .zip(&weights.values)
            .map(|((index, raw), weight)| ScoreRow {
                pair_id: examples[*index].id.clone(),
                raw: *raw,
                weight: *weight,
            })
            .collect();
        self.context
            .log(self.context.db.put_scores(&self.job.inputs.hash, &rows));
        Ok(examples)
    }

    pub(super) fn train(&self, examples: &[TrainExample]) -> Result<train::Trained, Stop> {
        let dir = self.checkpoints();
        train::train(
            &*self.context.loaded.backend,
            examples,
            &self.context.recipe,
            Some(&dir),
            self.work,
        )
        .map_err(|error| match error {
            TrainError::Cancelled => Stop::Asked,
            other => failed(other),
        })
    }

    pub(super) fn checkpoints(&self) -> PathBuf {
        self.context
            .config
            .paths
            .state
            .join("checkpoints")
            .join(&self.job.inputs.hash[..16])
    }
}

/// The stored scores of exactly these conflicts, or `None`.
fn known_scores(pairs: &[TokenPair], rows: &[ScoreRow]) -> Option<RawScores> {
    let by_id: std::collections::HashMap<&str, f64> =
        rows.iter().map(|r| (r.pair_id.as_str(), r.raw)).collect();
    let conflicts = pairs
        .iter()
        .enumerate()
        .filter(|(_, pair)| pair.category.is_conflict());
    conflicts
        .map(|(i, pair)| by_id.get(pair.id.as_str()).map(|raw| (i, *raw)))
        .collect()
}
