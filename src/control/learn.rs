//! The learning half of a realignment: pairs → reference → impact → adapter.

use std::path::PathBuf;

use super::realign::{Realignment, Stop, failed};
use crate::impact::{self, score::At};
use crate::model::{ChatMessage, ChatRole, Model};
use crate::preferences::{Pair, Role};
use crate::state::ScoreRow;
use crate::train::examples::{Reference, TokenPair, prepare, with_reference};
use crate::train::run::ROW_BUDGET;
use crate::train::{self, TrainError, TrainExample, TrainableLora, WeightScale};
use crate::triage::{Category, Triage};

impl Realignment<'_> {
    /// The training pairs as token ids, thinned to the recipe's `max_pairs`.
    pub(super) fn token_pairs(&self, triage: &Triage) -> Result<Vec<TokenPair>, Stop> {
        let dataset = &self.job.inputs.dataset.pairs;
        let kept = thin(
            &self.job.inputs.train,
            triage,
            dataset,
            self.context.recipe.max_pairs,
        );
        let render = |&index: &usize| self.render(&dataset[index], triage.items[index].category);
        let pairs = kept.iter().map(render).collect::<Result<Vec<_>, Stop>>()?;
        let prepared = prepare(pairs, self.context.recipe.max_tokens);
        for skipped in &prepared.skipped {
            tracing::warn!(
                pair = skipped.id,
                reason = skipped.reason,
                "skipping a training pair"
            );
        }
        Ok(prepared.pairs)
    }

    pub(super) fn render(&self, pair: &Pair, category: Category) -> Result<TokenPair, Stop> {
        let loaded = &self.context.loaded;
        let response = |text: &str| {
            loaded
                .chat
                .encode_response(&loaded.tokenizer, text)
                .map_err(failed)
        };
        Ok(TokenPair {
            id: pair.id.0.clone(),
            category,
            prompt: self.prompt(pair)?,
            chosen: response(&pair.chosen)?,
            rejected: response(&pair.rejected)?,
        })
    }

    pub(super) fn prompt(&self, pair: &Pair) -> Result<Vec<u32>, Stop> {
        let loaded = &self.context.loaded;
        let messages: Vec<ChatMessage> = pair
            .prompt
            .iter()
            .map(|m| ChatMessage::new(chat_role(m.role), &m.content))
            .collect();
        loaded
            .chat
            .encode_chat(&loaded.tokenizer, &messages, true)
            .map_err(|e| failed(format!("{}: {e}", pair.source)))
    }

    /// Reference log-probabilities of all pairs, and the conflicts' weights.
    pub(super) fn impact(
        &self,
        model: &Model,
        pairs: &[TokenPair],
    ) -> Result<Vec<TrainExample>, Stop> {
        let layouts: Vec<_> = pairs.iter().map(TokenPair::preference).collect();
        let passes = crate::model::packing::group_by_rows(&layouts, ROW_BUDGET).len();
        let mut proceed = self.work.batches(passes, (0.0, 0.3));
        let mut examples = with_reference(self.reference(model), pairs, ROW_BUDGET, |_| proceed())
            .map_err(failed)?
            .ok_or(Stop::Asked)?;
        let recipe = &self.context.recipe;
        if recipe.weight_scale == WeightScale::Uniform {
            return Ok(examples);
        }
        let known = self
            .context
            .log(self.context.db.scores(&self.job.inputs.hash))
            .unwrap_or_default();
        let raw: Vec<(usize, f64)> = match known_scores(&examples, &known) {
            Some(raw) => raw,
            None => self.score(model, pairs, &examples, 3 * passes)?,
        };
        let scores: Vec<f64> = raw.iter().map(|(_, s)| *s).collect();
        let weights = impact::weigh(&scores, recipe.gamma, recipe.weight_scale).map_err(failed)?;
        tracing::info!(
            id = self.job.id,
            conflicts = scores.len(),
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
        for ((index, _), weight) in raw.iter().zip(weights.values) {
            examples[*index].weight = weight;
        }
        Ok(examples)
    }

    pub(super) fn reference<'a>(&self, model: &'a Model) -> Reference<'a> {
        let lowest_layer = self.context.recipe.lowest_layer(model.spec.layers);
        Reference {
            model,
            ops: self.ops(),
            lowest_layer,
        }
    }

    pub(super) fn score(
        &self,
        model: &Model,
        pairs: &[TokenPair],
        examples: &[TrainExample],
        passes: usize,
    ) -> Result<Vec<(usize, f64)>, Stop> {
        let recipe = &self.context.recipe;
        let projections = recipe.projections().map_err(failed)?;
        let fresh = TrainableLora::init(&model.spec, recipe, &projections, &model.device)
            .map_err(failed)?
            .snapshot()
            .map_err(failed)?;
        let at = At {
            model,
            ops: self.ops(),
            adapter: &fresh,
            objective: recipe.into(),
        };
        let gold = impact::gold_batch(pairs, recipe.gold_pairs, recipe.seed);
        let proceed = self.work.batches(passes, (0.3, 1.0));
        let scored = impact::directional(at, examples, &gold, true, proceed)
            .map_err(failed)?
            .ok_or(Stop::Asked)?;
        Ok(scored.index.into_iter().zip(scored.score).collect())
    }

    pub(super) fn train(
        &self,
        model: &Model,
        examples: &[TrainExample],
    ) -> Result<train::Trained, Stop> {
        let dir = self.checkpoints();
        train::train(
            model,
            self.ops(),
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

fn chat_role(role: Role) -> ChatRole {
    match role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
    }
}

/// The stored scores of exactly these conflicts, or `None`.
fn known_scores(examples: &[TrainExample], rows: &[ScoreRow]) -> Option<Vec<(usize, f64)>> {
    let by_id: std::collections::HashMap<&str, f64> =
        rows.iter().map(|r| (r.pair_id.as_str(), r.raw)).collect();
    let conflicts = examples
        .iter()
        .enumerate()
        .filter(|(_, e)| e.category.is_conflict());
    conflicts
        .map(|(i, e)| by_id.get(e.id.as_str()).map(|raw| (i, *raw)))
        .collect()
}

/// At most `limit` training pairs (0: all), each category in proportion, chosen by content id.
fn thin(train: &[usize], triage: &Triage, pairs: &[Pair], limit: usize) -> Vec<usize> {
    if limit == 0 || train.len() <= limit {
        return train.to_vec();
    }
    let mut kept = Vec::with_capacity(limit);
    for category in Category::ALL {
        let mut of: Vec<usize> = train
            .iter()
            .copied()
            .filter(|&i| triage.items[i].category == category)
            .collect();
        of.sort_by(|&a, &b| pairs[a].id.0.cmp(&pairs[b].id.0));
        of.truncate((of.len() * limit).div_ceil(train.len()));
        kept.extend(of);
    }
    kept.sort_unstable();
    kept
}
