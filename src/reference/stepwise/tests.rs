//! The passes that go layer by layer against one graph of the whole pass.

use std::collections::BTreeMap;

use super::*;
use candle_core::Device;
use realign_model::packing::Example;
use realign_model::{LoraPair, LoraSite, ModelSource, Projection};

use crate::Reference;

const FAMILIES: [&str; 3] = ["llama", "qwen2", "gemma2"];

fn model(family: &str) -> Reference {
    let path = realign_model::test_support::root().join("tests/golden/families");
    let files = ModelSource::parse(&path.join(family).to_string_lossy());
    let files = files.and_then(ModelSource::fetch).unwrap();
    crate::load(&files).unwrap()
}

fn tokens(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|i| 3 + (seed * 31 + i * 7) % 200).collect()
}

/// Two pairs and a single response.
fn examples() -> Vec<Example> {
    vec![
        Example::new(tokens(1, 6), vec![tokens(2, 9), tokens(3, 5)]),
        Example::new(tokens(4, 3), vec![tokens(5, 7)]),
        Example::new(tokens(6, 11), vec![tokens(7, 2), tokens(8, 12)]),
    ]
}

/// Variables at some sites of every layer from `lowest` on, and their adapter.
fn adapter(model: &Reference, lowest: usize, b_is_zero: bool) -> LoraWeights {
    let spec = &model.decoder.spec;
    let mut sites = BTreeMap::new();
    for layer in lowest..spec.layers {
        for projection in [
            Projection::Q,
            Projection::V,
            Projection::Gate,
            Projection::Down,
        ] {
            let (inner, out) = spec.projection_shape(projection);
            let random = |shape: (usize, usize), size: f32| {
                Var::randn(0f32, size, shape, &Device::Cpu).unwrap()
            };
            let b = random((out, 3), if b_is_zero { 0.0 } else { 0.1 });
            let pair = LoraPair {
                a: random((3, inner), 0.2).as_tensor().clone(),
                b: b.as_tensor().clone(),
                scale: 1.5,
            };
            sites.insert(LoraSite { layer, projection }, pair);
        }
    }
    sites.into()
}

fn furthest(a: &Tensor, b: &Tensor) -> f32 {
    let off = (a - b).and_then(|d| d.abs()?.flatten_all()?.max(0)?.to_scalar());
    off.unwrap()
}

/// Values, then every gradient, in one graph and layer by layer with chunks of `head_rows`.
fn compare(model: &Reference, adapter: &LoraWeights, batch: &Packed, what: &str) -> Result<()> {
    let count = batch.targets().len();
    let span = batch.span(1, 0);
    let mut losses = realign_model::learning::logprobs_of(batch);
    losses[span.clone()].fill(TokenLoss::Kl);
    let width = model.decoder.spec.hidden_size;
    let reference = Tensor::randn(0f32, 1.0, (span.len(), width), &Device::Cpu)?;
    let coefficients: Vec<f32> = (0..count).map(|i| (i % 5) as f32 - 1.7).collect();
    let measured = Measured {
        losses: &losses,
        reference: Some(&reference),
    };
    let mut expected = Vec::new();
    let gradients = model.whole_gradients(batch, adapter, measured, |v| {
        expected = v.to_vec();
        coefficients.clone()
    })?;
    for head_rows in [3, 512] {
        let mut values = Vec::new();
        let at = Stepwise { model, head_rows };
        let found = at.gradients(batch, adapter, measured, |v| {
            values = v.to_vec();
            coefficients.clone()
        })?;
        for (value, expected) in values.iter().zip(&expected) {
            assert!(
                (value - expected).abs() < 2e-4,
                "{what}: {value}, not {expected}"
            );
        }
        assert_eq!(found.len(), adapter.sites.len());
        for (site, (a, b)) in &found {
            let (slow_a, slow_b) = &gradients[site];
            for (gradient, expected) in [(a, slow_a), (b, slow_b)] {
                let size = furthest(expected, &expected.zeros_like()?);
                let off = furthest(gradient, expected);
                assert!(
                    off <= 1e-4 * size,
                    "{what}, {site:?}: off by {off} of {size}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn every_gradient_is_that_of_the_whole_graph() -> Result<()> {
    for family in FAMILIES {
        let model = model(family);
        let layers = model.decoder.spec.layers;
        for (lowest, b_is_zero) in [(0, false), (layers - 1, false), (0, true)] {
            let adapter = adapter(&model, lowest, b_is_zero);
            let what = format!("{family} from layer {lowest}");
            let mut examples = examples();
            compare(&model, &adapter, &Packed::new(&examples), &what)?;
            let states = model.states(&Packed::new(&examples), lowest)?;
            for (example, states) in examples.iter_mut().zip(states) {
                example.states = Some(states);
            }
            let batch = Packed::new(&examples);
            assert!(batch.states.is_some());
            compare(&model, &adapter, &batch, &format!("{what}, with states"))?;
        }
    }
    Ok(())
}

#[test]
fn layers_between_adapted_ones_pass_the_gradient_on() -> Result<()> {
    let model = model("gemma2");
    let mut adapter = adapter(&model, 0, false);
    // Only the lowest layer: everything above passes the gradient through without factors.
    adapter.sites.retain(|site, _| site.layer == 0);
    let examples = examples();
    compare(&model, &adapter, &Packed::new(&examples), "gaps")
}

#[test]
fn values_without_gradients_are_the_same() -> Result<()> {
    let model = model("qwen2");
    let examples = examples();
    let batch = Packed::new(&examples);
    let adapter = adapter(&model, 0, false);
    let expected = model.token_logprobs(&batch, Some(&adapter))?;
    let at = Stepwise {
        model: &model,
        head_rows: 4,
    };
    let losses = realign_model::learning::logprobs_of(&batch);
    let measured = Measured {
        losses: &losses,
        reference: None,
    };
    let hidden = at.hidden(&batch, Some(&adapter))?;
    let values = at.measured(measured, &hidden)?;
    let values = Tensor::from_vec(values, batch.targets().len(), &Device::Cpu)?;
    assert!(furthest(&values, &expected) < 1e-4);
    assert!(!hidden.track_op(), "no graph is left behind");
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let model = model("llama");
    let examples = examples();
    let batch = Packed::new(&examples);
    let variables = adapter(&model, 0, false);
    let at = Stepwise::new(&model);
    let kl = vec![TokenLoss::Kl; batch.targets().len()];
    let of = |losses| Measured {
        losses,
        reference: None,
    };
    let ones = |v: &[f32]| vec![1f32; v.len()];
    let refused = at.gradients(&batch, &variables, of(&kl), ones);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("reference's hidden states")
    );
    let losses = realign_model::learning::logprobs_of(&batch);
    let refused = at.gradients(&batch, &variables, of(&losses), |_| vec![1.0]);
    assert!(refused.unwrap_err().to_string().contains("1 coefficients"));
    let constants = variables.detached();
    let refused = at.gradients(&batch, &constants, of(&losses), ones);
    assert!(refused.is_err());
    let beyond: Vec<TokenLoss> = losses.iter().map(|_| TokenLoss::LogProb(9999)).collect();
    let refused = at.gradients(&batch, &variables, of(&beyond), ones);
    assert!(refused.is_err());
    Ok(())
}

#[test]
fn the_head_takes_as_many_rows_as_its_logits_allow() {
    assert_eq!(
        [head_rows(152_064, true), head_rows(152_064, false)],
        [220, 55]
    );
    assert_eq!([head_rows(0, true), head_rows(usize::MAX, true)], [512, 8]);
}
