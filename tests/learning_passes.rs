//! The CPU's own learning passes on packed weights: against PyTorch's golden values on the default
//! model, and against candle's automatic differentiation for every family. Tolerances on the
//! default model are those of tests/golden/README.md.

use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use realign_align::impact::score::{At, directional_along, per_pair};
use realign_align::train::adamw::AdamW;
use realign_align::train::examples::{Reference, TokenPair, with_reference};
use realign_align::train::passes::Passes;
use realign_align::train::{
    Gradients, LossParts, Objective, PreferenceLoss, Recipe, TrainExample, TrainableLora,
};
use realign_core::Category;
use realign_cpu::CpuBackend;
use realign_cpu::stored::{Origin, load_cached};
use realign_model::cache::WeightsCache;
use realign_model::packing::{Example, Packed};
use realign_model::{Backend, LoraWeights, ModelSource, Precision};
use realign_reference::ReferenceBackend;

use crate::golden_parity::{adapter, dense_model, examples, golden, model_path};
use crate::golden_training::{check_scores, close, fresh, golden_pairs, objective, peft_name};

/// The default model as it serves, loaded once.
fn packed_model() -> &'static CpuBackend {
    static MODEL: OnceLock<CpuBackend> = OnceLock::new();
    MODEL.get_or_init(|| {
        let files = ModelSource::parse(&model_path()).and_then(ModelSource::fetch);
        let files = files.expect("the model is there");
        CpuBackend::new(realign_cpu::load(&files).expect("it loads"))
    })
}

fn samples(backend: &dyn Backend) -> Vec<TrainExample> {
    let (pairs, weights): (Vec<TokenPair>, Vec<f64>) = golden_pairs().into_iter().unzip();
    let at = Reference {
        backend,
        lowest_layer: 0,
        precision: Precision::Exact,
        conflicts: true,
    };
    let mut examples = with_reference(at, &pairs, 640, |_| true).unwrap().unwrap();
    examples
        .iter_mut()
        .zip(weights)
        .for_each(|(e, w)| e.weight = w);
    examples
}

fn refs(examples: &[TrainExample]) -> Vec<&TrainExample> {
    examples.iter().collect()
}

fn passes(backend: &dyn Backend, precision: Precision) -> Passes {
    Passes::new(backend, precision).unwrap()
}

fn norm(t: &Tensor) -> f64 {
    f64::from(
        t.sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap(),
    )
    .sqrt()
}

#[test]
fn losses_and_every_gradient_agree_with_pytorch() {
    let model = packed_model();
    let lora = TrainableLora::from_weights(&adapter("adapter")).unwrap();
    let samples = samples(model);
    let expected = golden()["grad_norms"].as_object().unwrap();
    let sample =
        candle_core::safetensors::load("tests/golden/grads_sample.safetensors", &Device::Cpu)
            .unwrap();
    // bfloat16 keeps eight bits of a gradient's factors. Values stay closer than that; squares of
    // margins, as IPO has them, show that activations have sixteen bits.
    for (precision, relative, absolute, ipo_total) in [
        (Precision::Exact, 1e-3, 2e-3, 2e-3),
        (Precision::Mixed, 2e-2, 8e-2, 3e-2),
    ] {
        let objective = objective(PreferenceLoss::Sigmoid);
        let (gradients, parts) = passes(model, precision)
            .loss(&objective, &lora, &refs(&samples))
            .unwrap();
        close(parts.total(), &golden()["total_loss"], 2e-3, "total loss");
        assert_eq!(expected.len(), 2 * gradients.sites.len());
        for (site, (a, b)) in &gradients.sites {
            for (part, gradient) in [("A", a), ("B", b)] {
                let name = peft_name(site, part);
                let golden = expected[&name].as_f64().unwrap();
                let off = norm(gradient) / golden - 1.0;
                assert!(
                    off.abs() < relative,
                    "{precision:?} {name}: norm off by {off}"
                );
                if let Some((_, expected)) = sample.iter().find(|(key, _)| key.contains(&name)) {
                    let off = (gradient - expected)
                        .unwrap()
                        .abs()
                        .unwrap()
                        .flatten_all()
                        .unwrap();
                    let off = off.max(0).unwrap().to_scalar::<f32>().unwrap();
                    assert!(off < absolute, "{precision:?} {name} differs by {off}");
                }
            }
        }
        let ipo = crate::golden_training::objective(PreferenceLoss::Ipo);
        let (_, parts) = passes(model, precision)
            .loss(&ipo, &lora, &refs(&samples))
            .unwrap();
        close(
            parts.total(),
            &golden()["total_loss_ipo_variant"],
            ipo_total,
            "ipo total",
        );
    }
}

#[test]
fn three_adamw_steps_agree_with_pytorch() {
    let model = packed_model();
    let samples = samples(model);
    let lora = TrainableLora::from_weights(&adapter("adapter")).unwrap();
    let mut optimizer = AdamW::new(lora.vars()).unwrap();
    let mut passes = passes(model, Precision::Exact);
    let expected = golden()["adamw3"]["losses_before_each_step_and_final"]
        .as_array()
        .unwrap();
    for (step, expected) in expected.iter().enumerate() {
        let objective = objective(PreferenceLoss::Sigmoid);
        let (gradients, parts) = passes.loss(&objective, &lora, &refs(&samples)).unwrap();
        close(
            parts.total(),
            expected,
            1e-3,
            &format!("loss before step {step}"),
        );
        optimizer
            .update(lora.vars(), &gradients, 1e-3, 1.0)
            .unwrap();
    }
}

#[test]
fn impact_scores_agree_with_pytorch() {
    let model = packed_model();
    let conflicts: Vec<TrainExample> = samples(model).into_iter().take(4).collect();
    let gold = examples("gold");
    let reference = dense_model()
        .response_logprobs(&Packed::new(&gold), None)
        .unwrap();
    for (key, weights, is_fresh) in [
        ("impact_at_adapter", adapter("adapter"), false),
        ("impact_at_B_zero", fresh(), true),
    ] {
        let expected = &golden()[key];
        // What bfloat16 rounds away goes by the terms of a score, however much of them cancels, so
        // small scores are measured by the largest.
        for (precision, relative, of_scores, floor) in [
            (Precision::Exact, 1e-3, 5e-3, 0.05),
            (Precision::Mixed, 1e-2, 2e-2, 0.2),
        ] {
            let at = At {
                backend: model,
                adapter: &weights,
                objective: objective(PreferenceLoss::Sigmoid),
                precision,
            };
            let known = |r: &Vec<f64>| (!is_fresh).then_some([r[0], r[1]]);
            let gold: Vec<(&Example, _)> = gold.iter().zip(reference.iter().map(known)).collect();
            let direction = at
                .gold_gradient(&mut passes(model, precision), &gold, || true)
                .unwrap()
                .unwrap();
            close(
                direction.norm().unwrap(),
                &expected["gJ_norm"],
                4.0 * relative,
                "norm of the gold gradient",
            );
            let fast = directional_along(at, &conflicts, &direction).unwrap();
            check_scores(expected, &conflicts, &fast, (of_scores, floor));
            let slow = per_pair(at, &conflicts, &direction).unwrap();
            check_scores(expected, &conflicts, &slow, (of_scores, floor));
        }
    }
}

use crate::families::FAMILIES;

/// Pairs whose branches are longer than the families' windows.
fn pairs() -> Vec<TokenPair> {
    let tokens = |seed: u32, n: u32| {
        (0..n)
            .map(|i| 3 + (seed * 31 + i * 7) % 50)
            .collect::<Vec<u32>>()
    };
    let pair = |i: u32| TokenPair {
        id: i.to_string(),
        category: Category::ALL[i as usize % 3],
        prompt: tokens(i, 5 + 9 * i),
        chosen: tokens(i + 20, 4 + 2 * i),
        rejected: tokens(i + 40, 41 - 5 * i),
    };
    (0..5).map(pair).collect()
}

fn distance(a: &Gradients, b: &Gradients) -> f64 {
    let mut worst = 0f64;
    for ((site, x), y) in a.sites.iter().zip(b.sites.values()) {
        for (x, y) in [(&x.0, &y.0), (&x.1, &y.1)] {
            let size = norm(y);
            assert!(size > 0.0, "{site:?} has no gradient");
            worst = worst.max(norm(&(x - y).unwrap()) / size);
        }
    }
    worst
}

#[test]
fn every_family_agrees_with_automatic_differentiation() {
    for family in FAMILIES {
        let dir = std::path::Path::new("tests/golden/families").join(family);
        let files = ModelSource::parse(&dir.to_string_lossy())
            .and_then(ModelSource::fetch)
            .unwrap();
        let tensors = ReferenceBackend::new(realign_reference::load(&files).unwrap());
        // Mapped read-only: learning must never write to the base model.
        let dir_of_cache = tempfile::tempdir().unwrap();
        let cache = WeightsCache {
            directory: dir_of_cache.path().into(),
            max_bytes: 1 << 30,
        };
        let (model, origin) = load_cached(&files.cached(Some(&cache))).unwrap();
        assert_eq!(origin, Origin::Written);
        let packed = CpuBackend::new(model);
        let weights: LoraWeights = realign_engine::adapter::peft::read_dir(&dir.join("adapter"))
            .unwrap()
            .weights;
        let lora = TrainableLora::from_weights(&weights).unwrap();
        let objective = Objective {
            alpha_sft: 0.5,
            alpha_opening: 0.25,
            ..objective(PreferenceLoss::Sigmoid)
        };
        let of = |backend: &dyn Backend,
                  precision: Precision|
         -> (Gradients, LossParts, Vec<TrainExample>) {
            let at = Reference {
                backend,
                lowest_layer: 0,
                precision: Precision::Exact,
                conflicts: true,
            };
            let mut examples = with_reference(at, &pairs(), 512, |_| true)
                .unwrap()
                .unwrap();
            examples
                .iter_mut()
                .enumerate()
                .for_each(|(i, e)| e.weight = 0.5 + i as f64);
            let (g, p) = passes(backend, precision)
                .loss(&objective, &lora, &refs(&examples))
                .unwrap();
            (g, p, examples)
        };
        let (slow, slow_parts, examples) = of(&tensors, Precision::Exact);
        for (precision, tolerance) in [(Precision::Exact, 1e-4), (Precision::Mixed, 3e-2)] {
            let (fast, parts, _) = of(&packed, precision);
            assert!(
                (parts.total() - slow_parts.total()).abs() < 1e-4,
                "{family}: {parts:?} and {slow_parts:?}"
            );
            let off = distance(&fast, &slow);
            assert!(
                off < tolerance,
                "{family} {precision:?}: gradients off by {off}"
            );
            // Tangents against gradients: d/dε of the loss along its own gradient is its square.
            let at = At {
                backend: &packed,
                adapter: &weights,
                objective,
                precision,
            };
            let along = directional_along(at, &examples, &slow).unwrap();
            let slow_at = At {
                backend: &tensors,
                precision: Precision::Exact,
                ..at
            };
            let each = per_pair(slow_at, &examples, &slow).unwrap();
            let largest = each.score.iter().fold(0f64, |m, s| m.max(s.abs()));
            for (x, y) in along.score.iter().zip(&each.score) {
                assert!(
                    (x - y).abs() < tolerance * largest,
                    "{family} {precision:?}: {x} and {y}"
                );
            }
        }
    }
}

/// The default recipe names all seven projections; an adapter of a model with experts takes those of
/// attention, and learns.
#[test]
fn adapters_of_models_with_experts_sit_on_attention_and_learn() {
    let files = ModelSource::parse("tests/golden/families/qwen3moe").and_then(ModelSource::fetch);
    let model = CpuBackend::new(realign_cpu::load(&files.unwrap()).unwrap());
    let recipe = Recipe {
        layer_share: 1.0,
        ..Recipe::default()
    };
    let lora = realign_align::train::fresh(&model, &recipe).unwrap();
    let sites = lora.weights().sites;
    assert_eq!(sites.len(), 3 * 4);
    assert!(sites.keys().all(|s| s.projection.parent() == "self_attn"));
    let mlp = Recipe {
        targets: vec!["gate_proj".into()],
        ..recipe
    };
    let error = realign_align::train::fresh(&model, &mlp).unwrap_err();
    assert!(error.to_string().contains("add q_proj"), "{error}");
    let at = Reference {
        backend: &model,
        lowest_layer: 0,
        precision: Precision::Mixed,
        conflicts: true,
    };
    let examples = with_reference(at, &pairs(), 512, |_| true)
        .unwrap()
        .unwrap();
    let mut passes = passes(&model, Precision::Mixed);
    let mut optimizer = AdamW::new(lora.vars()).unwrap();
    let objective = objective(PreferenceLoss::Sigmoid);
    let mut totals = vec![];
    for _ in 0..12 {
        let (gradients, parts) = passes.loss(&objective, &lora, &refs(&examples)).unwrap();
        totals.push(parts.total());
        optimizer
            .update(lora.vars(), &gradients, 1e-2, 1.0)
            .unwrap();
    }
    assert!(totals[11] < 0.8 * totals[0], "{totals:?}");
}

/// With some inputs left out the gradient is still that of the loss: moving along it by a small
/// step changes the loss by the step times its square.
#[test]
fn dropout_thins_values_and_gradients_alike() {
    let files = ModelSource::parse("tests/golden/families/llama").and_then(ModelSource::fetch);
    let model = CpuBackend::new(realign_cpu::load(&files.unwrap()).unwrap());
    let dir = std::path::Path::new("tests/golden/families/llama/adapter");
    let weights = realign_engine::adapter::peft::read_dir(dir)
        .unwrap()
        .weights;
    let at = Reference {
        backend: &model,
        lowest_layer: 0,
        precision: Precision::Exact,
        conflicts: true,
    };
    let examples = with_reference(at, &pairs(), 512, |_| true)
        .unwrap()
        .unwrap();
    let objective = objective(PreferenceLoss::Sigmoid);
    let of = |weights: &LoraWeights, share: f32, seed: u64| {
        let mut passes = passes(&model, Precision::Exact);
        passes
            .drop_out(realign_model::Dropout { share, seed })
            .unwrap();
        let lora = TrainableLora::from_weights(weights).unwrap();
        let (gradients, parts) = passes.loss(&objective, &lora, &refs(&examples)).unwrap();
        (gradients, parts.total())
    };
    let (gradients, loss) = of(&weights, 0.3, 5);
    assert_eq!(
        loss,
        of(&weights, 0.3, 5).1,
        "the same seed leaves the same out"
    );
    assert!(
        (loss - of(&weights, 0.3, 6).1).abs() > 1e-6,
        "another seed leaves something else out"
    );
    assert!((loss - of(&weights, 0.0, 5).1).abs() > 1e-6);
    let step = 1e-3 / gradients.norm().unwrap();
    let ahead = of(&gradients.perturb(&weights, step).unwrap(), 0.3, 5).1;
    let behind = of(&gradients.perturb(&weights, -step).unwrap(), 0.3, 5).1;
    let slope = (ahead - behind) / (2.0 * step);
    let expected = gradients.dot(&gradients).unwrap();
    assert!(
        (slope / expected - 1.0).abs() < 2e-2,
        "{slope} and {expected}"
    );
}
