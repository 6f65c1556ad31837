//! The probe of a generation before it serves: one forward pass, whose logits must all be finite.

use std::sync::Arc;

use realign_model::vector::all_finite;
use realign_model::{AdapterSpan, Executor, Outputs, PagedSequence, Step, Tokenizer};

use crate::adapter::generation::Generation;
use crate::merged::PrepareError;

/// What is computed; its first block of tokens.
pub(crate) const TEXT: &str = "Once upon a time, a child asked: what is good for many people? Here is an answer, \
    in plain words and 3 short lines.";

/// Runs the text on a generation, in a block of the cache that no sequence has, and looks at the
/// logits of every row.
///
/// # Errors
/// [`PrepareError::NotFinite`], or [`PrepareError::Build`] if the pass fails.
pub(crate) fn probe(
    executor: &mut dyn Executor,
    generation: &Generation,
    tokenizer: &Tokenizer,
    (block, block_size): (u32, usize),
) -> Result<(), PrepareError> {
    let failed = |reason: String| PrepareError::Build {
        generation: generation.id.clone(),
        reason,
    };
    let encoded = tokenizer.encode_prompt(TEXT);
    let mut tokens = encoded.map_err(|e| failed(e.to_string()))?;
    tokens.truncate(block_size);
    if tokens.is_empty() {
        tokens.push(0);
    }
    let rows = tokens.len();
    let positions: Vec<u32> = (0..).take(rows).collect();
    let adapter = generation.adapter.iter();
    let adapters: Vec<AdapterSpan> = adapter
        .map(|adapter| AdapterSpan {
            rows: 0..rows,
            adapter: adapter.staged.clone(),
        })
        .collect();
    let sequence = PagedSequence {
        start: 0,
        rows,
        cached: 0,
        blocks: Arc::from([block]),
    };
    let step = Step {
        tokens: &tokens,
        positions: &positions,
        sequences: &[sequence],
        adapters: &adapters,
        outputs: &positions,
    };
    let draws = vec![None; if executor.draws() { rows } else { 0 }];
    let mut logits = vec![0.0; rows * executor.vocab_size()];
    let mut outputs = Outputs {
        draws: &draws,
        logits: &mut logits,
        tokens: &mut Vec::new(),
    };
    executor
        .forward(&step, &mut outputs)
        .map_err(|e| failed(e.to_string()))?;
    if all_finite(&logits) {
        return Ok(());
    }
    Err(PrepareError::NotFinite {
        generation: generation.id.clone(),
    })
}
