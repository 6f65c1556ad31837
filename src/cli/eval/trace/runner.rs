//! Runs a cell: labels → reference → impact → train → measure. What several variants of a seed
//! share is computed once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::inputs::Inputs;
use super::measure::Measurer;
use crate::CliError;
use crate::progress::Progress;
use realign_align::learn::{Learner, RawScores};
use realign_align::train::examples::TokenPair;
use realign_align::train::{Observer, Recipe, StepReport, TrainExample, Trained, train};
use realign_engine::adapter::generation::{Generation, StagedAdapter};
use realign_engine::adapter::{base_id, content_id};
use realign_lab::evaluation::variants::{unlearning_weight, with_as_many_steps};
use realign_lab::evaluation::{Cell, Labels, TrainingFigures, Variant, memory};
use realign_model::LoraWeights;

/// Reference log-probabilities of the pairs under one set of labels.
struct Referenced {
    /// What they depend on.
    key: (Labels, Option<u64>, usize),
    pairs: Vec<TokenPair>,
    examples: Vec<TrainExample>,
    seconds: f64,
}

/// Runs cells one after another.
pub(super) struct Runner<'a> {
    inputs: &'a Inputs,
    measurer: Measurer<'a>,
    progress: Progress,
    /// Of the labels last used: more would make the memory of a cell that of its neighbours.
    referenced: Option<Referenced>,
    /// By labels, seed and what else scores depend on; with the seconds they took.
    scores: BTreeMap<(Labels, String), (RawScores, f64)>,
}

impl<'a> Runner<'a> {
    pub fn new(inputs: &'a Inputs, progress: Progress) -> Result<Self, CliError> {
        Ok(Self {
            inputs,
            measurer: Measurer::start(inputs)?,
            progress,
            referenced: None,
            scores: BTreeMap::new(),
        })
    }

    /// Computes a cell. A run that diverges or learns nothing is a cell too, with the reason.
    pub fn run(&mut self, variant: Variant, seed: u64) -> Result<Cell, CliError> {
        memory::reset_peak();
        let started = Instant::now();
        let mut cell = Cell {
            variant: variant.name().into(),
            seed,
            fingerprint: self.inputs.fingerprint(variant, seed),
            ..Cell::default()
        };
        let adapter = match variant.trains() {
            false => Ok(None),
            true => self.train(variant, seed, &mut cell).map(Some),
        };
        match adapter {
            Ok(adapter) => {
                let generation = self.generation(adapter)?;
                let began = Instant::now();
                cell.measured = Some(self.measurer.measure(&generation)?);
                cell.seconds.measure = began.elapsed().as_secs_f64();
            }
            Err(why) => cell.failure = Some(why),
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
    ) -> Result<LoraWeights, String> {
        let recipe = Recipe {
            seed,
            ..variant.recipe(&self.inputs.recipe)
        };
        self.reference(variant.labels(), &recipe)?;
        let Some(referenced) = &self.referenced else {
            return Err("the reference is missing".into());
        };
        cell.seconds.reference = referenced.seconds;
        let mut examples = referenced.examples.clone();
        let clamped = match variant.scored() {
            true => {
                let (raw, seconds) = self.score(variant.labels(), &recipe)?;
                cell.seconds.impact = seconds;
                let weights = self.learner(&recipe).weigh(&mut examples, &raw);
                Some(weights.map_err(|e| e.to_string())?.clamped_ratio)
            }
            false => None,
        };
        if variant.labels() == Labels::Unlearned
            && let Some(referenced) = &self.referenced
        {
            for (example, pair) in examples.iter_mut().zip(&referenced.pairs) {
                example.weight = unlearning_weight(pair);
            }
        }
        let recipe = with_as_many_steps(&recipe, examples.len(), self.inputs.pairs.len());
        let began = Instant::now();
        let trained = self.learn(&recipe, &examples)?;
        cell.seconds.train = began.elapsed().as_secs_f64();
        cell.training = Some(figures(&trained, examples.len(), clamped));
        Ok(trained.weights)
    }

    fn learner<'r>(&'r self, recipe: &'r Recipe) -> Learner<'r> {
        Learner {
            loaded: &self.inputs.loaded,
            recipe,
        }
    }

    fn reference(&mut self, labels: Labels, recipe: &Recipe) -> Result<(), String> {
        let lowest = recipe.lowest_layer(self.inputs.loaded.spec().layers);
        let seed = labels.depend_on_seed().then_some(recipe.seed);
        let key = (labels, seed, lowest);
        if self.referenced.as_ref().is_some_and(|r| r.key == key) {
            return Ok(());
        }
        // The old one's memory goes before the new one's comes.
        self.referenced = None;
        let began = Instant::now();
        let pairs = labels.apply(&self.inputs.pairs, recipe.seed);
        let bar = self.progress.bar(Learner::passes(&pairs), "reference");
        let learner = Learner {
            loaded: &self.inputs.loaded,
            recipe,
        };
        // Some variants on these labels are not scored, so scoring cannot bring the conflicts'.
        let examples = learner.reference(&pairs, true, || {
            bar.inc(1);
            true
        });
        let examples = examples.map_err(|e| e.to_string())?.unwrap_or_default();
        bar.finish_and_clear();
        self.referenced = Some(Referenced {
            key,
            pairs,
            examples,
            seconds: began.elapsed().as_secs_f64(),
        });
        Ok(())
    }

    fn score(&mut self, labels: Labels, recipe: &Recipe) -> Result<(RawScores, f64), String> {
        // Where all margins are 0, β of the sigmoid form scales every score alike.
        let beta = match recipe.preference_loss {
            realign_align::train::PreferenceLoss::Sigmoid => 0.0,
            realign_align::train::PreferenceLoss::Ipo => recipe.beta,
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
        let key = (labels, depends.to_string());
        if let Some(known) = self.scores.get(&key) {
            return Ok(known.clone());
        }
        let learner = Learner {
            loaded: &self.inputs.loaded,
            recipe,
        };
        let Some(referenced) = &mut self.referenced else {
            return Err("scores need the reference".into());
        };
        let began = Instant::now();
        let passes = 3 * Learner::passes(&referenced.pairs);
        let bar = self.progress.bar(passes, "impact");
        let examples = &mut referenced.examples;
        let scored = learner.score(&referenced.pairs, examples, || {
            bar.inc(1);
            true
        });
        let scored = scored.map_err(|e| e.to_string())?.unwrap_or_default();
        bar.finish_and_clear();
        let known = (scored, began.elapsed().as_secs_f64());
        self.scores.insert(key, known.clone());
        Ok(known)
    }

    fn learn(&self, recipe: &Recipe, examples: &[TrainExample]) -> Result<Trained, String> {
        let steps = realign_align::train::run::steps(examples.len(), recipe);
        let watcher = Watcher(self.progress.bar(steps, "train"));
        let backend = &*self.inputs.loaded.backend;
        let trained = train(backend, examples, recipe, None, &watcher);
        watcher.0.finish_and_clear();
        trained.map_err(|error| error.to_string())
    }
}

fn figures(trained: &Trained, pairs: usize, clamped: Option<f64>) -> TrainingFigures {
    let curve = &trained.curve;
    let loss = |record: Option<&realign_align::train::StepRecord>| record.map_or(0.0, |r| r.total);
    TrainingFigures {
        pairs,
        steps: trained.steps,
        tokens_per_second: curve.tokens_per_second(),
        clamped,
        losses: [loss(curve.0.first()), loss(curve.0.last())],
    }
}

/// Moves a bar with every step.
struct Watcher(indicatif::ProgressBar);

impl Observer for Watcher {
    fn proceed(&self) -> bool {
        true
    }

    fn on_step(&self, report: &StepReport) {
        self.0.inc(1);
        self.0
            .set_message(format!("loss {:.3}", report.loss.total()));
    }
}
