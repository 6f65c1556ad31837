//! The paged KV cache of the CPU executor.
//!
//! Inside a block, keys lie dimension by dimension, so that one vector holds a dimension of sixteen
//! tokens and scores come out sixteen at a time; values lie token by token, in whole vectors. One
//! KV head's part of a block is contiguous.

use realign_model::{BLOCK_TOKENS, KvType};

use super::aligned::AlignedBytes;
use half::f16;

use super::attention::Element;
use super::team::Shards;

use self::eight::LINE;
pub(crate) use self::eight::{Eight, OFFSET, round};

mod eight;

/// Keys and values of all sequences. Memory that no sequence has touched costs nothing.
#[derive(Debug)]
pub(crate) struct KvCache {
    data: AlignedBytes,
    /// What an element is.
    pub(crate) kind: KvType,
    /// Blocks in the pool.
    pub(crate) blocks: usize,
    /// KV heads of a layer.
    pub(crate) heads: usize,
    /// Columns of a head.
    pub(crate) head_dim: usize,
}

/// Sizes of a model's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    /// Layers.
    pub(crate) layers: usize,
    /// KV heads of a layer.
    pub(crate) heads: usize,
    /// Columns of a head.
    pub(crate) head_dim: usize,
}

impl KvShape {
    /// Bytes of keys and values of one block, all layers.
    pub(crate) fn bytes_per_block(self, kind: KvType) -> usize {
        let elements = elements(kind, self.head_dim);
        self.layers * self.heads * elements * kind.bytes()
    }
}

/// Columns of a value: whole vectors.
fn columns(head_dim: usize) -> usize {
    head_dim.next_multiple_of(BLOCK_TOKENS)
}

/// Elements of one head's keys and values in one block; with 8 bits, their scales too.
fn elements(kind: KvType, head_dim: usize) -> usize {
    match kind {
        KvType::F32 | KvType::F16 => BLOCK_TOKENS * (head_dim + columns(head_dim)),
        KvType::Q8 => BLOCK_TOKENS * (head_dim.next_multiple_of(4) + columns(head_dim)) + 2 * LINE,
    }
}

impl KvCache {
    /// A cache of `blocks` blocks; `None` if the system has no such memory.
    pub(crate) fn new(shape: KvShape, kind: KvType, blocks: usize) -> Option<Self> {
        let bytes = blocks.checked_mul(shape.bytes_per_block(kind))?;
        Some(Self {
            data: AlignedBytes::try_zeroed(bytes)?,
            kind,
            blocks,
            heads: shape.heads,
            head_dim: shape.head_dim,
        })
    }

    /// Columns of a value: those of the head, up to whole vectors.
    pub(crate) fn columns(&self) -> usize {
        columns(self.head_dim)
    }

    /// # Panics
    /// If the cache holds another type.
    fn check<E: Stored>(&self) {
        assert_eq!(
            size_of::<E>(),
            self.kind.bytes(),
            "elements of {:?}",
            self.kind
        );
    }

    fn offset(&self, layer: usize, block: u32, head: usize) -> usize {
        ((layer * self.heads + head) * self.blocks + block as usize)
            * elements(self.kind, self.head_dim)
    }

    fn elements<E: Stored>(&self) -> &[E] {
        self.check::<E>();
        let len = self.data.len() / size_of::<E>();
        // SAFETY: aligned to at least 64 bytes, and any bytes are valid f32, f16 and u8.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), len) }
    }

    /// Keys (head_dim, 16) and values (16, columns) of one head of one block.
    pub(crate) fn head<E: Element>(&self, layer: usize, block: u32, head: usize) -> (&[E], &[E]) {
        let at = self.offset(layer, block, head);
        let part = &self.elements()[at..at + elements(self.kind, self.head_dim)];
        part.split_at(BLOCK_TOKENS * self.head_dim)
    }

    /// The same as bytes.
    pub(crate) fn bytes(&self, layer: usize, block: u32, head: usize) -> &[u8] {
        let size = self.kind.bytes();
        let at = self.offset(layer, block, head) * size;
        &self.data[at..at + elements(self.kind, self.head_dim) * size]
    }

    /// The cache as parts that threads may write side by side.
    pub(crate) fn shards<E: Stored>(&mut self) -> KvShards<'_, E> {
        self.check::<E>();
        let len = self.data.len() / size_of::<E>();
        let (blocks, heads, elements) =
            (self.blocks, self.heads, elements(self.kind, self.head_dim));
        // SAFETY: aligned to at least 64 bytes, any bytes are valid f32, f16 and u8, and `self` is
        // borrowed mutably for as long as the shards live.
        let all =
            unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast::<E>(), len) };
        KvShards {
            all: Shards::new(all),
            blocks,
            heads,
            elements,
        }
    }
}

/// See [`KvCache::shards`].
pub(crate) struct KvShards<'a, E> {
    all: Shards<'a, E>,
    blocks: usize,
    heads: usize,
    elements: usize,
}

impl<'a, E: Stored> KvShards<'a, E> {
    /// One head's part of a block: keys, then values.
    ///
    /// # Safety
    /// No two live parts may be of the same layer, block and head.
    pub(crate) unsafe fn head(&self, layer: usize, block: u32, head: usize) -> &'a mut [E] {
        let at = ((layer * self.heads + head) * self.blocks + block as usize) * self.elements;
        // SAFETY: passed on; different parts lie apart.
        unsafe { self.all.part(at, self.elements) }
    }
}

/// What a cache is made of.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    /// Rounds a token's key and value of one head, and writes them into its part of a block.
    fn write(part: &mut [Self], slot: usize, key: &[f32], value: &[f32]);
}

impl Stored for f32 {
    fn write(part: &mut [f32], slot: usize, key: &[f32], value: &[f32]) {
        write_each(part, slot, key, value);
    }
}

impl Stored for f16 {
    fn write(part: &mut [f16], slot: usize, key: &[f32], value: &[f32]) {
        write_each(part, slot, key, value);
    }
}

fn write_each<E: Element>(part: &mut [E], slot: usize, key: &[f32], value: &[f32]) {
    let (keys, values) = part.split_at_mut(BLOCK_TOKENS * key.len());
    let columns = values.len() / BLOCK_TOKENS;
    E::from_floats(value, &mut values[slot * columns..][..value.len()]);
    let places = keys.chunks_mut(BLOCK_TOKENS * BLOCK_TOKENS);
    for (key, places) in key.chunks(BLOCK_TOKENS).zip(places) {
        let mut rounded = [E::default(); BLOCK_TOKENS];
        E::from_floats(key, &mut rounded[..key.len()]);
        let places = places[slot..].iter_mut().step_by(BLOCK_TOKENS);
        places.zip(rounded).for_each(|(place, k)| *place = k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_no_machine_has_is_refused_and_others_are_zero() {
        let shape = KvShape {
            layers: 30,
            heads: 3,
            head_dim: 64,
        };
        for blocks in [usize::MAX, usize::MAX / 64, 1 << 50] {
            assert!(
                KvCache::new(shape, KvType::F16, blocks).is_none(),
                "{blocks}"
            );
        }
        let small = KvCache::new(shape, KvType::F32, 3).unwrap();
        assert!(small.elements::<f32>().iter().all(|f| *f == 0.0));
        let bytes = [KvType::F32, KvType::F16].map(|kind| shape.bytes_per_block(kind));
        assert_eq!(bytes[0], 30 * 3 * 64 * 2 * BLOCK_TOKENS * 4);
        assert_eq!(bytes[0], 2 * bytes[1]);
        let eight = shape.bytes_per_block(KvType::Q8);
        assert_eq!(eight, bytes[1] / 2 + 30 * 3 * 128, "and two scales a token");
    }

    #[test]
    fn tokens_lie_where_they_are_read() {
        let shape = KvShape {
            layers: 1,
            heads: 2,
            head_dim: 20,
        };
        let mut cache = KvCache::new(shape, KvType::F16, 2).unwrap();
        let key: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let value: Vec<f32> = (0..20).map(|i| 0.5 - i as f32).collect();
        let shards = cache.shards::<f16>();
        // SAFETY: the only part.
        f16::write(unsafe { shards.head(0, 1, 1) }, 5, &key, &value);
        let (keys, values) = cache.head::<f16>(0, 1, 1);
        for i in 0..20 {
            assert_eq!(keys[i * BLOCK_TOKENS + 5].to_f32(), key[i]);
            assert_eq!(values[5 * 32 + i].to_f32(), value[i]);
        }
        let written = keys.iter().chain(values).filter(|e| e.to_f32() != 0.0);
        assert_eq!(written.count(), 39);
    }
}
