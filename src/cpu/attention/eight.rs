//! One segment of a context whose keys and values have 8 bits: products of integers, softmax in floats.
//!
//! Queries are rounded to 8 bits and weights to 16, so every sum of products is exact, whatever its order and the instruction
//! set. A segment's weights share the scale of its largest value, which makes a weight's error at most 2⁻¹⁷ of the largest.

#![allow(clippy::needless_range_loop)] // one index walks several register arrays

mod weights;

use std::ops::Range;

use self::weights::{Factors, weigh};
use super::ahead::Ahead;
use super::lanes::{BYTES, LANES, Lanes, soft_cap};
use super::segment::{MOST, SEGMENT, STRIP, tiles};
use super::state::{State, Work};
use crate::kv::Eight;

/// Blocks of a strip, and of a segment.
const FEW: usize = STRIP / LANES;
const BLOCKS: usize = SEGMENT / LANES;
const STRIPS: usize = SEGMENT / STRIP;

/// Lines ahead that are asked for with every four vectors that are read, and how often that is done for a strip's weights:
/// with three queries, as evenly as the time goes by, and all of them once.
const LINES: usize = 2;
const TIMES: usize = 7;

/// Keys and values of one KV head of a sequence.
pub(super) struct Context8<'a> {
    /// By block.
    pub(super) block: &'a dyn Fn(usize) -> Eight<'a>,
    /// How many blocks there are.
    pub(super) count: usize,
    /// Vectors of columns of a value.
    pub(super) vectors: usize,
    /// The cap on scores.
    pub(super) cap: Option<f32>,
}

/// A segment's keys and values.
struct Segment<'a> {
    /// Of its first token.
    position: usize,
    blocks: [Eight<'a>; BLOCKS],
}

/// Scores of a query, by block.
type Scores = [[f32; LANES]; BLOCKS];

/// High and low bytes of a query's weights, by strip.
type Limbs = [[[u8; BYTES]; STRIPS]; 2];

/// Buffers of a thread.
#[derive(Debug, Default)]
pub(super) struct Rounded {
    /// Scores of a tile's queries.
    scores: Vec<Scores>,
    /// Of all queries: their weights, and what sums of products with them are multiplied with.
    limbs: Vec<Limbs>,
    after: Vec<f32>,
}

impl Rounded {
    /// Makes room for so many queries.
    pub(super) fn resize(&mut self, queries: usize) {
        self.scores.resize(MOST, [[0.0; LANES]; BLOCKS]);
        self.limbs.resize(queries, [[[0; BYTES]; STRIPS]; 2]);
        self.after.resize(queries, 0.0);
    }
}

/// Tokens of a segment that the queries of a tile see, and the strips that hold them.
struct Seen<const N: usize> {
    tokens: [(usize, usize); N],
    strips: Range<usize>,
}

impl<const N: usize> Seen<N> {
    /// `None` if there are no such tokens.
    fn of(position: usize, seen: &[(usize, usize)]) -> Option<Self> {
        let within = |at: usize| at.saturating_sub(position).min(SEGMENT);
        let tokens: [(usize, usize); N] =
            std::array::from_fn(|n| (within(seen[n].0), within(seen[n].1)));
        let from = tokens.iter().map(|t| t.0).min()?;
        let to = tokens.iter().map(|t| t.1).max()?;
        let strips = from / STRIP..to.div_ceil(STRIP);
        (from < to).then_some(Self { tokens, strips })
    }
}

/// Calls a function of a context for every tile of queries.
macro_rules! for_tiles {
    ($queries:expr, $first:ident, $v:ident, $this:ident.$name:ident($($arg:expr),*)) => {
        let mut $first = 0;
        for queries in tiles($queries) {
            match queries {
                1 => $this.$name::<$v, 1>($($arg),*),
                2 => $this.$name::<$v, 2>($($arg),*),
                3 => $this.$name::<$v, 3>($($arg),*),
                4 => $this.$name::<$v, 4>($($arg),*),
                5 => $this.$name::<$v, 5>($($arg),*),
                _ => $this.$name::<$v, MOST>($($arg),*),
            }
            $first += queries;
        }
    };
}

impl<'a> Context8<'a> {
    /// Leaves in the states what the queries find in segment `index`. All weights come first, so that
    /// keys, and then values, stay in the nearest cache.
    #[inline(always)]
    pub(super) fn segment<V: Lanes>(&self, index: usize, work: &mut Work, ahead: &mut Ahead) {
        work.reset();
        let to = work.seen.iter().map(|seen| seen.1).max().unwrap_or(0);
        let segment = self.gather(index * SEGMENT, to);
        let mut factors = Factors::NONE;
        let count = work.seen.len();
        for_tiles!(
            count,
            first,
            V,
            self.weights(&segment, first, (&mut factors, &mut *ahead), work)
        );
        for_tiles!(
            count,
            first,
            V,
            self.values(&segment, first, work, &mut *ahead)
        );
    }

    /// The segment at `position`; blocks that hold nothing before `end` are stood in for by its first.
    fn gather(&self, position: usize, end: usize) -> Segment<'a> {
        let first = position / LANES;
        let is_there = |i: usize| position + i * LANES < end && first + i < self.count;
        let blocks: [Eight; BLOCKS] = std::array::from_fn(|i| match is_there(i) {
            true => (self.block)(first + i),
            false => (self.block)(first),
        });
        Segment { position, blocks }
    }

    /// Weights of the `N` queries from `first` on.
    #[inline(always)]
    fn weights<V: Lanes, const N: usize>(
        &self,
        segment: &Segment,
        first: usize,
        (factors, ahead): (&mut Factors, &mut Ahead),
        work: &mut Work,
    ) {
        let Some(seen) = Seen::<N>::of(segment.position, &work.seen[first..]) else {
            return;
        };
        let mut buffers = std::mem::take(&mut work.buffers);
        for strip in seen.strips.clone() {
            let scores = &mut buffers.scores;
            match V::breadth(N) {
                4 => score::<V, N, 4>(segment, strip, (first, work), scores, ahead),
                2 => score::<V, N, 2>(segment, strip, (first, work), scores, ahead),
                _ => score::<V, N, 1>(segment, strip, (first, work), scores, ahead),
            }
        }
        let states = work.states[first * work.stride..].chunks_exact_mut(work.stride);
        for (n, state) in states.take(N).enumerate() {
            if factors.tokens != seen.tokens[n] {
                factors.set::<V>(&segment.blocks, seen.tokens[n]);
            }
            let scores = &mut buffers.scores[n];
            let mut state = State::of(state);
            let highest = self.highest::<V>(&seen.strips, seen.tokens[n], scores);
            if highest > state.shift() {
                state.set_shift(highest);
            }
            let limbs = &mut buffers.limbs[first + n];
            weigh::<V>(&seen.strips, factors, scores, (&mut state, limbs), ahead);
            buffers.after[first + n] = factors.after;
        }
        work.buffers = buffers;
    }

    /// The largest score, once they are capped and those of unseen tokens are gone.
    #[inline(always)]
    fn highest<V: Lanes>(
        &self,
        strips: &Range<usize>,
        (from, to): (usize, usize),
        scores: &mut Scores,
    ) -> f32 {
        let mut highest = V::splat(f32::NEG_INFINITY);
        for block in strips.start * FEW..strips.end * FEW {
            let (scores, at) = (&mut scores[block], block * LANES);
            let mut score = V::load(scores);
            if let Some(cap) = self.cap {
                score = soft_cap(score, cap);
                score.store(scores);
            }
            if from > at || to < at + LANES {
                score = score.within(from.saturating_sub(at), to.saturating_sub(at));
                score.store(scores);
            }
            highest = score.larger(highest);
        }
        highest.largest()
    }

    /// What the `N` queries from `first` on take from the values.
    #[inline(always)]
    fn values<V: Lanes, const N: usize>(
        &self,
        segment: &Segment,
        first: usize,
        work: &mut Work,
        ahead: &mut Ahead,
    ) {
        let Some(seen) = Seen::<N>::of(segment.position, &work.seen[first..]) else {
            return;
        };
        let buffers = &work.buffers;
        let limbs = std::array::from_fn(|n| &buffers.limbs[first + n]);
        let after = std::array::from_fn(|n| buffers.after[first + n]);
        let mut rest = &mut work.states[first * work.stride..];
        let mut states: [State; N] = std::array::from_fn(|_| {
            let (state, others) = std::mem::take(&mut rest).split_at_mut(work.stride);
            rest = others;
            State::of(state)
        });
        let mut vector = 0;
        while vector < self.vectors {
            macro_rules! with {
                ($c:literal) => {{
                    let place = (vector, &after);
                    let from = (segment, &seen.strips);
                    self.mix::<V, N, $c>(from, limbs, place, &mut states, ahead);
                    vector += $c;
                }};
            }
            match V::breadth(N).min(self.vectors - vector) {
                4 => with!(4),
                2 | 3 => with!(2),
                _ => with!(1),
            }
        }
    }

    /// Σ weight · value over strips, in `C` vectors of columns.
    #[inline(always)]
    fn mix<V: Lanes, const N: usize, const C: usize>(
        &self,
        (segment, strips): (&Segment, &Range<usize>),
        limbs: [&Limbs; N],
        (vector, after): (usize, &[f32; N]),
        states: &mut [State; N],
        ahead: &mut Ahead,
    ) {
        let mut sums = [[V::sums(0); C]; N];
        for limb in 0..2 {
            for n in 0..N {
                for c in 0..C {
                    sums[n][c] = V::raised(sums[n][c]);
                }
            }
            for block in strips.start * FEW..strips.end * FEW {
                // The compiler does not see that there are four: unrolled, sums would not stay in registers.
                let groups = segment.blocks[block].values.chunks_exact(self.vectors);
                for (lines, group) in groups.zip(4 * (block % FEW)..) {
                    let lines = &lines[vector..vector + C];
                    let mut v = [V::bytes(&[0; BYTES]); C];
                    for c in 0..C {
                        v[c] = V::bytes(&lines[c]);
                    }
                    ahead.bring::<V>(LINES);
                    for n in 0..N {
                        let (fours, _) = limbs[n][limb][block / FEW].as_chunks::<4>();
                        let weights = V::four(u32::from_le_bytes(fours[group % LANES]));
                        for c in 0..C {
                            sums[n][c] = V::dot(sums[n][c], weights, v[c]);
                        }
                    }
                }
            }
        }
        for n in 0..N {
            let after = V::splat(after[n]);
            let lines = &mut states[n].mixed[vector..vector + C];
            for c in 0..C {
                V::floats(sums[n][c]).times(after).store(&mut lines[c].0);
            }
        }
    }
}

/// Scores of a strip for the `N` queries from `first` on, `B` blocks at a time.
#[inline(always)]
fn score<V: Lanes, const N: usize, const B: usize>(
    segment: &Segment,
    strip: usize,
    (first, work): (usize, &Work),
    scores: &mut [Scores],
    ahead: &mut Ahead,
) {
    let (queries, scales, offsets) = work.rounded_tile::<N>(first);
    for block in (strip * FEW..(strip + 1) * FEW).step_by(B) {
        let parts: [Eight; B] = std::array::from_fn(|b| segment.blocks[block + b]);
        let keys = parts.map(|part| &part.keys[..queries.len()]);
        let mut sums = [[V::sums(0); B]; N];
        for n in 0..N {
            sums[n] = [V::sums(offsets[n]); B];
        }
        for (line, q) in queries.iter().enumerate() {
            let mut k = [V::bytes(&[0; BYTES]); B];
            for b in 0..B {
                k[b] = V::bytes(&keys[b][line]);
            }
            ahead.bring::<V>(LINES);
            for n in 0..N {
                let q = V::four(q[n]);
                for b in 0..B {
                    sums[n][b] = V::dot(sums[n][b], k[b], q);
                }
            }
        }
        for n in 0..N {
            let scale = V::splat(scales[n]);
            for b in 0..B {
                let steps = V::load(&parts[b].key_scales()).times(scale);
                let score = V::floats(sums[n][b]).times(steps);
                score.store(&mut scores[n][block + b]);
            }
        }
    }
}
