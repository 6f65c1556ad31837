//! The paged KV cache of the CPU executor.
//!
//! Inside a block, keys lie dimension by dimension, so that one vector holds a dimension of sixteen
//! tokens and scores come out sixteen at a time; values lie token by token. One KV head's part of a
//! block is contiguous.

use realign_model::BLOCK_TOKENS;

use super::aligned::AlignedBytes;
use super::team::Shards;

/// Keys and values of all sequences, f32. Memory that no sequence has touched costs nothing.
#[derive(Debug)]
pub(crate) struct KvCache {
    data: AlignedBytes,
    /// Blocks in the pool.
    pub(crate) blocks: usize,
    /// KV heads of a layer.
    pub(crate) heads: usize,
    /// Columns of a head.
    pub(crate) head_dim: usize,
}

impl KvCache {
    /// A cache of `blocks` blocks for `layers` layers; `None` if the system has no such memory.
    pub(crate) fn new(layers: usize, heads: usize, head_dim: usize, blocks: usize) -> Option<Self> {
        let bytes = blocks.checked_mul(Self::bytes_per_block(layers, heads, head_dim))?;
        Some(Self {
            data: AlignedBytes::try_zeroed(bytes)?,
            blocks,
            heads,
            head_dim,
        })
    }

    /// Bytes of keys and values of one block, all layers.
    pub(crate) fn bytes_per_block(layers: usize, heads: usize, head_dim: usize) -> usize {
        layers * heads * 2 * BLOCK_TOKENS * head_dim * size_of::<f32>()
    }

    /// Floats of one head's keys (or values) in one block.
    fn half(&self) -> usize {
        BLOCK_TOKENS * self.head_dim
    }

    fn offset(&self, layer: usize, block: u32, head: usize) -> usize {
        ((layer * self.blocks + block as usize) * self.heads + head) * 2 * self.half()
    }

    fn floats(&self) -> &[f32] {
        // SAFETY: aligned to at least 64 bytes, and any bytes are valid floats.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.data.len() / 4) }
    }

    /// Keys (head_dim, 16) and values (16, head_dim) of one head of one block.
    pub(crate) fn head(&self, layer: usize, block: u32, head: usize) -> (&[f32], &[f32]) {
        let at = self.offset(layer, block, head);
        self.floats()[at..at + 2 * self.half()].split_at(self.half())
    }

    /// The cache as parts that threads may write side by side.
    pub(crate) fn shards(&mut self) -> KvShards<'_> {
        let len = self.data.len() / 4;
        let (blocks, heads, half) = (self.blocks, self.heads, self.half());
        // SAFETY: aligned to at least 64 bytes, any bytes are valid floats, and `self` is borrowed
        // mutably for as long as the shards live.
        let floats =
            unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast::<f32>(), len) };
        KvShards {
            floats: Shards::new(floats),
            blocks,
            heads,
            half,
        }
    }
}

/// See [`KvCache::shards`].
pub(crate) struct KvShards<'a> {
    floats: Shards<'a, f32>,
    blocks: usize,
    heads: usize,
    half: usize,
}

impl<'a> KvShards<'a> {
    /// One head's part of a block: keys, then values.
    ///
    /// # Safety
    /// No two live parts may be of the same layer, block and head.
    pub(crate) unsafe fn head(&self, layer: usize, block: u32, head: usize) -> &'a mut [f32] {
        let at = ((layer * self.blocks + block as usize) * self.heads + head) * 2 * self.half;
        // SAFETY: passed on; different parts lie apart.
        unsafe { self.floats.part(at, 2 * self.half) }
    }
}

/// Writes a token's key and value of one head into its part of a block.
pub(crate) fn write_token(part: &mut [f32], slot: usize, key: &[f32], value: &[f32]) {
    let (keys, values) = part.split_at_mut(BLOCK_TOKENS * key.len());
    for (dimension, k) in key.iter().enumerate() {
        keys[dimension * BLOCK_TOKENS + slot] = *k;
    }
    values[slot * value.len()..(slot + 1) * value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_no_machine_has_is_refused_and_others_are_zero() {
        for blocks in [usize::MAX, usize::MAX / 64, 1 << 50] {
            assert!(KvCache::new(30, 3, 64, blocks).is_none(), "{blocks}");
        }
        let small = KvCache::new(2, 1, 4, 3).unwrap();
        assert!(small.floats().iter().all(|f| *f == 0.0));
    }
}
