//! Attention over the paged cache: sixteen keys at a time, up to four queries of a KV head at once.
//!
//! A query's arithmetic does not depend on the queries it shares a pass with.

use super::kv::KvCache;
use realign_model::vector::{exp_shifted_sum, max, soft_cap_in_place};
use realign_model::{AttentionShape, BLOCK_TOKENS, PagedSequence};

/// Queries that share a pass over the keys.
const GROUP: usize = 4;

/// One query: its head's columns and the tokens it sees.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a> {
    /// (head_dim).
    pub(crate) q: &'a [f32],
    /// First and one past the last visible position.
    pub(crate) seen: (usize, usize),
}

/// Attends with up to any number of queries of one sequence to one KV head. `out(i)` gives the
/// place of query `i`'s result, (head_dim).
pub(crate) fn attend<'o>(
    kv: &KvCache,
    (layer, head): (usize, usize),
    sequence: &PagedSequence,
    shape: &AttentionShape,
    queries: &[Query],
    scratch: &mut Vec<f32>,
    out: impl Fn(usize) -> &'o mut [f32],
) {
    for (chunk, first) in queries.chunks(GROUP).zip((0..).step_by(GROUP)) {
        let begin = chunk.iter().map(|q| q.seen.0).min().unwrap_or(0) / BLOCK_TOKENS;
        let end = chunk.iter().map(|q| q.seen.1).max().unwrap_or(0);
        let pass = Pass {
            kv,
            layer,
            head,
            blocks: &sequence.blocks[begin..end.div_ceil(BLOCK_TOKENS)],
            origin: begin * BLOCK_TOKENS,
            end,
        };
        macro_rules! with {
            ($n:literal) => {{
                let group: [Query; $n] = std::array::from_fn(|i| chunk[i]);
                let results: [&mut [f32]; $n] = std::array::from_fn(|i| out(first + i));
                pass.run(shape, group, scratch, results);
            }};
        }
        match chunk.len() {
            1 => with!(1),
            2 => with!(2),
            3 => with!(3),
            _ => with!(4),
        }
    }
}

/// A run of blocks that some queries look at.
struct Pass<'a> {
    kv: &'a KvCache,
    layer: usize,
    head: usize,
    blocks: &'a [u32],
    /// Position of the first token of the first block.
    origin: usize,
    /// One past the last position that any of the queries sees.
    end: usize,
}

impl Pass<'_> {
    fn run<const N: usize>(
        &self,
        shape: &AttentionShape,
        queries: [Query; N],
        scratch: &mut Vec<f32>,
        mut results: [&mut [f32]; N],
    ) {
        let width = self.blocks.len() * BLOCK_TOKENS;
        scratch.resize(N * width, 0.0);
        for (i, block) in self.blocks.iter().enumerate() {
            let (keys, _) = self.kv.head(self.layer, *block, self.head);
            let tile = scores(&queries.map(|q| q.q), keys, shape.scale);
            for (row, tile) in scratch.chunks_exact_mut(width).zip(&tile) {
                row[i * BLOCK_TOKENS..(i + 1) * BLOCK_TOKENS].copy_from_slice(tile);
            }
        }
        for (row, query) in scratch.chunks_exact_mut(width).zip(&queries) {
            let (from, to) = (query.seen.0 - self.origin, query.seen.1 - self.origin);
            row[..from].fill(0.0);
            row[to..].fill(0.0);
            capped_softmax(&mut row[from..to], shape.cap);
        }
        for result in &mut results {
            result.fill(0.0);
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let (_, values) = self.kv.head(self.layer, *block, self.head);
            let at = i * BLOCK_TOKENS;
            // Slots past the sequence's end may hold another's leftovers: not even times zero.
            let tokens = BLOCK_TOKENS.min(self.end - self.origin - at);
            let weights: [&[f32]; N] =
                std::array::from_fn(|n| &scratch[n * width + at..n * width + at + tokens]);
            mix(&weights, values, &mut results);
        }
    }
}

/// Scores ← softmax weights, through the cap if there is one.
fn capped_softmax(scores: &mut [f32], cap: Option<f32>) {
    if let Some(cap) = cap {
        soft_cap_in_place(scores, cap);
    }
    let shift = max(scores);
    let inverse = 1.0 / exp_shifted_sum(scores, shift);
    scores.iter_mut().for_each(|w| *w *= inverse);
}

/// Sixteen scores per query: scale · q·k.
fn scores<const N: usize>(q: &[&[f32]; N], keys: &[f32], scale: f32) -> [[f32; BLOCK_TOKENS]; N] {
    #[inline(always)]
    fn body<const N: usize, const FMA: bool>(
        q: &[&[f32]; N],
        keys: &[f32],
        scale: f32,
    ) -> [[f32; BLOCK_TOKENS]; N] {
        let mut sums = [[0f32; BLOCK_TOKENS]; N];
        let (dimensions, _) = keys.as_chunks::<BLOCK_TOKENS>();
        let d = dimensions.len();
        let q: [&[f32]; N] = q.map(|q| &q[..d]);
        for (i, k) in dimensions.iter().enumerate() {
            for n in 0..N {
                multiply_add::<FMA>(q[n][i], k, &mut sums[n]);
            }
        }
        sums.map(|row| row.map(|s| s * scale))
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2<const N: usize>(
            q: &[&[f32]; N],
            keys: &[f32],
            scale: f32,
        ) -> [[f32; BLOCK_TOKENS]; N] {
            body::<N, true>(q, keys, scale)
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: both features were just detected.
            return unsafe { avx2(q, keys, scale) };
        }
    }
    body::<N, false>(q, keys, scale)
}

/// out[n] += Σ weight · value over some tokens.
fn mix<const N: usize>(weights: &[&[f32]; N], values: &[f32], out: &mut [&mut [f32]; N]) {
    #[inline(always)]
    fn body<const N: usize, const FMA: bool>(
        weights: &[&[f32]; N],
        values: &[f32],
        out: &mut [&mut [f32]; N],
    ) {
        const LANES: usize = 16;
        let (d, tokens) = (out[0].len(), weights[0].len());
        for column in (0..d).step_by(LANES) {
            let lanes = LANES.min(d - column);
            let mut sums = [[0f32; LANES]; N];
            for (sum, out) in sums.iter_mut().zip(out.iter()) {
                sum[..lanes].copy_from_slice(&out[column..column + lanes]);
            }
            for token in 0..tokens {
                let at = token * d + column;
                match values[at..at + lanes].first_chunk::<LANES>() {
                    Some(v) => {
                        for (weights, sum) in weights.iter().zip(&mut sums) {
                            multiply_add::<FMA>(weights[token], v, sum);
                        }
                    }
                    None => {
                        let mut v = [0f32; LANES];
                        v[..lanes].copy_from_slice(&values[at..at + lanes]);
                        for (weights, sum) in weights.iter().zip(&mut sums) {
                            multiply_add::<FMA>(weights[token], &v, sum);
                        }
                    }
                }
            }
            for (sum, out) in sums.iter().zip(out.iter_mut()) {
                out[column..column + lanes].copy_from_slice(&sum[..lanes]);
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2<const N: usize>(weights: &[&[f32]; N], values: &[f32], out: &mut [&mut [f32]; N]) {
            body::<N, true>(weights, values, out);
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: both features were just detected.
            return unsafe { avx2(weights, values, out) };
        }
    }
    body::<N, false>(weights, values, out)
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, x: &[f32; 16], sum: &mut [f32; 16]) {
    for lane in 0..16 {
        sum[lane] = match FMA {
            true => a.mul_add(x[lane], sum[lane]),
            false => sum[lane] + a * x[lane],
        };
    }
}
