//! Steps of several sequences: what one gets does not depend on the others.

use std::sync::Arc;

use candle_core::{DType, Device};
use realign_model::random::random_model;
use realign_model::shapes::shape;
use realign_model::{BLOCK_TOKENS, KvType, PagedSequence, Step};

use crate::{CpuExecutor, Model, PackedWeight};

/// Tokens that all sequences begin with; what follows has blocks of its own.
const SHARED: usize = 544;

fn model() -> Arc<Model> {
    let spec = shape("tiny").unwrap();
    let model = random_model(spec, &Device::Cpu, |m| {
        PackedWeight::from_dense(&m.floats(DType::F32, &Device::Cpu)?)
    });
    Arc::new(model.unwrap())
}

/// Tokens of sequence `index`.
fn tokens(index: usize, length: usize) -> Vec<u32> {
    let own = |i: usize| if i < SHARED { 0 } else { index + 1 };
    (0..length)
        .map(|i| ((i * 37 + own(i) * 101) % 300) as u32)
        .collect()
}

/// Its blocks: the shared ones, then its own.
fn blocks(index: usize) -> Arc<[u32]> {
    let shared = SHARED / BLOCK_TOKENS;
    let own = (shared + index * 8)..(shared + index * 8 + 8);
    (0..shared).chain(own).map(|b| b as u32).collect()
}

/// Runs (sequence, tokens before, rows) in one step; the logits of each one's last row.
fn step(executor: &mut CpuExecutor, parts: &[(usize, usize, usize)]) -> Vec<Vec<f32>> {
    let (mut ids, mut positions) = (Vec::new(), Vec::new());
    let (mut sequences, mut outputs) = (Vec::new(), Vec::new());
    for &(index, cached, rows) in parts {
        sequences.push(PagedSequence {
            start: ids.len(),
            rows,
            cached,
            blocks: blocks(index),
        });
        ids.extend(&tokens(index, cached + rows)[cached..]);
        positions.extend(cached as u32..(cached + rows) as u32);
        outputs.push(ids.len() as u32 - 1);
    }
    let vocab = executor.vocab_size();
    let mut logits = vec![0f32; outputs.len() * vocab];
    let step = Step {
        tokens: &ids,
        positions: &positions,
        sequences: &sequences,
        adapters: &[],
        outputs: &outputs,
    };
    executor.forward(&step, &mut logits).unwrap();
    logits.chunks(vocab).map(<[f32]>::to_vec).collect()
}

#[test]
fn rows_that_share_a_prefix_get_what_each_gets_alone() {
    let model = model();
    for (_, kv) in KvType::ALL {
        let [mut together, mut alone] =
            [3, 1].map(|threads| CpuExecutor::new(model.clone(), 80, threads, kv).unwrap());
        // One sequence in one chunk, here, and in many chunks, there.
        step(&mut together, &[(0, 0, SHARED + 9)]);
        for cached in (0..SHARED).step_by(16) {
            step(&mut alone, &[(0, cached, 16)]);
        }
        step(&mut alone, &[(0, SHARED, 9)]);
        for index in 1..5 {
            step(&mut together, &[(index, SHARED, 9)]);
            for i in 0..9 {
                step(&mut alone, &[(index, SHARED + i, 1)]);
            }
        }
        // Decoding rows beside a prompt that reads the same blocks.
        let last = [
            (0, SHARED + 9, 1),
            (3, SHARED, 5),
            (1, SHARED + 9, 1),
            (2, SHARED + 9, 1),
            (4, SHARED + 3, 1),
        ];
        let all = step(&mut together, &last);
        for (part, together) in last.iter().zip(&all) {
            let alone = &step(&mut alone, &[*part])[0];
            assert_eq!(together, alone, "{kv:?} {part:?}");
            assert!(alone.iter().all(|x| x.is_finite()));
        }
    }
}
