//! Hidden states of the executor against those of the shared decoder.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::executor::{BLOCKS, VOCABULARY, families, spec};
use super::integer::with_integers;
use super::{UnderTest, devices, random_floats, reference};
use crate::Model;
use crate::{CudaExecutor, Options};
use realign_model::spec::{ModelSpec, Variant};
use realign_model::{BLOCK_TOKENS, Step};
use realign_model::{PagedSequence, Segment};
use realign_reference::Batch;

const LENGTHS: [usize; 3] = [19, 1, 7];

/// Three sequences, each in blocks of its own.
fn sequences() -> Vec<PagedSequence> {
    let (mut start, mut block) = (0, 0);
    let one = |rows: &usize| {
        let blocks = rows.div_ceil(BLOCK_TOKENS) as u32;
        let sequence = PagedSequence {
            start,
            rows: *rows,
            cached: 0,
            blocks: (block..block + blocks).collect(),
        };
        start += rows;
        block += blocks;
        sequence
    };
    LENGTHS.iter().map(one).collect()
}

fn compare(test: &UnderTest, name: &str, model: Model) -> Result<()> {
    let (layers, hidden) = (model.spec.layers, model.spec.hidden_size);
    let twin = reference(&model)?;
    let rows: usize = LENGTHS.iter().sum();
    let tokens: Vec<u32> = (0..rows).map(|i| (i * 13 % VOCABULARY) as u32).collect();
    let positions: Vec<u32> = LENGTHS.iter().flat_map(|n| 0..*n as u32).collect();
    let sequences = sequences();
    let step = Step {
        tokens: &tokens,
        positions: &positions,
        sequences: &sequences,
        adapters: &[],
        outputs: &[],
    };
    let mut executor = CudaExecutor::new(&*test.gpu, Arc::new(model), BLOCKS, Options::default())?;
    // The embedding, what enters the second layer, and what leaves the last; twice, as a pass must
    // leave nothing behind.
    let wanted: Vec<usize> = (0..=layers).collect();
    let mut got: Vec<(usize, Tensor)> = Vec::new();
    for _ in 0..2 {
        got.clear();
        executor.residuals(&step, &wanted, |layer, x| {
            let x = Tensor::new(x, &Device::Cpu).and_then(|x| x.reshape((rows, hidden)));
            got.push((layer, x.expect("rows of hidden states")));
        })?;
    }
    let segment = |s: &PagedSequence| Segment::sequence(s.start, s.rows);
    let batch = Batch {
        tokens: &tokens,
        positions: &positions,
        adapters: &[],
        segments: sequences.iter().map(segment).collect(),
    };
    let mut seen = 0;
    twin.residuals(&batch, &wanted, |layer, expected| {
        let (of, x) = &got[seen];
        seen += 1;
        assert_eq!(*of, layer);
        test.same(&format!("{name}, layer {layer}"), x, expected, 1e-3)
    })?;
    assert_eq!(seen, got.len());
    let error = executor
        .residuals(&step, &[1, 0], |_, _| ())
        .expect_err("not ascending");
    assert!(error.to_string().contains("ascending part of 0..=2"));
    assert!(executor.residuals(&step, &[layers + 1], |_, _| ()).is_err());
    Ok(())
}

#[test]
fn hidden_states_are_those_of_the_shared_decoder() -> Result<()> {
    use candle_core::quantized::GgmlDType::{Q4_1, Q8_0};
    for test in devices() {
        for (name, spec) in families() {
            compare(&test, name, random_floats(spec, DType::F32, &test.device)?)?;
        }
        let wide = ModelSpec {
            hidden_size: 64,
            intermediate_size: 96,
            ..spec(Variant::default())
        };
        let floats = random_floats(wide, DType::F32, &Device::Cpu)?;
        let model = with_integers(&floats, &[Q4_1, Q8_0], (DType::F32, &test.device))?;
        compare(&test, "integers", model)?;
    }
    Ok(())
}
