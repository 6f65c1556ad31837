//! Further rounds of training: the candidate answers what it was trained on, and what it still gets
//! wrong becomes pairs.

use std::path::PathBuf;

use super::PipelineError;
use super::observer::{Cache, NoCache, Observer, Phase};
use super::reference::MeasuredPairs;
use super::run::{Candidate, Learner, Run, Scored, Start};
use crate::train::examples::TokenPair;
use crate::train::{self, Recipe, StepReport, WeightScale};
use realign_core::{Category, crash_point};
use realign_model::host_memory::Headroom;
use realign_model::{Backend, LoraWeights, Recompute};

/// Share of the first round's learning rate in later rounds.
const LATER_RATE: f64 = 0.5;
/// Share of violating answers from which on a later round learns at the first one's rate.
const FAR: f64 = 0.2;
/// Rounds after which only a candidate that is far off, and was getting less wrong, goes on.
const USUAL_ROUNDS: usize = 3;
/// Shares of diverted controls and of violating answers that count as few.
const FEW_DIVERTED: f64 = 0.01;
const FEW_VIOLATING: f64 = 0.05;
/// Share of diverted controls that counts as many.
const MANY_DIVERTED: f64 = 0.03;
/// What a share of diverted controls weighs beside one of violating answers.
const DIVERTED: f64 = 2.0;
/// Conflicts of the first round that a later one repeats, at most.
const REPEATED_CONFLICTS: usize = 96;
/// RETAIN pairs that a later round repeats, at most.
const REPEATED_RETAIN: usize = 96;

/// What a candidate got wrong of what it was trained on.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    /// The right answers over the candidate's own.
    pub pairs: Vec<TokenPair>,
    /// Controls that were asked, and those whose answer was diverted.
    pub controls: (usize, usize),
    /// Governed prompts that were asked, and those whose answer violated.
    pub governed: (usize, usize),
}

impl Failures {
    fn share((asked, wrong): (usize, usize)) -> f64 {
        wrong as f64 / asked.max(1) as f64
    }

    /// Share of violating answers plus twice that of diverted controls, because sparing others comes
    /// first: 0 is perfect.
    pub fn score(&self) -> f64 {
        Self::share(self.governed) + DIVERTED * Self::share(self.controls)
    }

    /// By how much the next round should weigh the distance from the base: less where nothing is diverted
    /// and much violates, more where it is the other way round.
    fn hold(&self) -> f64 {
        let (diverted, violating) = (Self::share(self.controls), Self::share(self.governed));
        if diverted <= FEW_DIVERTED && violating > FEW_VIOLATING {
            0.5
        } else if diverted > MANY_DIVERTED && violating <= FEW_VIOLATING {
            1.5
        } else {
            1.0
        }
    }

    /// Whether much of what was asked still violates.
    fn is_far(&self) -> bool {
        Self::share(self.governed) > FAR
    }

    /// Whether another round has nothing to do.
    fn is_good(&self) -> bool {
        Self::share(self.controls) <= 0.01 && Self::share(self.governed) <= 0.02
    }
}

/// Asks candidates what they were trained on.
pub trait Review {
    /// What a candidate with these weights gets wrong. Once its [score](Failures::score) is known to be
    /// no better than `limit`, the rest may be left out.
    ///
    /// # Errors
    /// [`PipelineError`].
    fn review(
        &self,
        weights: &LoraWeights,
        pairs: &[TokenPair],
        limit: f64,
    ) -> Result<Failures, PipelineError>;
}

impl Learner {
    /// Runs the pipeline, and up to `recipe.rounds` − 1 further rounds of training while the
    /// candidate gets something wrong, from the fourth on only while it is far off and gains; none
    /// on a distributed engine. The best round's candidate is returned, with what each got
    /// wrong.
    ///
    /// # Errors
    /// As [`Learner::run`].
    pub fn run_rounds(
        &self,
        run: &Run<'_>,
        review: &dyn Review,
        observer: &dyn Observer,
    ) -> Result<(Candidate, Vec<Failures>), PipelineError> {
        let (mut best, examples) = self.run_from(run, Start::default(), observer)?;
        let mut history = Vec::new();
        if run.recipe.rounds < 2 || !self.can_go_on() {
            return Ok((best, history));
        }
        crash_point("train:after-round-0");
        let mut failures = review.review(&best.trained.weights, run.pairs, f64::INFINITY)?;
        let mut newest = best.trained.weights.clone();
        let mut recipe = run.recipe.clone();
        history.push(failures.clone());
        let mut lowest = failures.score();
        let measured = MeasuredPairs::new(run.pairs, examples);
        for round in 1..run.recipe.rounds {
            let is_done = failures.is_good() || failures.pairs.is_empty();
            if is_done || !goes_on(&history) || !observer.has_time() {
                break;
            }
            let pairs = later_pairs(run.pairs, &failures.pairs);
            recipe.alpha_kl *= failures.hold();
            let own = later_recipe(&recipe, round, &failures);
            let later = Run {
                pairs: &pairs,
                recipe: &own,
                weights: None,
            };
            let observer = Later { observer, round };
            let start = Start {
                weights: Some(&newest),
                measured: Some(&measured),
            };
            let (next, _) = self.run_from(&later, start, &observer)?;
            crash_point(&format!("train:after-round-{round}"));
            let next = self.steadied(run, review, &newest, next)?;
            newest = next.trained.weights.clone();
            failures = next.failures;
            history.push(failures.clone());
            if failures.score() < lowest {
                lowest = failures.score();
                best.trained = continued(best.trained, next.trained);
            }
        }
        Ok((best, history))
    }

    /// The round's candidate, or the mean of it and what it started from if that gets less wrong:
    /// rounds go too far now one way, now the other.
    fn steadied(
        &self,
        run: &Run<'_>,
        review: &dyn Review,
        before: &LoraWeights,
        next: Candidate,
    ) -> Result<Reviewed, PipelineError> {
        let own = Reviewed {
            failures: review.review(&next.trained.weights, run.pairs, f64::INFINITY)?,
            trained: next.trained,
        };
        if own.failures.is_good() {
            return Ok(own);
        }
        let mean = own.trained.weights.mean(before)?;
        let failures = review.review(&mean, run.pairs, own.failures.score())?;
        if failures.score() >= own.failures.score() {
            return Ok(own);
        }
        let trained = train::Trained {
            weights: mean,
            ..own.trained
        };
        Ok(Reviewed { trained, failures })
    }
}

/// Whether a further round is likely to pay, by what the rounds so far got wrong.
fn goes_on(history: &[Failures]) -> bool {
    let scores: Vec<f64> = history.iter().map(Failures::score).collect();
    let lowest = |of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min);
    // One round may go astray: two in turn that gain nothing are the end.
    let (before, last) = scores.split_at(scores.len().saturating_sub(2));
    let gains = lowest(last) < lowest(before);
    history.len() < USUAL_ROUNDS || gains && history.last().is_some_and(Failures::is_far)
}

/// A round's weights, and what they get wrong.
struct Reviewed {
    trained: train::Trained,
    failures: Failures,
}

/// The later round's weights, with the steps of all rounds.
fn continued(before: train::Trained, next: train::Trained) -> train::Trained {
    let mut curve = before.curve;
    let made = curve.0.len();
    curve.0.extend(next.curve.0.into_iter().map(|mut record| {
        record.step += made;
        record
    }));
    train::Trained {
        curve,
        steps: before.steps + next.steps,
        ..next
    }
}

fn later_recipe(recipe: &Recipe, round: usize, failures: &Failures) -> Recipe {
    let rate = if failures.is_far() { 1.0 } else { LATER_RATE };
    Recipe {
        learning_rate: recipe.learning_rate * rate,
        seed: recipe.seed.wrapping_add(round as u64),
        epochs: 1,
        min_steps: 0,
        weight_scale: WeightScale::Uniform,
        ..recipe.clone()
    }
}

/// What was wrong, with a part of what was trained before so that it stays.
fn later_pairs(trained: &[TokenPair], wrong: &[TokenPair]) -> Vec<TokenPair> {
    let wrong_prompts: Vec<&[u32]> = wrong.iter().map(|pair| pair.prompt.as_slice()).collect();
    let part = |retain: bool, most: usize| {
        let of: Vec<&TokenPair> = trained
            .iter()
            .filter(|pair| (pair.category == Category::Retain) == retain)
            .collect();
        // What was wrong stays in, the others are spread over the whole.
        let (again, others): (Vec<_>, Vec<_>) = of
            .into_iter()
            .partition(|pair| wrong_prompts.contains(&pair.prompt.as_slice()));
        let room = most.saturating_sub(again.len());
        let every = others.len().div_ceil(room.max(1)).max(1);
        let spread = others.into_iter().step_by(every).take(room);
        again.into_iter().chain(spread).cloned().collect::<Vec<_>>()
    };
    let mut pairs = part(false, REPEATED_CONFLICTS);
    pairs.extend(part(true, REPEATED_RETAIN));
    pairs.extend_from_slice(wrong);
    pairs
}

/// The observer of a later round: the same, with checkpoints of its own and no cache.
struct Later<'a> {
    observer: &'a dyn Observer,
    round: usize,
}

impl train::Observer for Later<'_> {
    fn proceed(&self) -> bool {
        self.observer.proceed()
    }
    fn on_step(&self, report: &StepReport) {
        self.observer.on_step(report);
    }
    fn is_wanted(&self) -> bool {
        self.observer.is_wanted()
    }
    fn memory(&self, backend: &dyn Backend) -> Option<Headroom> {
        self.observer.memory(backend)
    }
    fn recompute(&self) -> Recompute {
        self.observer.recompute()
    }
}

impl Observer for Later<'_> {
    fn enter(&self, phase: Phase, units: usize) {
        if phase == Phase::Train {
            self.observer.enter(Phase::Again, units);
        }
    }
    fn on_scored(&self, _: &Scored) {}
    fn checkpoints(&self) -> Option<PathBuf> {
        let round = format!("round-{}", self.round);
        self.observer.checkpoints().map(|dir| dir.join(round))
    }
    fn cache(&self) -> &dyn Cache {
        &NoCache
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_rounds_follow_need() {
        let history = |violating: &[usize]| -> Vec<Failures> {
            let of = |&wrong: &usize| Failures {
                pairs: Vec::new(),
                controls: (240, 0),
                governed: (100, wrong),
            };
            violating.iter().map(of).collect()
        };
        assert!(goes_on(&history(&[5, 9])), "the usual rounds");
        assert!(!goes_on(&history(&[60, 20, 10])), "near enough");
        assert!(goes_on(&history(&[97, 83, 66])), "far, and gaining");
        assert!(goes_on(&history(&[97, 40, 45])), "one round astray");
        assert!(!goes_on(&history(&[97, 40, 45, 42])), "two without a gain");
        assert!(!goes_on(&history(&[97, 97, 97])), "never a gain");
    }

    #[test]
    fn the_distance_is_weighed_by_what_went_wrong() {
        let of = |diverted, violating| Failures {
            pairs: Vec::new(),
            controls: (240, diverted),
            governed: (128, violating),
        };
        assert_eq!(of(0, 42).hold(), 0.5, "nothing diverted, much violates");
        assert_eq!(of(12, 3).hold(), 1.5, "much diverted, little violates");
        assert_eq!(of(8, 20).hold(), 1.0);
        assert_eq!(of(0, 0).hold(), 1.0);
        let recipe = Recipe::default();
        let rate = |failures: &Failures| later_recipe(&recipe, 1, failures).learning_rate;
        assert_eq!(rate(&of(0, 42)), recipe.learning_rate);
        assert_eq!(rate(&of(0, 5)), recipe.learning_rate * LATER_RATE);
    }
}
