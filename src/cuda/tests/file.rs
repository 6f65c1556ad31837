//! A whole GGUF file on the executor: the default model's own integers, read, laid out and multiplied
//! as a device does it, against the CPU's executor on the same file.

use std::sync::Arc;

use candle_core::{DType, Device, Result};

use super::devices;
use crate::integer::IntegerWeight;
use crate::{CudaExecutor, Options};
use crate::{Weight, stacked};
use realign_cpu::CpuExecutor;
use realign_model::PagedSequence;
use realign_model::source::ModelSource;
use realign_model::test_support::test_model_path;
use realign_model::{KvType, Outputs, Step, StoredMatrix};

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
    let failed = |e: realign_model::ModelError| candle_core::Error::Msg(e.to_string());
    let packed = Arc::new(realign_cpu::load(&files).map_err(failed)?);
    let vocab = packed.spec.vocab_size;
    // The file's matrices as a device keeps them.
    let integers = |stored: StoredMatrix| match stored.owned()? {
        StoredMatrix::Quantized(stored) => {
            let kept = IntegerWeight::new(&stored, &Device::Cpu, DType::F32)?;
            Ok(Weight::Integers(kept.expect("integers")))
        }
        _ => panic!("the file's matrices are quantised"),
    };
    let device = files.load(&Device::Cpu, integers).map_err(failed)?;
    let device = Arc::new(stacked(device)?);
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
    CpuExecutor::new(packed, 1, 1, KvType::F32)?.forward(&step, &mut expected)?;
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
