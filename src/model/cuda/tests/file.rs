//! A whole GGUF file on the executor: the default model's own integers, read, laid out and multiplied
//! as a device does it, against the CPU's executor on the same file.

use std::sync::Arc;

use candle_core::{DType, Device, Result};

use super::devices;
use crate::cpu::{CpuExecutor, Step};
use crate::cuda::{CudaExecutor, Options, Outputs};
use crate::decoder::Model;
use crate::integer::IntegerWeight;
use crate::linear::{Linear, Weight};
use crate::ops::PagedSequence;
use crate::source::ModelSource;
use crate::test_support::test_model_path;

/// The file's matrices as a device keeps them.
fn for_device(mut model: Model) -> Result<Model> {
    let integers = |weight: &Weight| -> Result<Weight> {
        let Weight::Quantized(stored) = weight else {
            panic!("the file's matrices are quantised, not {weight:?}");
        };
        let kept = IntegerWeight::new(stored, &Device::Cpu, DType::F32)?;
        Ok(Weight::Integer(kept.expect("integers")))
    };
    for layer in &mut model.layers {
        for map in layer.attention.iter_mut().chain(&mut layer.mlp) {
            let weight = integers(map.weight())?;
            *map = Linear::new(map.site.layer, map.site.projection, weight, None);
        }
    }
    model.embedding = integers(&model.embedding)?;
    model.head = match model.spec.tied_embeddings {
        true => model.embedding.clone(),
        false => integers(&model.head)?,
    };
    model.stacked()
}

#[test]
fn the_default_model_computes_on_a_device_what_it_computes_on_the_cpu() -> Result<()> {
    // In step alone: half a billion products take seconds.
    let Some(test) = devices().into_iter().find(|test| test.device.is_cpu()) else {
        return Ok(());
    };
    let path = test_model_path();
    let files = ModelSource::parse(&path.to_string_lossy())
        .and_then(ModelSource::fetch)
        .map_err(|e| candle_core::Error::Msg(e.to_string()))?;
    let model = files
        .load(&Device::Cpu)
        .map_err(|e| candle_core::Error::Msg(e.to_string()))?;
    let (vocab, packed) = (model.spec.vocab_size, Arc::new(model.clone().packed()?));
    let device = Arc::new(for_device(model)?);
    let tokens = [504u32, 3575, 282, 4649];
    let sequences = [PagedSequence {
        start: 0,
        rows: 4,
        cached: 0,
        blocks: Arc::from([0u32]),
    }];
    let step = Step {
        tokens: &tokens,
        positions: &[0, 1, 2, 3],
        sequences: &sequences,
        adapters: &[],
        outputs: &[3],
    };
    let mut expected = vec![0f32; vocab];
    CpuExecutor::new(packed, 1, 1)?.forward(&step, &mut expected)?;
    let mut got = vec![0f32; vocab];
    let mut tokens = Vec::new();
    let mut outputs = Outputs {
        draws: &[None],
        logits: &mut got,
        tokens: &mut tokens,
    };
    CudaExecutor::new(&*test.gpu, device, 1, Options::default())?.forward(&step, &mut outputs)?;
    let best = |v: &[f32]| {
        let top = v.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        top.map(|(token, _)| token)
    };
    assert_eq!(best(&got), best(&expected));
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let off = got
        .iter()
        .zip(&expected)
        .fold(0f32, |m, (g, e)| m.max((g - e).abs()));
    // The CPU rounds activations to eight bits.
    assert!(scale > 5.0 && off < 0.05 * scale, "{off} of {scale}");
    Ok(())
}
