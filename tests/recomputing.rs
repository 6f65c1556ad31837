//! Training by candle's tensors, layer by layer with intermediate results computed again, against
//! its slow twin, the graph of a whole pass, and against PyTorch's golden values.

use std::path::Path;

use candle_core::Tensor;
use realign_align::train::examples::{Reference, TokenPair, with_reference};
use realign_align::train::passes::Passes;
use realign_align::train::{
    Gradients, LossParts, Objective, PreferenceLoss, TrainExample, TrainableLora,
};
use realign_core::Category;
use realign_model::packing::{Example, Packed};
use realign_model::{Backend, LoraWeights, ModelSource, PassOptions, Precision, Recompute};
use realign_reference::ReferenceBackend;

use crate::golden_parity::{adapter, dense, examples, golden};
use crate::golden_training::{
    check_elements, check_ipo, check_norms, close, fresh, objective, refs, samples,
};

use crate::families::FAMILIES;

fn passes(backend: &dyn Backend, recompute: bool) -> Passes {
    let options = PassOptions {
        precision: Precision::Exact,
        recompute: if recompute {
            Recompute::On
        } else {
            Recompute::Off
        },
        ..PassOptions::default()
    };
    Passes::with(backend, options).unwrap()
}

/// A random model with f32 weights, and an adapter for it.
fn family(name: &str) -> (ReferenceBackend, LoraWeights) {
    let dir = Path::new("tests/golden/families").join(name);
    let files = ModelSource::parse(&dir.to_string_lossy()).and_then(ModelSource::fetch);
    let model = ReferenceBackend::new(realign_reference::load(&files.unwrap()).unwrap());
    let adapter = realign_engine::adapter::peft::read_dir(&dir.join("adapter")).unwrap();
    (model, adapter.weights)
}

/// The same A with a B of zeros: an adapter that has learned nothing yet.
fn without_b(weights: &LoraWeights) -> LoraWeights {
    let mut sites = weights.sites.clone();
    for pair in sites.values_mut() {
        pair.b = pair.b.zeros_like().unwrap();
    }
    sites.into()
}

/// The adapter on the layers from `lowest` on.
fn above(weights: &LoraWeights, lowest: usize) -> LoraWeights {
    let mut sites = weights.sites.clone();
    sites.retain(|site, _| site.layer >= lowest);
    sites.into()
}

fn pairs(categories: &[Category]) -> Vec<TokenPair> {
    let tokens =
        |seed: u32, n: u32| -> Vec<u32> { (0..n).map(|i| 3 + (seed * 31 + i * 7) % 50).collect() };
    let pair = |(i, category): (u32, &Category)| TokenPair {
        id: i.to_string(),
        category: *category,
        prompt: tokens(i, 5 + 9 * i),
        chosen: tokens(i + 20, 4 + 2 * i),
        rejected: tokens(i + 40, 31 - 5 * i),
    };
    (0..).zip(categories).map(pair).collect()
}

/// Pairs with the reference's values; remembered states enter `lowest_layer`.
fn examples_of(
    backend: &dyn Backend,
    categories: &[Category],
    lowest_layer: usize,
) -> Vec<TrainExample> {
    let at = Reference {
        backend,
        lowest_layer,
        precision: Precision::Exact,
        conflicts: true,
    };
    let examples = with_reference(at, &pairs(categories), 512, |_| true);
    let mut examples = examples.unwrap().unwrap();
    for (i, example) in examples.iter_mut().enumerate() {
        example.weight = 0.5 + i as f64;
    }
    examples
}

/// Rounding of f32 where the exact gradient is zero.
const ROUNDING: f32 = 1e-7;

fn furthest(t: &Tensor) -> f32 {
    let all = t.abs().unwrap().flatten_all().unwrap();
    all.max(0).unwrap().to_scalar().unwrap()
}

fn agree(what: &str, got: &Gradients, expected: &Gradients) {
    assert_eq!(got.sites.len(), expected.sites.len(), "{what}");
    for (site, (a, b)) in &got.sites {
        let (slow_a, slow_b) = &expected.sites[site];
        for (fast, slow) in [(a, slow_a), (b, slow_b)] {
            let off = furthest(&(fast - slow).unwrap());
            let size = furthest(slow);
            // At the base model the KL has no gradient: what either side finds there is rounding.
            assert!(
                off <= 1e-4 * size + ROUNDING,
                "{what}, {site:?}: off by {off} of {size}"
            );
        }
    }
}

fn loss(
    backend: &dyn Backend,
    recompute: bool,
    objective: &Objective,
    weights: &LoraWeights,
    examples: &[TrainExample],
) -> (Gradients, LossParts) {
    let lora = TrainableLora::from_weights(weights).unwrap();
    let mut passes = passes(backend, recompute);
    passes.loss(objective, &lora, &refs(examples)).unwrap()
}

#[test]
fn every_loss_and_gradient_of_every_family_is_that_of_the_whole_graph() {
    use Category::{Invert, Punish, Retain};
    let sigmoid = Objective {
        alpha_sft: 0.5,
        ..objective(PreferenceLoss::Sigmoid)
    };
    let cases = [
        (vec![Invert, Punish, Retain, Invert, Retain], sigmoid),
        (vec![Invert, Invert], objective(PreferenceLoss::Ipo)),
        (vec![Punish, Punish], sigmoid),
        (vec![Retain], sigmoid),
    ];
    for name in FAMILIES {
        let (model, weights) = family(name);
        let top = model.spec().layers - 1;
        let sets = [
            (weights.clone(), 0),
            (without_b(&weights), 0),
            (above(&weights, top), top),
        ];
        for (categories, objective) in &cases {
            for (weights, lowest) in &sets {
                let mut examples = examples_of(&model, categories, *lowest);
                for remembered in [true, false] {
                    if !remembered {
                        examples.iter_mut().for_each(|e| e.example.states = None);
                    }
                    let of = |recompute| loss(&model, recompute, objective, weights, &examples);
                    let ((fast, parts), (slow, slow_parts)) = (of(true), of(false));
                    let what = format!("{name} {categories:?} from layer {lowest}");
                    let sums = [
                        (parts.invert, slow_parts.invert),
                        (parts.punish, slow_parts.punish),
                        (parts.retain, slow_parts.retain),
                        (parts.sft, slow_parts.sft),
                    ];
                    for (got, expected) in sums {
                        // The whole graph sums log-probabilities in f32, these in f64.
                        let near = (got - expected).abs() <= 1e-4 * expected.abs().max(1.0);
                        assert!(near, "{what}: {parts:?}, not {slow_parts:?}");
                    }
                    agree(&what, &fast, &slow);
                }
            }
        }
    }
}

#[test]
fn gold_gradients_and_log_probabilities_are_those_of_the_whole_graph() {
    for name in FAMILIES {
        let (model, weights) = family(name);
        let invert = [Category::Invert; 3];
        let train = examples_of(&model, &invert, 0);
        let gold: Vec<&Example> = train.iter().map(|e| &e.example).collect();
        for (weights, known) in [(&weights, true), (&without_b(&weights), false)] {
            let reference = |e: &TrainExample| known.then_some(e.reference);
            let batch: Vec<_> = gold
                .iter()
                .copied()
                .zip(train.iter().map(reference))
                .collect();
            let objective = objective(PreferenceLoss::Sigmoid);
            let of = |recompute| {
                let mut passes = passes(&model, recompute);
                passes.gold(&objective, weights, &batch).unwrap()
            };
            agree(&format!("{name}, gold"), &of(true), &of(false));
        }
        let layouts: Vec<Example> = train.iter().map(|e| e.example.clone()).collect();
        let of = |recompute| {
            let mut passes = passes(&model, recompute);
            let logprobs = passes.logprobs(&layouts, Some(&weights)).unwrap();
            let (hidden, values) = passes.reference(&Packed::new(&layouts), None).unwrap();
            (logprobs, hidden, values)
        };
        let ((fast, hidden, values), (slow, slow_hidden, slow_values)) = (of(true), of(false));
        for (x, y) in fast.iter().flatten().zip(slow.iter().flatten()) {
            assert!((x - y).abs() < 1e-4 * y.abs(), "{name}: {x} and {y}");
        }
        for (x, y) in values.iter().zip(&slow_values) {
            assert!((x - y).abs() < 1e-4, "{name}: {x} and {y}");
        }
        assert!(furthest(&(hidden - slow_hidden).unwrap()) < 1e-4, "{name}");
    }
}

#[test]
fn losses_and_every_gradient_agree_with_pytorch() {
    let lora = TrainableLora::from_weights(&adapter("adapter")).unwrap();
    let samples = samples();
    let mut passes = passes(dense(), true);
    let mut of = |preference| {
        let objective = objective(preference);
        let (gradients, parts) = passes.loss(&objective, &lora, &refs(&samples)).unwrap();
        (parts.total(), gradients)
    };
    let (total, gradients) = of(PreferenceLoss::Sigmoid);
    check_norms(total, &gradients);
    check_elements(&gradients);
    let (total, gradients) = of(PreferenceLoss::Ipo);
    check_ipo(total, &gradients);
}

#[test]
fn the_gold_gradient_agrees_with_pytorch() {
    let gold = examples("gold");
    let layouts: Vec<_> = gold.iter().map(|example| (example, None)).collect();
    let objective = objective(PreferenceLoss::Sigmoid);
    let mut passes = passes(dense(), true);
    let sum = passes.gold(&objective, &fresh(), &layouts).unwrap();
    close(
        sum.norm().unwrap() / gold.len() as f64,
        &golden()["impact_at_B_zero"]["gJ_norm"],
        4e-3,
        "norm of the gold gradient",
    );
}
