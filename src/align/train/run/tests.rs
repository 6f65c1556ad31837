use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::train::choices::OptimizerKind;
use crate::train::examples::{Reference, TokenPair, with_reference};
use realign_model::{ModelSource, Precision};
use realign_reference::ReferenceBackend;

/// A random llama of two layers.
fn model() -> ReferenceBackend {
    let files = ModelSource::parse(&realign_model::test_support::path(
        "tests/golden/families/llama",
    ))
    .unwrap();
    let files = files.fetch().unwrap();
    ReferenceBackend::new(realign_reference::load(&files).unwrap())
}

fn examples(backend: &dyn Backend, recipe: &Recipe) -> Vec<TrainExample> {
    let pair = |i: u32| TokenPair {
        id: i.to_string(),
        category: Category::ALL[i as usize % 3],
        prompt: vec![3 + i, 4, 5],
        chosen: vec![20 + i, 7, 2],
        rejected: vec![8 + i, 9, 2],
    };
    let pairs: Vec<TokenPair> = (0..24).map(pair).collect();
    let at = Reference {
        backend,
        lowest_layer: recipe.lowest_layer(backend.spec().layers),
        precision: Precision::Exact,
        conflicts: true,
    };
    with_reference(at, &pairs, ROW_BUDGET, |_| true)
        .unwrap()
        .unwrap()
}

/// Lets a run go on for so many batches.
struct For(AtomicUsize);

impl For {
    fn ever() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }
}

impl Observer for For {
    fn proceed(&self) -> bool {
        let less = |n: usize| n.checked_sub(1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }

    fn on_step(&self, _: &StepReport) {}
}

fn recipe() -> Recipe {
    Recipe {
        min_steps: 0,
        rank: 2,
        epochs: 4,
        pairs_per_step: 3,
        ..Recipe::default()
    }
}

fn run(recipe: &Recipe, checkpoints: Option<&Path>, observer: &For) -> Result<Trained, TrainError> {
    let model = model();
    let examples = examples(&model, recipe);
    let begin = Begin {
        checkpoints,
        ..Begin::default()
    };
    train(&model, &examples, recipe, begin, observer)
}

fn values(trained: &Trained) -> Vec<Vec<f32>> {
    let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let pairs = trained.weights.sites.values();
    pairs.flat_map(|p| [flat(&p.a), flat(&p.b)]).collect()
}

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    for (optimizer, accumulation) in [(OptimizerKind::Adamw, 1), (OptimizerKind::Lion, 2)] {
        let recipe = Recipe {
            optimizer,
            accumulation,
            learning_rate: 1e-3,
            weight_decay: 0.01,
            ..recipe()
        };
        let whole = run(&recipe, None, &For::ever()).unwrap();
        assert_eq!(whole.steps, 32 / accumulation);
        let dir = tempfile::tempdir().unwrap();
        let broken = For(AtomicUsize::new(11 * accumulation));
        let stopped = run(&recipe, Some(dir.path()), &broken).unwrap_err();
        assert!(matches!(stopped, TrainError::Cancelled), "{stopped}");
        assert!(dir.path().join("step-8.safetensors").is_file());
        let resumed = run(&recipe, Some(dir.path()), &For::ever()).unwrap();
        assert_eq!(values(&whole), values(&resumed), "{optimizer:?}");
        let losses = |t: &Trained| t.curve.0.iter().map(|r| r.total).collect::<Vec<_>>();
        assert_eq!(losses(&whole), losses(&resumed), "the curve is whole");
        assert_eq!(resumed.ending, Ending::Epochs);
    }
}

#[test]
fn a_checkpoint_of_another_optimiser_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let broken = For(AtomicUsize::new(9));
    run(&recipe(), Some(dir.path()), &broken).unwrap_err();
    let lion = Recipe {
        optimizer: OptimizerKind::Lion,
        ..recipe()
    };
    let resumed = run(&lion, Some(dir.path()), &For::ever()).unwrap();
    let whole = run(&lion, None, &For::ever()).unwrap();
    assert_eq!(values(&whole), values(&resumed));
}

#[test]
fn accumulated_batches_count_as_one_larger_batch() {
    let first = |accumulation: usize, pairs_per_step: usize| {
        let recipe = Recipe {
            accumulation,
            pairs_per_step,
            max_steps: 1,
            ..recipe()
        };
        run(&recipe, None, &For::ever()).unwrap().curve.0[0]
    };
    let (two, one) = (first(8, 3), first(1, 24));
    assert!((8.0 * two.total - one.total).abs() < 1e-4 * one.total);
    let ratio = 8.0 * two.gradient_norm / one.gradient_norm;
    assert!((ratio - 1.0).abs() < 1e-3, "{ratio}");
    assert_eq!(two.tokens, one.tokens);
}

#[test]
fn a_run_ends_at_its_bound_or_where_the_gradient_is_small() {
    let bounded = Recipe {
        max_steps: 5,
        ..recipe()
    };
    let trained = run(&bounded, None, &For::ever()).unwrap();
    assert_eq!((trained.steps, trained.ending), (5, Ending::MaxSteps));
    let first = trained.curve.0[0].gradient_norm;
    let still = Recipe {
        stop_gradient_norm: first * 1.01,
        ..recipe()
    };
    let trained = run(&still, None, &For::ever()).unwrap();
    assert_eq!((trained.steps, trained.ending), (0, Ending::SmallGradient));
    let b = trained.weights.sites.values().next().unwrap();
    let sum = b.b.abs().unwrap().sum_all().unwrap();
    assert_eq!(sum.to_scalar::<f32>().unwrap(), 0.0, "no update was made");
}

#[test]
fn a_run_that_diverges_says_where_and_what_to_change() {
    let wild = Recipe {
        learning_rate: 1.0,
        warmup_ratio: 0.9,
        max_loss_ratio: 2.0,
        epochs: 20,
        alpha_sft: 0.0,
        alpha_kl: 10.0,
        optimizer: OptimizerKind::Lion,
        ..recipe()
    };
    let error = run(&wild, None, &For::ever()).unwrap_err().to_string();
    assert!(error.contains("the run has diverged: at step"), "{error}");
    assert!(error.contains("lower train.learning_rate"), "{error}");
    assert!(error.contains("nothing was published"), "{error}");
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run() {
    let model = model();
    let recipe = recipe();
    let mut examples = examples(&model, &recipe);
    let spoilt = examples.iter_mut().find(|e| e.category == Category::Invert);
    spoilt.unwrap().reference = [f64::NAN, 0.0];
    let error = train(&model, &examples, &recipe, Begin::default(), &For::ever());
    let error = error.unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    assert!(error.to_string().contains("the loss is NaN at step"));
}

#[test]
fn only_the_layers_that_are_named_are_adapted() {
    let recipe = Recipe {
        layers: vec![0],
        max_steps: 1,
        ..recipe()
    };
    let trained = run(&recipe, None, &For::ever()).unwrap();
    assert!(trained.weights.sites.keys().all(|site| site.layer == 0));
    let absent = Recipe {
        layers: vec![99],
        ..self::recipe()
    };
    let model = model();
    let examples = examples(&model, &Recipe::default());
    let error = train(&model, &examples, &absent, Begin::default(), &For::ever());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("train.layers: the model has no layer 99"),
        "{error}"
    );
}
