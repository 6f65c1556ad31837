//! What `benches/attention.rs` measures. It is public for that bench only, and no part of this crate's interface.

use std::cell::Cell;

use half::f16;
use realign_model::{AttentionShape, BLOCK_TOKENS, KvType};

use crate::attention::{Head, Query, Work};
use crate::kernels::Isa;
use crate::kv::{KvCache, KvShape, Stored};

/// The attention of one KV head over a context in a cache of its own.
#[derive(Debug)]
pub struct AttentionHead {
    kv: KvCache,
    blocks: Vec<u32>,
    shape: AttentionShape,
    /// Each query's columns, one after another.
    queries: Vec<f32>,
    seen: Vec<(usize, usize)>,
    work: Work,
    out: Vec<f32>,
}

impl AttentionHead {
    /// The last `rows` tokens of a context, `group` queries each; `number` makes keys, values and queries. `None` if the
    /// cache finds no memory.
    pub fn new(
        kind: KvType,
        (tokens, head_dim): (usize, usize),
        (rows, group): (usize, usize),
        mut number: impl FnMut() -> f32,
    ) -> Option<Self> {
        let blocks: Vec<u32> = (0..tokens.div_ceil(BLOCK_TOKENS) as u32).collect();
        let shape = KvShape {
            layers: 1,
            heads: 1,
            head_dim,
        };
        let mut kv = KvCache::new(shape, kind, blocks.len())?;
        match kind {
            KvType::F32 => fill::<f32>(&mut kv, (tokens, head_dim), &mut number),
            KvType::F16 => fill::<f16>(&mut kv, (tokens, head_dim), &mut number),
            KvType::Q8 => fill::<u8>(&mut kv, (tokens, head_dim), &mut number),
        }
        let positions =
            (tokens.saturating_sub(rows)..tokens).flat_map(|p| (0..group).map(move |_| p));
        let seen: Vec<(usize, usize)> = positions.map(|p| (0, p + 1)).collect();
        Some(Self {
            kv,
            blocks,
            shape: AttentionShape::full(head_dim),
            queries: (0..seen.len() * head_dim).map(|_| 4.0 * number()).collect(),
            out: vec![0.0; seen.len() * head_dim],
            seen,
            work: Work::default(),
        })
    }

    /// The instruction sets of this processor that there are kernels for, the best one last.
    pub fn instruction_sets() -> Vec<&'static str> {
        Isa::available().skip(1).map(Isa::name).collect()
    }

    /// Attends once, with the instruction set of this name, or with plain Rust where this processor has none of that name.
    pub fn attend(&mut self, instruction_set: &str) -> &[f32] {
        let named = Isa::available().find(|isa| isa.name() == instruction_set);
        let isa = named.unwrap_or(Isa::Portable);
        let head_dim = self.shape.head_dim;
        let queries = self.queries.chunks_exact(head_dim).zip(&self.seen);
        let queries: Vec<Query> = queries.map(|(q, seen)| Query { q, seen: *seen }).collect();
        let places = self.out.chunks_exact_mut(head_dim);
        let places: Vec<Cell<Option<&mut [f32]>>> =
            places.map(|place| Cell::new(Some(place))).collect();
        let head = Head {
            isa,
            kv: &self.kv,
            at: (0, 0),
            shape: &self.shape,
            upcoming: None,
        };
        let place = |i: usize| places[i].take().unwrap_or_default();
        head.attend(&self.blocks, &queries, &mut self.work, place);
        drop(places);
        &self.out
    }
}

fn fill<E: Stored>(
    kv: &mut KvCache,
    (tokens, head_dim): (usize, usize),
    number: &mut impl FnMut() -> f32,
) {
    let shards = kv.shards::<E>();
    for position in 0..tokens {
        // SAFETY: one part at a time.
        let part = unsafe { shards.head(0, (position / BLOCK_TOKENS) as u32, 0) };
        let mut columns = || (0..head_dim).map(|_| number()).collect::<Vec<f32>>();
        let (key, value) = (columns(), columns());
        E::write(part, position % BLOCK_TOKENS, &key, &value);
    }
}
