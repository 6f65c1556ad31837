//! Losses, gradients, optimiser steps and impact scores against PyTorch + PEFT. Tolerances are
//! those of tests/golden/README.md.

use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use realign_align::impact::score::{At, directional_along, per_pair};
use realign_align::impact::{Scored, weigh};
use realign_align::train::adamw::AdamW;
use realign_align::train::examples::{Reference, TokenPair};
use realign_align::train::passes::Passes;
use realign_align::train::{
    Gradients, Objective, PreferenceLoss, TrainExample, TrainableLora, WeightScale,
};
use realign_core::Category;
use realign_model::packing::{Example, Packed};
use realign_model::{
    Backend, LoraPair, LoraSite, LoraWeights, PassOptions, Precision, Projection, Recompute,
};
use serde_json::Value;

use crate::golden_parity::{adapter, dense, dense_model, example, examples, golden};

pub(crate) fn close(got: f64, expected: &Value, tolerance: f64, what: &str) {
    let expected = expected
        .as_f64()
        .unwrap_or_else(|| panic!("{what}: golden value missing"));
    assert!(
        (got - expected).abs() <= tolerance,
        "{what}: got {got}, PyTorch has {expected}"
    );
}

pub(crate) fn objective(preference: PreferenceLoss) -> Objective {
    Objective {
        beta: 0.3,
        alpha_kl: 0.1,
        alpha_sft: 0.0,
        alpha_opening: 0.0,
        preference,
    }
}

/// The six golden samples with their weights; INVERT's chosen response is the preferred one there.
pub(crate) fn golden_pairs() -> Vec<(TokenPair, f64)> {
    let pair = |s: &Value| {
        let example = example(s);
        let category = match s["category"].as_str().unwrap() {
            "INVERT" => Category::Invert,
            "PUNISH" => Category::Punish,
            _ => Category::Retain,
        };
        let [first, second] = [example.responses[0].clone(), example.responses[1].clone()];
        let (chosen, rejected) = match category {
            Category::Invert => (second, first),
            _ => (first, second),
        };
        let pair = TokenPair {
            id: s["id"].as_str().unwrap().into(),
            category,
            prompt: example.prompt,
            chosen,
            rejected,
        };
        (pair, s["weight"].as_f64().unwrap())
    };
    let samples = golden()["samples"].as_array().unwrap();
    samples.iter().map(pair).collect()
}

/// The golden samples with the reference's view of them, which every test begins with.
pub(crate) fn samples() -> Vec<TrainExample> {
    static SAMPLES: OnceLock<Vec<TrainExample>> = OnceLock::new();
    SAMPLES.get_or_init(measured).clone()
}

fn measured() -> Vec<TrainExample> {
    let (pairs, weights): (Vec<TokenPair>, Vec<f64>) = golden_pairs().into_iter().unzip();
    let mut examples = realign_align::train::examples::with_reference(
        Reference {
            backend: dense(),
            lowest_layer: 0,
            precision: Precision::Exact,
            conflicts: true,
        },
        &pairs,
        640,
        |_| true,
    )
    .unwrap()
    .unwrap();
    for (example, weight) in examples.iter_mut().zip(weights) {
        example.weight = weight;
    }
    examples
}

pub(crate) fn refs(examples: &[TrainExample]) -> Vec<&TrainExample> {
    examples.iter().collect()
}

/// Passes whose gradients come from the graph of a whole pass.
fn whole_graph() -> Passes {
    let options = PassOptions {
        precision: Precision::Exact,
        recompute: Recompute::Off,
        ..PassOptions::default()
    };
    Passes::with(dense(), options).unwrap()
}

fn gradients(objective: Objective, examples: &[TrainExample]) -> (f64, Gradients) {
    let lora = TrainableLora::from_weights(&adapter("adapter")).unwrap();
    let (gradients, parts) = whole_graph()
        .loss(&objective, &lora, &refs(examples))
        .unwrap();
    (parts.total(), gradients)
}

/// Total and gradients of the default loss.
fn of_sigmoid() -> &'static (f64, Gradients) {
    static FOUND: OnceLock<(f64, Gradients)> = OnceLock::new();
    FOUND.get_or_init(|| gradients(objective(PreferenceLoss::Sigmoid), &samples()))
}

#[test]
fn every_loss_agrees_per_sample() {
    let lora = TrainableLora::from_weights(&adapter("adapter")).unwrap();
    for example in samples() {
        let one = |objective: Objective| {
            let unweighted = TrainExample {
                weight: 1.0,
                ..example.clone()
            };
            whole_graph()
                .loss(&objective, &lora, &[&unweighted])
                .unwrap()
                .1
        };
        let expected = &golden()["losses"][example.id.as_str()];
        let sigmoid = one(objective(PreferenceLoss::Sigmoid));
        match example.category {
            Category::Invert => {
                close(sigmoid.invert, &expected["loss_dpo"], 2e-3, &example.id);
                let ipo = one(objective(PreferenceLoss::Ipo));
                close(ipo.invert, &expected["loss_ipo"], 1e-2, &example.id);
            }
            Category::Punish => close(sigmoid.punish, &expected["loss_npo2"], 2e-3, &example.id),
            Category::Retain => close(
                sigmoid.retain / 0.1,
                &expected["kl_mean"],
                2e-3,
                &example.id,
            ),
        }
    }
}

#[test]
fn the_total_loss_and_the_norm_of_every_gradient_agree() {
    let (total, gradients) = of_sigmoid();
    check_norms(*total, gradients);
}

/// The golden total and the norm of every gradient of the golden samples.
pub(crate) fn check_norms(total: f64, gradients: &Gradients) {
    close(total, &golden()["total_loss"], 2e-3, "total loss");
    close(
        gradients.norm().unwrap(),
        &golden()["grad_norm_total"],
        1e-3 * 24.6,
        "total gradient norm",
    );
    let expected = golden()["grad_norms"].as_object().unwrap();
    assert_eq!(expected.len(), 2 * gradients.sites.len());
    for (site, (a, b)) in &gradients.sites {
        for (part, gradient) in [("A", a), ("B", b)] {
            let name = peft_name(site, part);
            let norm = f64::from(
                gradient
                    .sqr()
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap(),
            )
            .sqrt();
            let golden_norm = expected[&name].as_f64().unwrap();
            assert!(norm > 0.0, "{name} has no gradient");
            assert!(
                (norm / golden_norm - 1.0).abs() < 1e-3,
                "{name}: got {norm}, PyTorch has {golden_norm}"
            );
        }
    }
}

#[test]
fn the_ipo_total_agrees() {
    let (total, gradients) = gradients(objective(PreferenceLoss::Ipo), &samples());
    check_ipo(total, &gradients);
}

/// The golden values of the other preference loss.
pub(crate) fn check_ipo(total: f64, gradients: &Gradients) {
    close(
        total,
        &golden()["total_loss_ipo_variant"],
        1e-2,
        "ipo total",
    );
    close(
        gradients.norm().unwrap(),
        &golden()["grad_norm_total_ipo_variant"],
        1e-3 * 680.0,
        "ipo gradient norm",
    );
}

pub(crate) fn peft_name(site: &LoraSite, part: &str) -> String {
    format!(
        "base_model.model.model.layers.{}.self_attn.{}.lora_{part}.weight",
        site.layer,
        site.projection.name()
    )
}

#[test]
fn full_gradients_agree_element_by_element() {
    let (_, gradients) = of_sigmoid();
    check_elements(gradients);
}

/// The golden gradients that are stored whole.
pub(crate) fn check_elements(gradients: &Gradients) {
    let sample =
        candle_core::safetensors::load("tests/golden/grads_sample.safetensors", &Device::Cpu)
            .unwrap();
    let mut compared = 0;
    for (site, (a, b)) in &gradients.sites {
        for (part, gradient) in [("A", a), ("B", b)] {
            let name = peft_name(site, part);
            let Some((_, expected)) = sample.iter().find(|(key, _)| key.contains(&name)) else {
                continue;
            };
            let difference = (gradient - expected)
                .unwrap()
                .abs()
                .unwrap()
                .flatten_all()
                .unwrap();
            let difference = difference.max(0).unwrap().to_scalar::<f32>().unwrap();
            assert!(difference < 2e-3, "{name} differs by {difference}");
            compared += 1;
        }
    }
    assert_eq!(
        compared,
        sample.len(),
        "every sampled gradient was compared"
    );
}

#[test]
fn every_seven_projections_get_a_gradient_with_a_random_b() {
    let spec = dense().spec();
    let mut weights = LoraWeights::default();
    for layer in 0..spec.layers {
        for projection in Projection::ALL {
            let (inner, out) = spec.projection_shape(projection);
            let random = |shape| Tensor::randn(0f32, 0.02, shape, &Device::Cpu).unwrap();
            weights.sites.insert(
                LoraSite { layer, projection },
                LoraPair {
                    a: random((4, inner)),
                    b: random((out, 4)),
                    scale: 2.0,
                },
            );
        }
    }
    let lora = TrainableLora::from_weights(&weights).unwrap();
    let examples = samples();
    let objective = objective(PreferenceLoss::Sigmoid);
    let (gradients, _) = whole_graph()
        .loss(&objective, &lora, &refs(&examples[..3]))
        .unwrap();
    assert_eq!(gradients.sites.len(), 30 * 7);
    for (site, (a, b)) in &gradients.sites {
        for gradient in [a, b] {
            assert!(
                gradient
                    .abs()
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap()
                    > 0.0,
                "{site:?} has no gradient"
            );
        }
    }
}

#[test]
fn three_adamw_steps_agree() {
    let examples = samples();
    let lora = TrainableLora::from_weights(&adapter("adapter")).unwrap();
    let mut optimizer = AdamW::new(lora.vars()).unwrap();
    let expected = golden()["adamw3"]["losses_before_each_step_and_final"]
        .as_array()
        .unwrap();
    for (step, expected) in expected.iter().enumerate() {
        let taken;
        let (total, gradients) = if step == 0 {
            of_sigmoid()
        } else {
            let objective = objective(PreferenceLoss::Sigmoid);
            let (gradients, parts) = whole_graph()
                .loss(&objective, &lora, &refs(&examples))
                .unwrap();
            taken = (parts.total(), gradients);
            &taken
        };
        close(*total, expected, 1e-3, &format!("loss before step {step}"));
        if step < 3 {
            optimizer
                .step(lora.vars(), gradients, 1e-3, f64::INFINITY)
                .unwrap();
        }
    }
    let (ours, theirs) = (lora.snapshot().unwrap(), adapter("adapter_step3"));
    let mut differences: Vec<f32> = Vec::new();
    for (site, pair) in &ours.sites {
        let other = &theirs.sites[site];
        for (x, y) in [(&pair.a, &other.a), (&pair.b, &other.b)] {
            differences.extend(
                (x - y)
                    .unwrap()
                    .abs()
                    .unwrap()
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap(),
            );
        }
    }
    let mean = differences.iter().map(|d| f64::from(*d)).sum::<f64>() / differences.len() as f64;
    let within =
        differences.iter().filter(|d| **d < 1e-4).count() as f64 / differences.len() as f64;
    assert!(mean < 1e-5, "mean difference {mean}");
    assert!(within >= 0.999, "only {within} of the entries within 1e-4");
}

/// The adapter of the golden file with B set to zero: what a fresh adapter looks like.
pub(crate) fn fresh() -> LoraWeights {
    let mut weights = adapter("adapter");
    for pair in weights.sites.values_mut() {
        pair.b = pair.b.zeros_like().unwrap();
    }
    weights
}

/// Conflicting golden samples, and the golden gold batch with its reference log-probabilities.
fn impact_inputs() -> (Vec<TrainExample>, Vec<Example>, Vec<[f64; 2]>) {
    let conflicts = samples().into_iter().take(4).collect();
    let gold = examples("gold");
    let reference = dense_model()
        .response_logprobs(&Packed::new(&gold), None)
        .unwrap();
    (
        conflicts,
        gold,
        reference.into_iter().map(|r| [r[0], r[1]]).collect(),
    )
}

fn at(adapter: &LoraWeights) -> At<'_> {
    At {
        backend: dense(),
        adapter,
        objective: objective(PreferenceLoss::Sigmoid),
        precision: Precision::Exact,
    }
}

/// At B = 0 the adapted model equals the reference, so every margin is exactly zero: the point at
/// which impact is really scored, and where a loss with a kink would show.
#[test]
fn impact_scores_agree_by_gradients_and_by_directional_derivative() {
    let (conflicts, gold, reference) = impact_inputs();
    let reference = reference.into_iter().map(Some);
    let gold: Vec<(&Example, _)> = gold.iter().zip(reference).collect();
    for (key, weights) in [
        ("impact_at_adapter", adapter("adapter")),
        ("impact_at_B_zero", fresh()),
    ] {
        let expected = &golden()[key];
        let mut passes = Passes::new(dense(), Precision::Exact).unwrap();
        let direction = at(&weights)
            .gold_gradient(&mut passes, &gold, || true)
            .unwrap()
            .unwrap();
        close(
            direction.norm().unwrap(),
            &expected["gJ_norm"],
            1e-3 * 4.0,
            "norm of the gold gradient",
        );
        let exact = per_pair(at(&weights), &conflicts, &direction).unwrap();
        check_scores(expected, &conflicts, &exact, (1e-3, 0.05));
        let fast = directional_along(at(&weights), &conflicts, &direction).unwrap();
        check_scores(expected, &conflicts, &fast, (1e-2, 0.05));
        let normalised = weigh(&exact.score, 1.0, WeightScale::SumOne).unwrap();
        for (example, weight) in conflicts.iter().zip(normalised.values) {
            close(
                weight,
                &expected["normalised"][example.id.as_str()],
                1e-4,
                &format!("{key} {}", example.id),
            );
        }
    }
}

/// Scores within `relative` of PyTorch's, or of `floor` times the largest where they are smaller than that.
pub(crate) fn check_scores(
    expected: &Value,
    conflicts: &[TrainExample],
    scored: &Scored,
    (relative, floor): (f64, f64),
) {
    let largest = scored.score.iter().fold(0f64, |m, s| m.max(s.abs()));
    for (example, score) in conflicts.iter().zip(&scored.score) {
        let golden = expected["raw_score"][example.id.as_str()].as_f64().unwrap();
        let tolerance = relative * golden.abs().max(floor * largest);
        close(
            *score,
            &expected["raw_score"][example.id.as_str()],
            tolerance,
            &example.id,
        );
    }
}
