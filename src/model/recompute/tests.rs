//! The passes that go layer by layer against one graph of the whole pass.

use std::collections::BTreeMap;

use super::*;
use crate::cuda::tests::places;
use crate::packing::{Example, remember_states};
use crate::{LoraPair, LoraSite, ModelSource, Projection};

const FAMILIES: [&str; 3] = ["llama", "qwen2", "gemma2"];

fn model(family: &str, device: &Device) -> Model {
    let path = crate::test_support::root().join("tests/golden/families");
    let files = ModelSource::parse(&path.join(family).to_string_lossy());
    let files = files.and_then(ModelSource::fetch).unwrap();
    files.load(device).unwrap()
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
fn adapter(model: &Model, lowest: usize, b_is_zero: bool) -> LoraWeights {
    let spec = &model.spec;
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
                Var::randn(0f32, size, shape, &model.device).unwrap()
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

/// Σ cᵢ vᵢ of the whole pass in one graph: values, and gradients in the factors' order.
fn whole(
    at: Stepwise,
    batch: &Packed,
    adapter: &LoraWeights,
    (losses, reference): (&[TokenLoss], &Tensor),
    coefficients: &[f32],
) -> Result<(Vec<f32>, Vec<Tensor>)> {
    let Stepwise { model, ops, .. } = at;
    let logits = model.logits(&batch.response_hidden(model, ops, Some(adapter))?)?;
    let logprobs = ops::token_logprobs(ops, &logits, batch.targets())?;
    let (mut sum, mut values, mut kl) = (None, Vec::new(), 0);
    for (i, loss) in losses.iter().enumerate() {
        let value = match loss {
            TokenLoss::LogProb(_) => logprobs.narrow(0, i, 1)?,
            TokenLoss::Kl => {
                kl += 1;
                let reference = model.logits(&reference.narrow(0, kl - 1, 1)?)?;
                ops::kl_from_reference(ops, &reference, &logits.narrow(0, i, 1)?)?
            }
        };
        values.extend(value.to_vec1::<f32>()?);
        let term = (value * f64::from(coefficients[i]))?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    let mut store = sum.expect("there are tokens").sum_all()?.backward()?;
    let factors = adapter.sites.values().flat_map(|p| [&p.a, &p.b]);
    let gradients = factors.map(|f| store.remove(f).map_or_else(|| f.zeros_like(), Ok));
    Ok((values, gradients.collect::<Result<_>>()?))
}

fn furthest(a: &Tensor, b: &Tensor) -> f32 {
    let off = (a - b).and_then(|d| d.abs()?.flatten_all()?.max(0)?.to_scalar());
    off.unwrap()
}

/// How far values and gradients may be apart: a device's weights have 16 bits, to which the two forms
/// round gradients at different scales.
fn tolerance(device: &Device) -> [f32; 2] {
    match device.is_cpu() {
        true => [2e-4, 1e-4],
        false => [2e-2, 3e-2],
    }
}

/// Values, then every gradient, in one graph and layer by layer with chunks of `head_rows`.
fn compare(
    model: &Model,
    ops: Ops,
    adapter: &LoraWeights,
    batch: &Packed,
    what: &str,
) -> Result<()> {
    let count = batch.targets().len();
    let span = batch.span(1, 0);
    let mut losses: Vec<TokenLoss> = batch
        .targets()
        .iter()
        .map(|t| TokenLoss::LogProb(*t))
        .collect();
    losses[span.clone()].fill(TokenLoss::Kl);
    let width = model.spec.hidden_size;
    let reference = Tensor::randn(0f32, 1.0, (span.len(), width), &model.device)?;
    let coefficients: Vec<f32> = (0..count).map(|i| (i % 5) as f32 - 1.7).collect();
    let wanted = (losses.as_slice(), &reference);
    let at = |head_rows| Stepwise {
        model,
        ops,
        head_rows,
    };
    let [of_values, of_gradients] = tolerance(&model.device);
    let (expected, gradients) = whole(at(512), batch, adapter, wanted, &coefficients)?;
    for head_rows in [3, 512] {
        let mut values = Vec::new();
        let wanted = (losses.as_slice(), Some(&reference));
        let found = at(head_rows).gradients(batch, adapter, wanted, |v| {
            values = v.to_vec();
            coefficients.clone()
        })?;
        for (value, expected) in values.iter().zip(&expected) {
            assert!(
                (value - expected).abs() < of_values,
                "{what}: {value}, not {expected}"
            );
        }
        assert_eq!(found.len(), adapter.sites.len());
        let each = found.values().flat_map(|(a, b)| [a, b]);
        for ((site, gradient), expected) in
            found.keys().flat_map(|s| [s, s]).zip(each).zip(&gradients)
        {
            let size = furthest(expected, &expected.zeros_like()?);
            let off = furthest(gradient, expected);
            assert!(
                off <= of_gradients * size,
                "{what}, {site:?}: off by {off} of {size}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_gradient_is_that_of_the_whole_graph() -> Result<()> {
    for device in places() {
        for family in FAMILIES {
            let model = model(family, &device);
            let layers = model.spec.layers;
            for (lowest, b_is_zero) in [(0, false), (layers - 1, false), (0, true)] {
                let adapter = adapter(&model, lowest, b_is_zero);
                for ops in [Ops::Plain, Ops::Device] {
                    in_each_form(&model, ops, &adapter, lowest, family)?;
                }
            }
        }
    }
    Ok(())
}

/// With and without remembered states.
fn in_each_form(
    model: &Model,
    ops: Ops,
    adapter: &LoraWeights,
    lowest: usize,
    family: &str,
) -> Result<()> {
    let what = format!("{family} {ops:?} from layer {lowest} on {:?}", model.device);
    let mut examples = examples();
    compare(model, ops, adapter, &Packed::new(&examples), &what)?;
    remember_states(model, ops, &mut examples, lowest)?;
    let batch = Packed::new(&examples);
    assert!(batch.states.is_some());
    compare(model, ops, adapter, &batch, &format!("{what}, with states"))
}

#[test]
fn layers_between_adapted_ones_pass_the_gradient_on() -> Result<()> {
    let model = model("gemma2", &Device::Cpu);
    let mut adapter = adapter(&model, 0, false);
    // Only the lowest layer: everything above passes the gradient through without factors.
    adapter.sites.retain(|site, _| site.layer == 0);
    let examples = examples();
    compare(
        &model,
        Ops::Plain,
        &adapter,
        &Packed::new(&examples),
        "gaps",
    )
}

#[test]
fn values_without_gradients_are_the_same() -> Result<()> {
    let model = model("qwen2", &Device::Cpu);
    let examples = examples();
    let batch = Packed::new(&examples);
    let adapter = adapter(&model, 0, false);
    let expected = batch.token_logprobs(&model, Ops::Plain, Some(&adapter))?;
    let at = Stepwise {
        model: &model,
        ops: Ops::Plain,
        head_rows: 4,
    };
    let values = at.logprobs(&batch, Some(&adapter))?;
    let values = Tensor::from_vec(values, batch.targets().len(), &Device::Cpu)?;
    assert!(furthest(&values, &expected) < 1e-4);
    assert!(
        !at.hidden(&batch, Some(&adapter))?.track_op(),
        "no graph is left behind"
    );
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let model = model("llama", &Device::Cpu);
    let examples = examples();
    let batch = Packed::new(&examples);
    let variables = adapter(&model, 0, false);
    let at = Stepwise::new(&model, Ops::Plain);
    let losses = vec![TokenLoss::Kl; batch.targets().len()];
    let ones = |v: &[f32]| vec![1f32; v.len()];
    let refused = at.gradients(&batch, &variables, (&losses, None), ones);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("reference's hidden states")
    );
    let losses: Vec<TokenLoss> = batch
        .targets()
        .iter()
        .map(|t| TokenLoss::LogProb(*t))
        .collect();
    let refused = at.gradients(&batch, &variables, (&losses, None), |_| vec![1.0]);
    assert!(refused.unwrap_err().to_string().contains("1 coefficients"));
    let constants = variables.detached();
    let refused = at.gradients(&batch, &constants, (&losses, None), ones);
    assert!(refused.is_err());
    let beyond: Vec<TokenLoss> = losses.iter().map(|_| TokenLoss::LogProb(9999)).collect();
    assert!(
        at.gradients(&batch, &variables, (&beyond, None), ones)
            .is_err()
    );
    Ok(())
}

#[test]
fn choices_are_read_and_written() {
    for choice in [Recompute::Auto, Recompute::On, Recompute::Off] {
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
    assert_eq!("yes".parse::<Recompute>(), Err(Recompute::ALLOWED));
    assert!(!Recompute::Auto.unplanned(&Device::Cpu) && Recompute::On.unplanned(&Device::Cpu));
    assert_eq!(
        [head_rows(152_064, true), head_rows(152_064, false)],
        [220, 55]
    );
    assert_eq!([head_rows(0, true), head_rows(usize::MAX, true)], [512, 8]);
}

/// The same values as variables in another place.
fn moved(adapter: &LoraWeights, device: &Device) -> Result<LoraWeights> {
    let variable = |t: &Tensor| -> Result<Tensor> {
        let there = t.detach().to_device(device)?.copy()?;
        Ok(Var::from_tensor(&there)?.as_tensor().clone())
    };
    let mut sites = adapter.sites.clone();
    for pair in sites.values_mut() {
        (pair.a, pair.b) = (variable(&pair.a)?, variable(&pair.b)?);
    }
    Ok(sites.into())
}

/// What rounding weights, inputs and gradients to bfloat16 costs a whole pass.
const ROUNDED: f32 = 6e-2;

#[test]
fn every_place_gives_the_gradients_that_the_cpu_gives() -> Result<()> {
    for family in FAMILIES {
        let on_cpu = model(family, &Device::Cpu);
        let adapter = adapter(&on_cpu, 0, false);
        let examples = examples();
        let batch = Packed::new(&examples);
        let losses: Vec<TokenLoss> = batch
            .targets()
            .iter()
            .map(|t| TokenLoss::LogProb(*t))
            .collect();
        let of = |model: &Model, adapter: &LoraWeights| -> Result<Vec<Tensor>> {
            let at = Stepwise::new(model, Ops::for_device(&model.device));
            let found = at.gradients(&batch, adapter, (&losses, None), |v| vec![-1.0; v.len()])?;
            let each = found.into_values().flat_map(|(a, b)| [a, b]);
            each.map(|t| t.to_device(&Device::Cpu)).collect()
        };
        let expected = of(&on_cpu, &adapter)?;
        for device in places() {
            let there = model(family, &device);
            let found = of(&there, &moved(&adapter, &device)?)?;
            for (got, expected) in found.iter().zip(&expected) {
                let size = furthest(expected, &expected.zeros_like()?);
                let off = furthest(got, expected);
                let near = off <= ROUNDED * size;
                assert!(near, "{family} on {device:?}: off by {off} of {size}");
            }
        }
    }
    Ok(())
}
