//! Runs a cell: a variant's treatment through the learning pipeline, then every measurement. What
//! several variants of a seed share is computed once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::inputs::Inputs;
use super::measure::Measurer;
use crate::CliError;
use crate::progress::{Bars, Progress};
use realign_align::pipeline::{Cache, Candidate, Known, Learner, PipelineError, RawScores, Run};
use realign_align::train::examples::TokenPair;
use realign_align::train::{PreferenceLoss, Recipe, StepRecord, TrainExample};
use realign_engine::adapter::generation::{Generation, StagedAdapter};
use realign_engine::adapter::{base_id, content_id};
use realign_lab::evaluation::{Cell, Labels, TrainingFigures, Variant, memory};
use realign_model::LoraWeights;

/// Runs cells one after another.
pub(super) struct Runner<'a> {
    inputs: &'a Inputs,
    measurer: Measurer<'a>,
    progress: Progress,
    memory: Memory,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(inputs: &'a Inputs, progress: Progress) -> Result<Self, CliError> {
        Ok(Self {
            inputs,
            measurer: Measurer::start(inputs)?,
            progress,
            memory: Memory::default(),
        })
    }

    /// Computes a cell. A run that diverges or learns nothing is a cell too, with the reason.
    pub(crate) fn run(&mut self, variant: Variant, seed: u64) -> Result<Cell, CliError> {
        memory::reset_peak();
        let started = Instant::now();
        let mut cell = Cell {
            variant: variant.name().into(),
            seed,
            fingerprint: self.inputs.fingerprint(variant, seed),
            ..Cell::default()
        };
        let adapter = if variant.trains() {
            self.train(variant, seed, &mut cell).map(Some)
        } else {
            Ok(None)
        };
        match adapter {
            Ok(adapter) => {
                let generation = self.generation(adapter)?;
                let began = Instant::now();
                cell.measured = Some(self.measurer.measure(&generation)?);
                cell.seconds.measure = began.elapsed().as_secs_f64();
            }
            Err(why) => cell.failure = Some(why.to_string()),
        }
        cell.seconds.spent = started.elapsed().as_secs_f64();
        cell.peak_bytes = memory::peak_bytes();
        Ok(cell)
    }

    fn generation(&self, adapter: Option<LoraWeights>) -> Result<Arc<Generation>, CliError> {
        let loaded = &self.inputs.loaded;
        let base_hash = loaded.base_hash.to_string();
        let id = match &adapter {
            None => base_id(&base_hash),
            Some(weights) => content_id(&base_hash, weights)?,
        };
        let staged = |weights| StagedAdapter::new(&*loaded.backend, weights);
        let adapter = adapter.map(staged).transpose();
        let adapter = adapter.map_err(|error| CliError::Eval(error.to_string()))?;
        Ok(Arc::new(Generation {
            id,
            base_hash,
            policy_revision: None,
            adapter,
        }))
    }

    fn train(
        &mut self,
        variant: Variant,
        seed: u64,
        cell: &mut Cell,
    ) -> Result<LoraWeights, PipelineError> {
        let inputs = self.inputs;
        let learner = Learner::new(&inputs.loaded);
        let treatment = variant.treatment(&inputs.recipe, &inputs.pairs, seed);
        let run = Run {
            pairs: &treatment.pairs,
            recipe: &treatment.recipe,
            weights: treatment.weights.as_deref(),
        };
        let layers = inputs.loaded.spec().layers;
        let shared = self.memory.of(variant.labels(), run.recipe, layers);
        let bars = Bars::new(self.progress, &inputs.config.train).with_cache(&shared);
        let candidate = learner.run(&run, &bars);
        bars.clear();
        let candidate = candidate?;
        cell.seconds.reference = candidate.reference_seconds;
        cell.seconds.impact = candidate.impact_seconds;
        cell.seconds.train = candidate.train_seconds;
        cell.training = Some(figures(&candidate));
        Ok(candidate.trained.weights)
    }
}

fn figures(candidate: &Candidate) -> TrainingFigures {
    let curve = &candidate.trained.curve;
    let loss = |record: Option<&StepRecord>| record.map_or(0.0, |r| r.total);
    TrainingFigures {
        pairs: candidate.counts.total(),
        steps: candidate.trained.steps,
        tokens_per_second: curve.tokens_per_second(),
        clamped: candidate.clamped_ratio,
        losses: [loss(curve.0.first()), loss(curve.0.last())],
    }
}

/// What a reference depends on: labels, the seed where it decides them, the lowest adapted layer.
type ReferenceKey = (Labels, Option<u64>, usize);
/// What scores depend on: labels, the seed and parts of the recipe.
type ScoresKey = (Labels, String);

/// What one cell leaves for the next.
#[derive(Default)]
struct Memory {
    /// Of the labels last used: more would make the memory of a cell that of its neighbours.
    reference: RefCell<Option<(ReferenceKey, Known<Vec<TrainExample>>)>>,
    scores: RefCell<BTreeMap<ScoresKey, Known<RawScores>>>,
}

impl Memory {
    fn of(&self, labels: Labels, recipe: &Recipe, layers: usize) -> Shared<'_> {
        let seed = labels.depend_on_seed().then_some(recipe.seed);
        // Where all margins are 0, β of the sigmoid form scales every score alike.
        let beta = match recipe.preference_loss {
            PreferenceLoss::Sigmoid => 0.0,
            PreferenceLoss::Ipo => recipe.beta,
        };
        let depends = json!([
            recipe.seed,
            recipe.rank,
            recipe.alpha,
            recipe.targets,
            recipe.layer_share,
            recipe.layers,
            recipe.gold_pairs,
            recipe.preference_loss,
            beta,
        ]);
        Shared {
            memory: self,
            reference: (labels, seed, recipe.lowest_layer(layers)),
            scores: (labels, depends.to_string()),
        }
    }
}

/// What a cell shares with others.
struct Shared<'a> {
    memory: &'a Memory,
    reference: ReferenceKey,
    scores: ScoresKey,
}

impl Cache for Shared<'_> {
    fn shares_reference(&self) -> bool {
        true
    }

    fn reference(&self, _pairs: &[TokenPair]) -> Option<Known<Vec<TrainExample>>> {
        let mut kept = self.memory.reference.borrow_mut();
        match &*kept {
            Some((key, reference)) if *key == self.reference => Some(reference.clone()),
            _ => {
                // The old one's memory goes before the new one's comes.
                *kept = None;
                None
            }
        }
    }

    fn keep_reference(&self, reference: &Known<Vec<TrainExample>>) {
        let kept = (self.reference, reference.clone());
        *self.memory.reference.borrow_mut() = Some(kept);
    }

    fn scores(&self, _pairs: &[TokenPair]) -> Option<Known<RawScores>> {
        self.memory.scores.borrow().get(&self.scores).cloned()
    }

    fn keep_scores(&self, scores: &Known<RawScores>) {
        let mut kept = self.memory.scores.borrow_mut();
        kept.insert(self.scores.clone(), scores.clone());
    }
}
