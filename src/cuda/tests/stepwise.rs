//! Gradients of whole models with our own kernels around candle's differentiation, layer by layer and
//! from one graph, against candle's primitives on the CPU.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use realign_model::learning::logprobs_of;
use realign_model::packing::{Example, Packed};
use realign_model::{
    LoraPair, LoraSite, LoraWeights, Measured, ModelFiles, ModelSource, Projection, StoredMatrix,
    TokenLoss,
};
use realign_reference::{Reference, Stepwise, TensorModel};

use super::places;
use crate::ops::Kernels;
use crate::{Weight, stacked};

const FAMILIES: [&str; 3] = ["llama", "qwen2", "gemma2"];

fn files(family: &str) -> ModelFiles {
    let path = realign_model::test_support::root().join("tests/golden/families");
    let files = ModelSource::parse(&path.join(family).to_string_lossy());
    files.and_then(ModelSource::fetch).unwrap()
}

/// The model as a device trains it; on the CPU in f32.
fn on_device(family: &str, device: &Device) -> TensorModel<Weight> {
    let matrix = |stored: StoredMatrix| match device.is_cpu() {
        true => stored.dense().map(Weight::Floats),
        false => Weight::new(&stored, device),
    };
    let model = files(family).load(device, matrix).unwrap();
    TensorModel {
        decoder: stacked(model).unwrap(),
        ops: &Kernels,
    }
}

fn tokens(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|i| 3 + (seed * 31 + i * 7) % 200).collect()
}

fn batch() -> Packed {
    Packed::new(&[
        Example::new(tokens(1, 6), vec![tokens(2, 9), tokens(3, 5)]),
        Example::new(tokens(4, 3), vec![tokens(5, 7)]),
    ])
}

/// Random values of variables at some sites of every layer.
fn adapter(model: &Reference) -> Result<LoraWeights> {
    let spec = &model.decoder.spec;
    let mut sites = BTreeMap::new();
    for layer in 0..spec.layers {
        for projection in [Projection::Q, Projection::V, Projection::Down] {
            let (inner, out) = spec.projection_shape(projection);
            let random = |shape: (usize, usize), size: f32| {
                Ok::<_, candle_core::Error>(
                    Var::randn(0f32, size, shape, &Device::Cpu)?
                        .as_tensor()
                        .clone(),
                )
            };
            let pair = LoraPair {
                a: random((3, inner), 0.2)?,
                b: random((out, 3), 0.1)?,
                scale: 1.5,
            };
            sites.insert(LoraSite { layer, projection }, pair);
        }
    }
    Ok(sites.into())
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

fn furthest(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

fn with_reference<'a>(losses: &'a [TokenLoss], reference: &'a Tensor) -> Measured<'a> {
    Measured {
        losses,
        reference: Some(reference),
    }
}

#[test]
fn every_place_gives_the_gradients_that_the_reference_gives() -> Result<()> {
    let batch = batch();
    let mut losses = logprobs_of(&batch);
    let span = batch.span(1, 0);
    losses[span.clone()].fill(TokenLoss::Kl);
    for family in FAMILIES {
        let plain = realign_reference::load(&files(family)).unwrap();
        let adapter = adapter(&plain)?;
        let width = plain.decoder.spec.hidden_size;
        let hidden = Tensor::randn(0f32, 1.0, (span.len(), width), &Device::Cpu)?;
        let minus = |v: &[f32]| vec![-1.0; v.len()];
        let expected =
            plain.whole_gradients(&batch, &adapter, with_reference(&losses, &hidden), minus)?;
        for device in places() {
            let there = on_device(family, &device);
            // What rounding weights, inputs and gradients to bfloat16 costs a whole pass.
            let tolerance = if device.is_cpu() { 1e-3 } else { 6e-2 };
            let (adapter, hidden) = (moved(&adapter, &device)?, hidden.to_device(&device)?);
            let stepwise = Stepwise::new(&there).gradients(
                &batch,
                &adapter,
                with_reference(&losses, &hidden),
                minus,
            )?;
            let whole =
                there.whole_gradients(&batch, &adapter, with_reference(&losses, &hidden), minus)?;
            for (form, found) in [("stepwise", stepwise), ("whole", whole)] {
                for (site, (a, b)) in &found {
                    let (of_a, of_b) = &expected[site];
                    for (got, expected) in [(a, of_a), (b, of_b)] {
                        let got = got.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                        let size = furthest(expected, &expected.zeros_like()?)?;
                        let off = furthest(&got, expected)?;
                        assert!(
                            off <= tolerance * size,
                            "{family} {form} on {device:?}, {site:?}: off by {off} of {size}"
                        );
                    }
                }
            }
        }
    }
    Ok(())
}
