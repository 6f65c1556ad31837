//! Attention over the paged cache.

use super::{Heads, WARP_THREADS, WARPS, launch};
use crate::gpu::{Arg, Element, Launch};

/// Scores of a layer, and how its work is cut.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Rotated queries inside qkv.
    pub(crate) qkv: u64,
    /// The layer's keys and values.
    pub(crate) cache: [u64; 2],
    /// [`crate::tables::Tile`]s.
    pub(crate) tiles: u64,
    /// How many.
    pub(crate) tile_count: usize,
    /// Block numbers that tiles point into, u32.
    pub(crate) blocks: u64,
    /// Factor on scores.
    pub(crate) scale: f32,
    /// Soft cap; 0 for none.
    pub(crate) cap: f32,
    /// Tokens that a row sees; 0 for all.
    pub(crate) window: usize,
    /// Query heads that a block takes.
    pub(crate) part: usize,
    /// Parts that the tokens are split into.
    pub(crate) splits: usize,
    /// Tokens of each, a multiple of [`CHUNK`].
    pub(crate) split_tokens: usize,
    /// Scratch, (rows, heads, splits, head_dim + 2), f32.
    pub(crate) partial: u64,
}

/// (row, head) pairs that a block holds for a head's width; `None` where there is no such kernel.
pub fn attention_pairs(head_dim: usize) -> Option<usize> {
    match head_dim {
        32 | 64 | 96 | 128 => Some(16),
        256 => Some(8),
        _ => None,
    }
}

/// The kernel for a head's width; call it with one that [`attention_pairs`] knows.
fn attention_kernel(element: Element, head_dim: usize) -> &'static str {
    match head_dim {
        32 => instance!(element, "attention_32"),
        64 => instance!(element, "attention_64"),
        96 => instance!(element, "attention_96"),
        128 => instance!(element, "attention_128"),
        _ => instance!(element, "attention_256"),
    }
}

/// Attention of all tiles, split by split.
pub fn attention(element: Element, heads: Heads, a: &Attend) -> Launch {
    let args = vec![
        Arg::address(a.qkv),
        Arg::address(a.cache[0]),
        Arg::address(a.cache[1]),
        Arg::address(a.tiles),
        Arg::address(a.blocks),
        Arg::float(a.scale),
        Arg::float(a.cap),
        Arg::int(a.window),
        Arg::int(heads.queries),
        Arg::int(heads.kv),
        Arg::int(a.part),
        Arg::int(a.split_tokens),
        Arg::address(a.partial),
    ];
    let parts = (heads.queries / heads.kv).div_ceil(a.part);
    let grid = [a.tile_count, heads.kv * parts, a.splits];
    launch(
        attention_kernel(element, heads.dim),
        grid,
        WARP_THREADS,
        args,
    )
}

/// m (rows, heads · head_dim) ← the joined splits.
pub fn attention_merge(
    element: Element,
    heads: Heads,
    [rows, splits]: [usize; 2],
    [partial, m]: [u64; 2],
) -> Launch {
    let args = vec![
        Arg::address(partial),
        Arg::int(splits),
        Arg::int(heads.queries),
        Arg::int(heads.dim),
        Arg::address(m),
    ];
    launch(
        instance!(element, "attention_merge"),
        [rows, heads.queries.div_ceil(WARPS), 1],
        WARP_THREADS,
        args,
    )
}
