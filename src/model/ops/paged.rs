//! Where a sequence's keys and values lie in a paged cache.

use std::sync::Arc;

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
