//! What serving hands to a backend: the rows of a step, and what is wanted of them.

use std::ops::Range;
use std::sync::Arc;

use super::backend::Staged;
use super::draw::DrawRequest;

/// Tokens in a block of a paged cache: on the CPU, the width of a vector of scores.
pub const BLOCK_TOKENS: usize = 16;

/// One sequence's part of a batch.
#[derive(Clone, Debug)]
pub struct PagedSequence {
    /// First of its rows in the batch.
    pub start: usize,
    /// Its rows in the batch: 1 for decode, more for prefill.
    pub rows: usize,
    /// Tokens it has in the cache before this batch.
    pub cached: usize,
    /// Its blocks, in order; they hold at least `cached + rows` tokens.
    pub blocks: Arc<[u32]>,
}

/// Rows of a step and the adapter that they carry.
#[derive(Clone, Debug)]
pub struct AdapterSpan {
    /// Consecutive rows of the step.
    pub rows: Range<usize>,
    /// The adapter, as the backend that runs the step has staged it.
    pub adapter: Staged,
}

/// What one forward pass computes. Rows are tokens, sequences follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Token ids, one per row.
    pub tokens: &'a [u32],
    /// Position of each row in its sequence.
    pub positions: &'a [u32],
    /// Which rows belong to which sequence, and where its keys and values are.
    pub sequences: &'a [PagedSequence],
    /// Adapters by ascending row range; rows in no range run on the base model.
    pub adapters: &'a [AdapterSpan],
    /// Rows whose logits are wanted, ascending.
    pub outputs: &'a [u32],
}

/// What a step gives for each of its outputs.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// How each output's token is to be drawn where the executor does that; `None` asks for its
    /// logits instead. Empty for an executor that does not draw.
    pub draws: &'a [Option<DrawRequest>],
    /// (outputs, vocabulary); only the rows that were asked for are written.
    pub logits: &'a mut [f32],
    /// The drawn tokens, `None` where logits were asked for, and
    /// [`NOT_FINITE`](super::draw::NOT_FINITE) where there is nothing to draw from. Empty from an
    /// executor that does not draw.
    pub tokens: &'a mut Vec<Option<u32>>,
}
