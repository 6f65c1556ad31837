//! What a query has found so far, and the queries of one piece of work.

use super::eight::Rounded;
use super::lanes::{LANES, Lanes};
use super::segment::pack;
use crate::kv;

/// Sixteen floats in a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(super) [f32; LANES]);

impl Line {
    /// Zeros.
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

/// Lines of a state: its shift, sums of weights, then weighted values.
pub(crate) fn lines(head_dim: usize) -> usize {
    2 + head_dim.div_ceil(LANES)
}

/// A view of one query's state.
pub(super) struct State<'a> {
    shift: &'a mut f32,
    /// Sums of weights, lane by lane.
    pub(super) sums: &'a mut Line,
    /// Σ weight · value.
    pub(super) mixed: &'a mut [Line],
}

impl<'a> State<'a> {
    #[inline(always)]
    pub(super) fn of(lines: &'a mut [Line]) -> Self {
        let [first, sums, mixed @ ..] = lines else {
            unreachable!("a state has at least two lines")
        };
        Self {
            shift: &mut first.0[0],
            sums,
            mixed,
        }
    }

    /// The score whose weight is 1: the largest of all so far.
    #[inline(always)]
    pub(super) fn shift(&self) -> f32 {
        *self.shift
    }

    #[inline(always)]
    pub(super) fn set_shift(&mut self, shift: f32) {
        *self.shift = shift;
    }

    /// Multiplies everything that was summed.
    #[inline(always)]
    pub(super) fn rescale<V: Lanes>(&mut self, factor: V) {
        let sums = V::load(&self.sums.0).times(factor);
        sums.store(&mut self.sums.0);
        for line in self.mixed.iter_mut() {
            V::load(&line.0).times(factor).store(&mut line.0);
        }
    }
}

/// Sets a state to that of an empty context. The shift is finite, so that what a query does not see
/// (−∞) has weight zero, and not NaN.
pub(super) fn clear(state: &mut [Line]) {
    state.fill(Line::ZERO);
    state[0].0[0] = f32::MIN;
}

/// Buffers of a thread: the queries of a piece of work, and what they have found.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// First and one past the last visible position of every query.
    pub(super) seen: Vec<(usize, usize)>,
    /// Queries, scaled, tile by tile.
    packed: Vec<f32>,
    head_dim: usize,
    /// Queries rounded to 8 bits, four columns together, tile by tile.
    rounded: Vec<u32>,
    /// One of them.
    bytes: Vec<u8>,
    /// What rounded queries are multiples of, and what keys' offsets add to their products.
    rounding: Vec<(f32, i32)>,
    /// What attention to keys and values in 8 bits works on.
    pub(super) buffers: Rounded,
    /// Lines of a state.
    pub(super) stride: usize,
    /// In the segment that is computed.
    pub(super) states: Vec<Line>,
    /// In all segments before it.
    pub(super) totals: Vec<Line>,
}

impl Work {
    /// Takes queries of `head_dim` columns: `query(i)` gives the columns and what is visible.
    pub(super) fn take<'q>(
        &mut self,
        count: usize,
        (head_dim, scale): (usize, f32),
        query: impl Fn(usize) -> (&'q [f32], (usize, usize)),
    ) {
        (self.head_dim, self.stride) = (head_dim, lines(head_dim));
        self.packed.resize(count * head_dim, 0.0);
        self.seen.clear();
        self.seen.extend((0..count).map(|i| query(i).1));
        let packed = &mut self.packed;
        pack(count, head_dim, |i, first, apart| {
            let places = packed[first..].iter_mut().step_by(apart);
            for (place, q) in places.zip(query(i).0) {
                *place = q * scale;
            }
        });
        self.states.resize(count * self.stride, Line::ZERO);
        self.totals.resize(count * self.stride, Line::ZERO);
    }

    /// As [`Work::take`], and rounds the queries to 8 bits for keys that have them.
    pub(super) fn take_rounded<'q>(
        &mut self,
        count: usize,
        (head_dim, scale): (usize, f32),
        query: impl Fn(usize) -> (&'q [f32], (usize, usize)),
    ) {
        (self.head_dim, self.stride) = (head_dim, lines(head_dim));
        self.seen.clear();
        self.seen.extend((0..count).map(|i| query(i).1));
        let fours = head_dim.div_ceil(4);
        self.rounded.resize(count * fours, 0);
        self.rounding.resize(count, (0.0, 0));
        self.buffers.resize(count);
        self.bytes.resize(4 * fours, 0);
        let (rounded, rounding) = (&mut self.rounded, &mut self.rounding);
        let bytes = &mut self.bytes;
        pack(count, fours, |i, first, apart| {
            let (size, sum) = kv::round(query(i).0, bytes);
            rounding[i] = (size * scale, -kv::OFFSET * sum);
            let places = rounded[first..].iter_mut().step_by(apart);
            for (place, four) in places.zip(bytes.as_chunks().0) {
                *place = u32::from_le_bytes(*four);
            }
        });
        self.states.resize(count * self.stride, Line::ZERO);
        self.totals.resize(count * self.stride, Line::ZERO);
    }

    /// The rounded queries of the tile that begins with query `first`, with their steps and offsets.
    #[inline(always)]
    pub(super) fn rounded_tile<const N: usize>(
        &self,
        first: usize,
    ) -> (&[[u32; N]], [f32; N], [i32; N]) {
        let fours = self.head_dim.div_ceil(4);
        let (queries, _) = self.rounded[first * fours..(first + N) * fours].as_chunks();
        let rounding = &self.rounding[first..first + N];
        (
            queries,
            std::array::from_fn(|n| rounding[n].0),
            std::array::from_fn(|n| rounding[n].1),
        )
    }

    /// States of an empty context.
    pub(super) fn reset(&mut self) {
        self.states.chunks_exact_mut(self.stride).for_each(clear);
    }

    /// The `N` queries of the tile that begins with query `first`, dimension by dimension.
    #[inline(always)]
    pub(super) fn tile<const N: usize>(&self, first: usize) -> &[[f32; N]] {
        let at = first * self.head_dim;
        let (queries, _) = self.packed[at..at + N * self.head_dim].as_chunks();
        queries
    }
}
