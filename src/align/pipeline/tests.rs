use std::cell::{Cell, RefCell};

use realign_cpu::CpuBackend;

use super::reference::MeasuredPairs;
use super::*;
use crate::train::examples::TokenPair;
use crate::train::{self, Recipe, StepReport, TrainExample};
use realign_core::Category;
use realign_model::test_support::root;
use realign_model::{LoraWeights, ModelSource};

fn learner() -> Learner {
    let path = root().join("tests/golden/families/llama");
    let source = ModelSource::parse(&path.to_string_lossy()).unwrap();
    let model = realign_cpu::load(&source.fetch().unwrap()).unwrap();
    Learner::of(std::sync::Arc::new(CpuBackend::new(model)))
}

fn tokens(seed: usize, length: usize) -> Vec<u32> {
    let token = |i: usize| (3 + (seed * 31 + i * 17) % 240) as u32;
    (0..length).map(token).collect()
}

/// Nine pairs, three of each category.
fn pairs() -> Vec<TokenPair> {
    let pair = |i: usize| TokenPair {
        id: i.to_string(),
        category: Category::ALL[i % 3],
        prompt: tokens(i, 6 + i % 4),
        chosen: tokens(i + 100, 5 + i % 3),
        rejected: tokens(i + 200, 4 + i % 5),
    };
    (0..9).map(pair).collect()
}

fn recipe() -> Recipe {
    Recipe {
        rank: 2,
        epochs: 1,
        pairs_per_step: 3,
        learning_rate: 0.01,
        weight_scale: train::WeightScale::MeanOne,
        ..Recipe::default()
    }
}

/// Counts what happens, keeps what is shared, and says stop after some passes.
#[derive(Default)]
struct Watcher {
    phases: RefCell<Vec<(Phase, usize)>>,
    passes: Cell<usize>,
    steps: Cell<usize>,
    scored: Cell<usize>,
    stop_after: Option<usize>,
    shares: bool,
    reference: RefCell<Option<Known<Vec<TrainExample>>>>,
    scores: RefCell<Option<Known<RawScores>>>,
}

impl train::Observer for Watcher {
    fn proceed(&self) -> bool {
        self.passes.set(self.passes.get() + 1);
        self.stop_after.is_none_or(|most| self.passes.get() <= most)
    }

    fn on_step(&self, _: &StepReport) {
        self.steps.set(self.steps.get() + 1);
    }
}

impl Observer for Watcher {
    fn enter(&self, phase: Phase, units: usize) {
        self.phases.borrow_mut().push((phase, units));
    }

    fn on_scored(&self, scored: &Scored) {
        self.scored.set(scored.scores.len());
    }

    fn cache(&self) -> &dyn Cache {
        self
    }
}

impl Cache for Watcher {
    fn shares_reference(&self) -> bool {
        self.shares
    }

    fn reference(&self, _: &[TokenPair]) -> Option<Known<Vec<TrainExample>>> {
        self.reference.borrow().clone()
    }

    fn keep_reference(&self, reference: &Known<Vec<TrainExample>>) {
        *self.reference.borrow_mut() = Some(reference.clone());
    }

    fn scores(&self, _: &[TokenPair]) -> Option<Known<RawScores>> {
        self.scores.borrow().clone()
    }

    fn keep_scores(&self, scores: &Known<RawScores>) {
        *self.scores.borrow_mut() = Some(scores.clone());
    }
}

fn bits(weights: &LoraWeights) -> Vec<u32> {
    let factors = weights.sites.values().flat_map(|pair| [&pair.a, &pair.b]);
    let values = factors.flat_map(|f| f.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    values.map(f32::to_bits).collect()
}

#[test]
fn what_a_cache_knows_changes_no_bit_of_the_candidate() {
    let (learner, pairs, recipe) = (learner(), pairs(), recipe());
    let run = Run {
        pairs: &pairs,
        recipe: &recipe,
        weights: None,
    };
    let uninterrupted = Watcher::default();
    let expected = learner.run(&run, &uninterrupted).unwrap();
    assert_eq!(
        (expected.counts.total(), expected.counts.conflicts()),
        (9, 6)
    );
    assert_eq!((expected.scores.len(), uninterrupted.scored.get()), (6, 6));
    assert!(expected.scores.is_sorted_by_key(|score| score.index));
    let names: Vec<Phase> = uninterrupted
        .phases
        .borrow()
        .iter()
        .map(|(p, _)| *p)
        .collect();
    assert_eq!(names, [Phase::Reference, Phase::Impact, Phase::Train]);
    assert_eq!(
        uninterrupted.phases.borrow()[2].1,
        uninterrupted.steps.get()
    );

    // Scores of an earlier run, as a realignment finds them that was interrupted.
    let resumed = Watcher::default();
    resumed.scores.replace(uninterrupted.scores.take());
    let found = learner.run(&run, &resumed).unwrap();
    assert_eq!(resumed.phases.borrow().len(), 2, "nothing is scored again");
    assert_eq!(found.scores, expected.scores);
    assert_eq!(
        bits(&found.trained.weights),
        bits(&expected.trained.weights)
    );

    // Reference and scores of another run on the same pairs, as in a comparison.
    let shared = Watcher {
        shares: true,
        ..Watcher::default()
    };
    for phases in [3, 1] {
        shared.phases.borrow_mut().clear();
        let again = learner.run(&run, &shared).unwrap();
        assert_eq!(shared.phases.borrow().len(), phases);
        assert_eq!(
            bits(&again.trained.weights),
            bits(&expected.trained.weights)
        );
    }
}

#[test]
fn a_run_stops_before_any_of_its_passes() {
    let (learner, pairs, recipe) = (learner(), pairs(), recipe());
    let run = Run {
        pairs: &pairs,
        recipe: &recipe,
        weights: None,
    };
    let whole = Watcher::default();
    learner.run(&run, &whole).unwrap();
    for most in 0..whole.passes.get() {
        let watcher = Watcher {
            stop_after: Some(most),
            ..Watcher::default()
        };
        let error = learner.run(&run, &watcher).unwrap_err();
        assert!(matches!(error, PipelineError::Cancelled), "{most}: {error}");
        assert_eq!(watcher.passes.get(), most + 1);
    }
}

#[test]
fn given_weights_take_the_place_of_scores() {
    let (learner, pairs, recipe) = (learner(), pairs(), recipe());
    let weights: Vec<f64> = (0..pairs.len()).map(|i| i as f64 / 4.0).collect();
    let run = Run {
        pairs: &pairs,
        recipe: &recipe,
        weights: Some(&weights),
    };
    let watcher = Watcher::default();
    let scored = learner.score(&run, &watcher).unwrap();
    assert_eq!((scored.scores.len(), scored.clamped_ratio), (0, None));
    assert_eq!(watcher.phases.borrow().len(), 1);
    let given = scored.examples.iter().map(|example| example.weight);
    assert_eq!(given.collect::<Vec<f64>>(), weights);
    let measured = |e: &&TrainExample| e.reference[0] < 0.0;
    assert_eq!(scored.examples.iter().filter(measured).count(), 9);
}

#[test]
fn pairs_that_were_measured_are_taken_over_and_the_others_measured() {
    let (learner, pairs, recipe) = (learner(), pairs(), recipe());
    let of = |pairs| Run {
        pairs,
        recipe: &recipe,
        weights: None,
    };
    let watcher = Watcher::default();
    let known: Vec<TokenPair> = [4, 0, 8, 3, 2].map(|i| pairs[i].clone()).into();
    let nothing = MeasuredPairs::new(&[], Vec::new());
    let mut measured = learner.remaining(&of(&known), &nothing, &watcher).unwrap();
    for example in &mut measured.value {
        example.weight = 7.0;
    }
    // What is taken over is not computed again: this one would be another.
    measured.value[1].reference = [-1.5, -2.5];
    let measured = MeasuredPairs::new(&known, measured.value);
    let found = learner.remaining(&of(&pairs), &measured, &watcher).unwrap();
    let whole = learner.remaining(&of(&pairs), &nothing, &watcher).unwrap();
    for (i, (found, whole)) in found.value.iter().zip(&whole.value).enumerate() {
        assert_eq!((&found.id, found.weight), (&pairs[i].id, 1.0));
        let expected = if i == 0 {
            [-1.5, -2.5]
        } else {
            whole.reference
        };
        assert_eq!(found.reference, expected, "{i}");
        let hidden = |e: &TrainExample| -> Option<Vec<f32>> {
            let hidden = e.reference_hidden.as_ref()?;
            Some(hidden.flatten_all().unwrap().to_vec1().unwrap())
        };
        assert_eq!(hidden(found), hidden(whole), "{i}");
    }
}

#[test]
fn pairs_without_a_wanted_answer_are_warned_of() {
    let counts = |invert, punish| TriageCounts {
        invert,
        punish,
        retain: 4,
    };
    assert!(warning(counts(0, 3), false).is_some_and(|w| w.contains("[train.corrective]")));
    for (counts, corrective) in [
        (counts(0, 3), true),
        (counts(1, 3), false),
        (counts(0, 0), false),
    ] {
        assert_eq!(warning(counts, corrective), None);
    }
}

/// Reviews by a list of shares of diverted controls, and what it was shown.
struct Reviewer {
    diverted: RefCell<Vec<usize>>,
    shown: RefCell<Vec<LoraWeights>>,
    limits: RefCell<Vec<f64>>,
    pair: TokenPair,
}

impl Review for Reviewer {
    fn review(
        &self,
        weights: &LoraWeights,
        _: &[TokenPair],
        limit: f64,
    ) -> Result<Failures, PipelineError> {
        self.limits.borrow_mut().push(limit);
        self.shown.borrow_mut().push(weights.clone());
        Ok(Failures {
            pairs: vec![self.pair.clone()],
            controls: (100, self.diverted.borrow_mut().remove(0)),
            governed: (100, 0),
        })
    }
}

#[test]
fn a_round_that_goes_too_far_is_halved_if_that_gets_less_wrong() {
    let (learner, pairs) = (learner(), pairs());
    let recipe = Recipe {
        rounds: 3,
        ..recipe()
    };
    let run = Run {
        pairs: &pairs,
        recipe: &recipe,
        weights: None,
    };
    // Round 0; round 1 and its mean with round 0, which is better; round 2, which is good.
    let cases = [(vec![20, 30, 10, 0], 3), (vec![20, 30, 40, 50, 60], 0)];
    for (diverted, best) in cases {
        let reviewer = Reviewer {
            diverted: RefCell::new(diverted),
            shown: RefCell::default(),
            limits: RefCell::default(),
            pair: pairs[0].clone(),
        };
        let learnt = learner.run_rounds(&run, &reviewer, &Watcher::default());
        let (candidate, history) = learnt.unwrap();
        let shown = reviewer.shown.borrow();
        assert_eq!(history.len(), 3);
        let mean = shown[0].mean(&shown[1]).unwrap();
        assert_eq!(bits(&shown[2]), bits(&mean));
        assert_ne!(bits(&shown[2]), bits(&shown[1]));
        assert_eq!(bits(&candidate.trained.weights), bits(&shown[best]));
        let limits = &reviewer.limits.borrow()[..3];
        let whole = [f64::INFINITY; 2];
        assert_eq!(
            limits,
            [&whole[..], &[0.6]].concat(),
            "the mean has to beat the round"
        );
    }
}
