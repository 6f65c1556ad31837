//! One run: reference → impact → training.

use std::sync::Arc;
use std::time::Instant;

use super::PipelineError;
use super::observer::{Known, Observer, Phase, RawScores};
use super::reference::MeasuredPairs;
use crate::impact::{self, score::At};
use crate::train::examples::TokenPair;
use crate::train::memory::MemoryPlan;
use crate::train::run::{ROW_BUDGET, TrainError, steps};
use crate::train::tinker::{Session, Tinker};
use crate::train::{self, Begin, Recipe, TrainExample, Trained, WeightScale};
use realign_core::TriageCounts;
use realign_model::packing::group_by_rows;
use realign_model::{Backend, LoadedModel, LoraWeights};

/// A base model that learning runs on.
#[derive(Clone, Debug)]
pub struct Learner {
    backend: Arc<dyn Backend>,
    engine: Option<Tinker>,
}

/// The inputs of a run, besides the base model.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The pairs, with the categories they are trained as.
    pub pairs: &'a [TokenPair],
    /// Hyperparameters.
    pub recipe: &'a Recipe,
    /// A weight for every pair, instead of impact weights for the conflicts.
    pub weights: Option<&'a [f64]>,
}

impl Run<'_> {
    /// Whether the conflicts get impact weights.
    fn is_scored(&self) -> bool {
        self.weights.is_none() && self.recipe.weight_scale != WeightScale::Uniform
    }

    /// Number of forward passes over all pairs. Scoring takes about three times as many.
    pub(super) fn passes(&self) -> usize {
        let layouts: Vec<_> = self.pairs.iter().map(TokenPair::preference).collect();
        group_by_rows(&layouts, ROW_BUDGET).len()
    }
}

/// The impact of a conflicting pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Index among the run's pairs.
    pub index: usize,
    /// Inner product with the gold gradient. If it is negative, learning from the pair would move
    /// the model away from the policy.
    pub raw: f64,
    /// Training weight, 0 or more.
    pub weight: f64,
}

/// Examples and scores of a run, before training.
#[derive(Clone, Debug, Default)]
pub struct Scored {
    /// The pairs with reference log-probabilities and weight, in the given order.
    pub examples: Vec<TrainExample>,
    /// The conflicts' scores, ascending by index; empty without impact weights.
    pub scores: Vec<Score>,
    /// Share of scores below zero; `None` without impact weights.
    pub clamped_ratio: Option<f64>,
    /// Seconds that computing the reference took.
    pub reference_seconds: f64,
    /// Seconds that computing the scores took.
    pub impact_seconds: f64,
}

/// The result of a run.
#[derive(Debug)]
pub struct Candidate {
    /// The adapter, its loss curve, and what ended the run.
    pub trained: Trained,
    /// Pairs it was trained on, by the category they were trained as.
    pub counts: TriageCounts,
    /// The conflicts' scores, ascending by index; empty without impact weights.
    pub scores: Vec<Score>,
    /// Share of scores below zero; `None` without impact weights.
    pub clamped_ratio: Option<f64>,
    /// Seconds that computing the reference took.
    pub reference_seconds: f64,
    /// Seconds that computing the scores took.
    pub impact_seconds: f64,
    /// Seconds of training.
    pub train_seconds: f64,
}

/// What a run begins with.
#[derive(Clone, Copy, Default)]
pub(super) struct Start<'a> {
    /// The adapter that it goes on from; a fresh one without.
    pub(super) weights: Option<&'a LoraWeights>,
    /// Pairs that the reference has measured.
    pub(super) measured: Option<&'a MeasuredPairs<'a>>,
}

impl Learner {
    /// Learns on the weights that serve.
    pub fn new(loaded: &LoadedModel) -> Self {
        Self::of(loaded.backend.clone())
    }

    /// Learns on a backend.
    pub(crate) fn of(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            engine: None,
        }
    }

    /// The same, with steps on a distributed engine if one is given. Impact weights are computed here.
    pub fn on(self, engine: Option<Tinker>) -> Self {
        Self { engine, ..self }
    }

    /// Whether a run can go on from an adapter that is there.
    pub(super) fn can_go_on(&self) -> bool {
        self.engine.is_none()
    }

    /// What passes run on.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Runs the pipeline to its end.
    ///
    /// # Errors
    /// [`PipelineError`]; [`PipelineError::Cancelled`] if the observer cancels the run.
    pub fn run(&self, run: &Run<'_>, observer: &dyn Observer) -> Result<Candidate, PipelineError> {
        let (candidate, _) = self.run_from(run, Start::default(), observer)?;
        Ok(candidate)
    }

    /// As [`Learner::run`], from what is there already. Also returns the pairs as they were measured;
    /// none from a distributed engine.
    pub(super) fn run_from(
        &self,
        run: &Run<'_>,
        start: Start<'_>,
        observer: &dyn Observer,
    ) -> Result<(Candidate, Vec<TrainExample>), PipelineError> {
        if let Some(engine) = &self.engine {
            return Ok((self.run_on(engine, run, observer)?, Vec::new()));
        }
        let mut scored = self.score_beside(run, start.measured, observer)?;
        observer.enter(Phase::Train, steps(scored.examples.len(), run.recipe));
        let began = Instant::now();
        let trained = train::train(
            self.backend(),
            &scored.examples,
            run.recipe,
            Begin {
                checkpoints: observer.checkpoints().as_deref(),
                weights: start.weights,
            },
            observer,
        )?;
        let examples = std::mem::take(&mut scored.examples);
        Ok((candidate(run, scored, trained, began), examples))
    }

    /// The pipeline with reference and steps on an engine, which begins with an adapter of its own.
    fn run_on(
        &self,
        engine: &Tinker,
        run: &Run<'_>,
        observer: &dyn Observer,
    ) -> Result<Candidate, PipelineError> {
        let mut scored = match run.is_scored() {
            true => self.score(run, observer)?,
            false => Scored {
                examples: run.pairs.iter().map(TrainExample::unmeasured).collect(),
                ..Scored::default()
            },
        };
        if let Some(weights) = run.weights {
            for (example, weight) in scored.examples.iter_mut().zip(weights) {
                example.weight = *weight;
            }
        }
        let began = Instant::now();
        let session = Session::open(engine, self.backend(), run.recipe, observer)?;
        let examples = std::mem::take(&mut scored.examples);
        // Scoring was that stage already.
        let is_shown = !run.is_scored();
        if is_shown {
            observer.enter(Phase::Reference, examples.len());
        }
        let progress = |done, units| {
            if is_shown {
                observer.on_pass(Phase::Reference, done, units);
            }
        };
        let measured = session.measure(examples, &progress)?;
        scored.reference_seconds += began.elapsed().as_secs_f64();
        observer.enter(Phase::Train, steps(measured.len(), run.recipe));
        let began = Instant::now();
        let trained = session.train(&measured)?;
        Ok(candidate(run, scored, trained, began))
    }

    /// Runs the pipeline up to the weights.
    ///
    /// # Errors
    /// Those of [`Learner::run`].
    pub fn score(&self, run: &Run<'_>, observer: &dyn Observer) -> Result<Scored, PipelineError> {
        self.score_beside(run, None, observer)
    }

    fn score_beside(
        &self,
        run: &Run<'_>,
        measured: Option<&MeasuredPairs<'_>>,
        observer: &dyn Observer,
    ) -> Result<Scored, PipelineError> {
        let cache = observer.cache();
        let known = if run.is_scored() {
            cache.scores(run.pairs)
        } else {
            None
        };
        // Scoring also runs the conflicts through the model, so it can provide their reference.
        let scoring_gives_reference =
            run.is_scored() && known.is_none() && !cache.shares_reference();
        self.check_memory(run, observer)?;
        let reference = match measured {
            Some(measured) => self.remaining(run, measured, observer)?,
            None => self.reference(run, !scoring_gives_reference, observer)?,
        };
        let mut scored = Scored {
            examples: reference.value,
            reference_seconds: reference.seconds,
            ..Scored::default()
        };
        if run.is_scored() {
            let raw = match known {
                Some(raw) => raw,
                None => self.raw_scores(run, &mut scored.examples, observer)?,
            };
            scored.impact_seconds = raw.seconds;
            weigh(&mut scored, &raw.value, run.recipe)?;
            observer.on_scored(&scored);
        }
        if let Some(weights) = run.weights {
            for (example, weight) in scored.examples.iter_mut().zip(weights) {
                example.weight = *weight;
            }
        }
        Ok(scored)
    }

    /// Refuses a run that does not fit, before its first pass. Gradients of the gold batch take what
    /// those of a step take, and derivatives along them less.
    fn check_memory(&self, run: &Run<'_>, observer: &dyn Observer) -> Result<(), PipelineError> {
        let rows = run.pairs.iter().map(|pair| pair.preference().rows()).sum();
        let plan = |recompute| MemoryPlan::new(self.backend(), run.recipe, rows, recompute);
        let available = observer.memory(self.backend());
        MemoryPlan::fitting(observer.recompute(), available, plan)
            .map_err(|error| TrainError::from(error.of("scoring and training")))?;
        Ok(())
    }

    /// Raw impact scores of the conflicts; also adds their reference log-probabilities to
    /// `examples`.
    fn raw_scores(
        &self,
        run: &Run<'_>,
        examples: &mut [TrainExample],
        observer: &dyn Observer,
    ) -> Result<Known<RawScores>, PipelineError> {
        let began = Instant::now();
        let recipe = run.recipe;
        let proceed = passes(observer, Phase::Impact, 3 * run.passes());
        let adapter = train::fresh(self.backend(), recipe)?.snapshot()?;
        let at = At {
            backend: self.backend(),
            adapter: &adapter,
            objective: recipe.into(),
            precision: recipe.precision.into(),
        };
        let gold = impact::gold_batch(run.pairs, recipe.gold_pairs, recipe.seed);
        let scored = impact::directional(at, examples, &gold, true, proceed)?
            .ok_or(PipelineError::Cancelled)?;
        scored.complete(examples);
        let raw = Known {
            value: scored.index.into_iter().zip(scored.score).collect(),
            seconds: began.elapsed().as_secs_f64(),
        };
        observer.cache().keep_scores(&raw);
        Ok(raw)
    }
}

fn candidate(run: &Run<'_>, scored: Scored, trained: Trained, began: Instant) -> Candidate {
    Candidate {
        trained,
        counts: run.pairs.iter().map(|pair| pair.category).collect(),
        scores: scored.scores,
        clamped_ratio: scored.clamped_ratio,
        reference_seconds: scored.reference_seconds,
        impact_seconds: scored.impact_seconds,
        train_seconds: began.elapsed().as_secs_f64(),
    }
}

/// Turns raw scores into the examples' weights.
fn weigh(scored: &mut Scored, raw: &RawScores, recipe: &Recipe) -> Result<(), PipelineError> {
    let values: Vec<f64> = raw.iter().map(|(_, score)| *score).collect();
    let weights = impact::weigh(&values, recipe.gamma, recipe.weight_scale)?;
    scored.clamped_ratio = Some(weights.clamped_ratio);
    for (&(index, raw), &weight) in raw.iter().zip(&weights.values) {
        scored.examples[index].weight = weight;
        scored.scores.push(Score { index, raw, weight });
    }
    Ok(())
}

/// Enters a phase of `units` passes. The returned closure is called before each pass and tells
/// whether to continue.
pub(super) fn passes(observer: &dyn Observer, phase: Phase, units: usize) -> impl FnMut() -> bool {
    observer.enter(phase, units);
    let mut done = 0;
    move || {
        observer.on_pass(phase, done, units);
        done += 1;
        observer.proceed()
    }
}
