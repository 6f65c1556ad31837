//! One segment of a context: online softmax over strips of keys, several queries at a time.
//!
//! What a query gets is a function of its own columns, of the positions that it sees, and of the
//! keys and values there: tiles, and who shares them, change none of its operations.

#![allow(clippy::needless_range_loop)] // one index walks several register arrays

use super::ahead::Ahead;
use super::lanes::{Element, LANES, Lanes, exp, soft_cap};
use super::state::{Line, State, Work};

/// Tokens of a segment. Every query's result is the merge of its segments', in their order; so
/// segments may be computed anywhere.
pub(crate) const SEGMENT: usize = 256;

/// Tokens that are scored before their weights are needed.
pub(super) const STRIP: usize = 64;
const BLOCKS: usize = STRIP / LANES;

/// Most queries of a tile.
pub(super) const MOST: usize = 6;

/// Keys and values of one KV head of a sequence.
pub(super) struct Context<'a, E> {
    /// By block: keys (head_dim, 16), then values (16, columns).
    pub(super) block: &'a dyn Fn(usize) -> (&'a [E], &'a [E]),
    /// Columns of a value, up to whole vectors.
    pub(super) columns: usize,
    /// The cap on scores.
    pub(super) cap: Option<f32>,
}

/// Some strip's keys and values.
struct Strip<'a, E> {
    /// Of its first token.
    position: usize,
    keys: [&'a [[E; LANES]]; BLOCKS],
    values: [&'a [E]; BLOCKS],
}

/// Weights of a strip's tokens.
type Weights = [[f32; LANES]; BLOCKS];

impl<'a, E: Element> Context<'a, E> {
    /// The strip at `position`; blocks that hold nothing before `end` are stood in for by its first.
    fn strip(&self, position: usize, end: usize) -> Strip<'a, E> {
        let first = position / LANES;
        let parts: [_; BLOCKS] = std::array::from_fn(|i| match position + i * LANES < end {
            true => (self.block)(first + i),
            false => (self.block)(first),
        });
        Strip {
            position,
            keys: parts.map(|(keys, _)| keys.as_chunks().0),
            values: parts.map(|(_, values)| values),
        }
    }

    /// Leaves in the states what the queries find in segment `index`.
    #[inline(always)]
    pub(super) fn segment<V: Lanes>(&self, index: usize, work: &mut Work, ahead: &mut Ahead) {
        work.reset();
        let (mut from, mut to) = (usize::MAX, 0);
        for seen in &work.seen {
            (from, to) = (from.min(seen.0), to.max(seen.1));
        }
        let begin = from.max(index * SEGMENT) / STRIP * STRIP;
        let end = to.min((index + 1) * SEGMENT);
        for position in (begin..end).step_by(STRIP) {
            let strip = self.strip(position, end);
            let mut first = 0;
            for queries in tiles(work.seen.len()) {
                macro_rules! with {
                    ($n:literal) => {
                        self.tile::<V, $n>(&strip, first, work, ahead)
                    };
                }
                match queries {
                    1 => with!(1),
                    2 => with!(2),
                    3 => with!(3),
                    4 => with!(4),
                    5 => with!(5),
                    _ => with!(6),
                }
                first += queries;
            }
        }
    }

    /// One strip for the `N` queries from `first` on.
    #[inline(always)]
    fn tile<V: Lanes, const N: usize>(
        &self,
        strip: &Strip<E>,
        first: usize,
        work: &mut Work,
        ahead: &mut Ahead,
    ) {
        let seen: [(usize, usize); N] = std::array::from_fn(|n| work.seen[first + n]);
        let (mut from, mut to) = (usize::MAX, 0);
        for seen in &seen {
            (from, to) = (from.min(seen.0), to.max(seen.1));
        }
        if from >= strip.position + STRIP || to <= strip.position {
            return;
        }
        let tokens = (to - strip.position).min(STRIP);
        let mut weights = [[[0f32; LANES]; BLOCKS]; N];
        let queries = work.tile::<N>(first);
        if tokens > STRIP - LANES && V::breadth(N) == 4 {
            scores::<V, E, N, 4>(queries, strip.keys, 0, &mut weights, ahead);
        } else if V::breadth(N) == 2 {
            for block in (0..tokens.div_ceil(LANES)).step_by(2) {
                let keys = [strip.keys[block], strip.keys[block + 1]];
                scores::<V, E, N, 2>(queries, keys, block, &mut weights, ahead);
            }
        } else {
            for block in 0..tokens.div_ceil(LANES) {
                scores::<V, E, N, 1>(queries, [strip.keys[block]], block, &mut weights, ahead);
            }
        }
        let mut rest = &mut work.states[first * work.stride..];
        let mut states: [State; N] = std::array::from_fn(|_| {
            let (state, others) = std::mem::take(&mut rest).split_at_mut(work.stride);
            rest = others;
            State::of(state)
        });
        for ((weights, seen), state) in weights.iter_mut().zip(seen).zip(&mut states) {
            let within = (
                seen.0.saturating_sub(strip.position),
                seen.1.saturating_sub(strip.position),
            );
            weigh::<V>(weights, within, self.cap, state);
        }
        let mut column = 0;
        while column < self.columns {
            let left = (self.columns - column) / LANES;
            macro_rules! with {
                ($c:literal) => {{
                    let of = (column, tokens);
                    self.mix::<V, N, $c>(strip, &weights, of, &mut states, ahead);
                    column += $c * LANES;
                }};
            }
            match V::breadth(N).min(left) {
                4 => with!(4),
                2 | 3 => with!(2),
                _ => with!(1),
            }
        }
    }

    /// sums += Σ weight · value over the strip's first tokens, in `C` vectors of columns.
    #[inline(always)]
    fn mix<V: Lanes, const N: usize, const C: usize>(
        &self,
        strip: &Strip<E>,
        weights: &[Weights; N],
        (column, tokens): (usize, usize),
        states: &mut [State; N],
        ahead: &mut Ahead,
    ) {
        let line = column / LANES;
        let mut sums = [[V::splat(0.0); C]; N];
        for n in 0..N {
            let lines = &states[n].mixed[line..line + C];
            for c in 0..C {
                sums[n][c] = V::load(&lines[c].0);
            }
        }
        for block in 0..tokens.div_ceil(LANES) {
            let rows = strip.values[block].chunks_exact(self.columns);
            let count = (tokens - block * LANES).min(LANES);
            for (token, row) in rows.take(count).enumerate() {
                ahead.bring::<V>(size_of::<E>());
                let (vectors, _) = row[column..column + C * LANES].as_chunks::<LANES>();
                let mut values = [V::splat(0.0); C];
                for c in 0..C {
                    values[c] = E::read(&vectors[c]);
                }
                for n in 0..N {
                    let weight = V::splat(weights[n][block][token % LANES]);
                    for c in 0..C {
                        sums[n][c] = weight.multiply_add(values[c], sums[n][c]);
                    }
                }
            }
        }
        for n in 0..N {
            let lines = &mut states[n].mixed[line..line + C];
            for c in 0..C {
                sums[n][c].store(&mut lines[c].0);
            }
        }
    }
}

/// Sizes of tiles for so many queries: as few as possible, nearly equal.
pub(super) fn tiles(queries: usize) -> impl Iterator<Item = usize> {
    let count = queries.div_ceil(MOST).max(1);
    (0..count).map(move |i| queries / count + usize::from(i < queries % count))
}

/// Where each tile's queries lie: dimension by dimension, `N` floats each.
pub(super) fn pack(queries: usize, head_dim: usize, mut put: impl FnMut(usize, usize, usize)) {
    let mut first = 0;
    for count in tiles(queries) {
        for n in 0..count {
            // A tile begins where the ones before it end.
            put(first + n, first * head_dim + n, count);
        }
        first += count;
    }
}

/// weights ← q · k for `B` blocks of keys, while what is ahead comes closer.
#[inline(always)]
fn scores<V: Lanes, E: Element, const N: usize, const B: usize>(
    queries: &[[f32; N]],
    keys: [&[[E; LANES]]; B],
    first: usize,
    weights: &mut [Weights; N],
    ahead: &mut Ahead,
) {
    let keys = keys.map(|keys| &keys[..queries.len()]);
    let mut sums = [[V::splat(0.0); B]; N];
    for (dimension, q) in queries.iter().enumerate() {
        let mut k = [V::splat(0.0); B];
        for b in 0..B {
            k[b] = E::read(&keys[b][dimension]);
        }
        ahead.bring::<V>(size_of::<E>());
        for n in 0..N {
            let q = V::splat(q[n]);
            for b in 0..B {
                sums[n][b] = q.multiply_add(k[b], sums[n][b]);
            }
        }
    }
    for n in 0..N {
        for b in 0..B {
            sums[n][b].store(&mut weights[n][first + b]);
        }
    }
}

/// Scores ← weights relative to the largest score so far; the state moves with it.
#[inline(always)]
fn weigh<V: Lanes>(
    weights: &mut Weights,
    (from, to): (usize, usize),
    cap: Option<f32>,
    state: &mut State,
) {
    let mut scores = [V::splat(0.0); BLOCKS];
    for b in 0..BLOCKS {
        scores[b] = V::load(&weights[b]);
    }
    if let Some(cap) = cap {
        for score in &mut scores {
            *score = soft_cap(*score, cap);
        }
    }
    if from > 0 || to < STRIP {
        for b in 0..BLOCKS {
            let at = b * LANES;
            scores[b] = scores[b].within(from.saturating_sub(at), to.saturating_sub(at));
        }
    }
    let mut highest = V::splat(f32::NEG_INFINITY);
    for score in &scores {
        highest = score.larger(highest);
    }
    let highest = highest.largest();
    if highest > state.shift() {
        state.rescale(exp(V::splat(state.shift() - highest)));
        state.set_shift(highest);
    }
    let shift = V::splat(state.shift());
    let mut sum = V::load(&state.sums.0);
    for b in 0..BLOCKS {
        let weight = exp(scores[b].minus(shift));
        sum = sum.plus(weight);
        weight.store(&mut weights[b]);
    }
    sum.store(&mut state.sums.0);
}

/// Adds a segment's state to that of the segments before it.
#[inline(always)]
pub(super) fn merge<V: Lanes>(total: &mut [Line], part: &[Line]) {
    let mut total = State::of(total);
    let (shift, part_shift) = (total.shift(), part[0].0[0]);
    let highest = if part_shift > shift {
        part_shift
    } else {
        shift
    };
    let keep = exp(V::splat(shift - highest));
    let take = exp(V::splat(part_shift - highest));
    total.set_shift(highest);
    add(keep, total.sums, take, &part[1]);
    for (total, part) in total.mixed.iter_mut().zip(&part[2..]) {
        add(keep, total, take, part);
    }
}

/// total ← keep · total + take · part.
#[inline(always)]
fn add<V: Lanes>(keep: V, total: &mut Line, take: V, part: &Line) {
    let taken = take.times(V::load(&part.0));
    let sum = keep.multiply_add(V::load(&total.0), taken);
    sum.store(&mut total.0);
}

/// What a query's whole context comes to.
#[inline(always)]
pub(super) fn finish<V: Lanes>(total: &[Line], out: &mut [f32]) {
    let inverse = V::splat(1.0 / V::load(&total[1].0).sum());
    for (line, out) in total[2..].iter().zip(out.chunks_mut(LANES)) {
        let mut lanes = [0f32; LANES];
        V::load(&line.0).times(inverse).store(&mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}
