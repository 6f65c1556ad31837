//! Models whose weights are floats of 16 bits, against the same weights in f32.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use realign_model::random::random_model;
use realign_model::shapes::shape;
use realign_model::spec::Mixture;
use realign_model::{
    BLOCK_TOKENS, KvType, ModelSpec, PagedSequence, Precision, Step, StoredMatrix,
};

use super::CpuExecutor;
use crate::{Model, pack};

/// No width is a multiple of a panel and of a vector at once.
fn spec() -> ModelSpec {
    ModelSpec {
        vocab_size: 75,
        hidden_size: 50,
        intermediate_size: 83,
        heads: 3,
        kv_heads: 1,
        head_dim: 16,
        ..shape("tiny").unwrap()
    }
}

/// As above, with experts in its second layer.
fn mixture() -> ModelSpec {
    let mut spec = spec();
    spec.variant.mixture = Some(Mixture {
        experts: 7,
        used: 3,
        inner: 21,
        normalised: true,
        layers: vec![false, true],
    });
    spec
}

/// A random model in these types: the same values in each.
fn models(spec: ModelSpec, stored: DType) -> Result<(Arc<Model>, Arc<Model>)> {
    let random = random_model(spec, &Device::Cpu, |m| {
        let values = m.floats(DType::F32, &Device::Cpu)?;
        values.to_dtype(stored).map(StoredMatrix::Floats)
    })?;
    let widened = random
        .clone()
        .map(|m| m.dense().map(StoredMatrix::Floats))?;
    Ok((Arc::new(pack(random)?), Arc::new(pack(widened)?)))
}

/// Logits of all tokens, fed in chunks.
fn logits(model: &Arc<Model>, precision: Precision, chunks: &[usize]) -> Result<Vec<f32>> {
    let total: usize = chunks.iter().sum();
    let blocks: Arc<[u32]> = (0..total.div_ceil(BLOCK_TOKENS) as u32).collect();
    let executor = CpuExecutor::new(model.clone(), blocks.len(), 2, KvType::F32)?;
    let mut executor = executor.in_precision(precision);
    let width = executor.vocab_size();
    let (mut all, mut cached) = (vec![0f32; total * width], 0);
    for &rows in chunks {
        let positions: Vec<u32> = (cached as u32..(cached + rows) as u32).collect();
        let tokens: Vec<u32> = positions.iter().map(|p| p * 31 % 75).collect();
        let outputs: Vec<u32> = (0..rows as u32).collect();
        let step = Step {
            tokens: &tokens,
            positions: &positions,
            sequences: &[PagedSequence {
                start: 0,
                rows,
                cached,
                blocks: blocks.clone(),
            }],
            adapters: &[],
            outputs: &outputs,
        };
        executor.forward(&step, &mut all[cached * width..(cached + rows) * width])?;
        cached += rows;
    }
    Ok(all)
}

/// The largest difference, as a part of the largest value.
fn distance(ours: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let off = ours.iter().zip(expected).map(|(a, b)| (a - b).abs());
    off.fold(0f32, f32::max) / largest
}

#[test]
fn weights_of_16_bits_give_what_they_give_in_f32() -> Result<()> {
    for stored in [DType::BF16, DType::F16] {
        // Not in mixed precision, which may choose other experts.
        let (short, long) = models(mixture(), stored)?;
        let expected = logits(&long, Precision::Exact, &[40])?;
        let exact = logits(&short, Precision::Exact, &[40])?;
        let off = distance(&exact, &expected);
        assert!(off < 1e-5, "{stored:?}, experts: {off}");
        let (short, long) = models(spec(), stored)?;
        let expected = logits(&long, Precision::Exact, &[40])?;
        let exact = logits(&short, Precision::Exact, &[40])?;
        let off = distance(&exact, &expected);
        assert!(off < 1e-5, "{stored:?}: {off}");
        let mixed = logits(&short, Precision::Mixed, &[40])?;
        let off = distance(&mixed, &expected);
        println!("{stored:?}, mixed: {off}");
        // f16 is never rounded.
        let most = if stored == DType::BF16 { 2e-2 } else { 1e-5 };
        assert!(off < most, "{stored:?}, mixed: {off}");
    }
    Ok(())
}

#[test]
fn chunks_of_a_prompt_and_single_tokens_give_the_same_bits() -> Result<()> {
    for stored in [DType::BF16, DType::F16, DType::F32] {
        let (dense, _) = models(spec(), stored)?;
        let (sparse, _) = models(mixture(), stored)?;
        let precisions = [Precision::Exact, Precision::Mixed];
        let cases = precisions.map(|precision| [(&dense, precision), (&sparse, precision)]);
        for (model, precision) in cases.into_iter().flatten() {
            let whole = logits(model, precision, &[40])?;
            for chunks in [&[7, 16, 1, 16][..], &[2, 3, 5, 30], &[1; 40]] {
                let same = logits(model, precision, chunks)? == whole;
                assert!(same, "{stored:?}, {precision:?}, {chunks:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn memory_is_that_of_the_file() -> Result<()> {
    let bytes = |model: &Model| {
        let maps = model.weights().map(crate::PackedWeight::bytes);
        maps.sum::<usize>() + model.head.bytes()
    };
    for stored in [DType::BF16, DType::F16] {
        let (short, long) = models(spec(), stored)?;
        assert!(bytes(&short) * 100 <= bytes(&long) * 52, "{stored:?}");
    }
    let gguf = Tensor::randn(0f32, 1.0, (32, 64), &Device::Cpu)?;
    for kind in [
        candle_core::quantized::GgmlDType::BF16,
        candle_core::quantized::GgmlDType::F16,
    ] {
        let stored = candle_core::quantized::QTensor::quantize(&gguf, kind)?;
        let packed = crate::PackedWeight::from_quantized(&stored)?;
        assert_eq!(packed.bytes(), 32 * 64 * 2);
    }
    Ok(())
}
