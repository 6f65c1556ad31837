//! Causal attention over a packed batch in blocks of query rows: values, gradients and tangents.
//!
//! q, k and v stand side by side in one matrix (rows, (heads + 2 · kv_heads) · head_dim). Softmax
//! weights are recomputed where they are needed: they are quadratic in the length.

use rayon::prelude::*;

use super::small::{self, Grid, Sum};
use block::{Block, blocks};
use realign_model::time_slices::TimeSlices;
use realign_model::vector::{exp_shifted_sum, soft_cap_backward, soft_cap_in_place};
use realign_model::{AttentionShape, Segment};

mod block;

/// Grouped-query attention of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads<'a> {
    /// Query heads.
    pub(crate) query: usize,
    /// Key/value heads.
    pub(crate) key_value: usize,
    /// How each attends.
    pub(crate) shape: AttentionShape,
    /// Whom it yields to.
    pub(crate) slices: &'a TimeSlices,
}

impl Heads<'_> {
    fn dim(self) -> usize {
        self.shape.head_dim
    }

    fn group(self) -> usize {
        self.query / self.key_value
    }

    /// Columns of q, k and v together.
    pub(crate) fn width(self) -> usize {
        (self.query + 2 * self.key_value) * self.dim()
    }

    /// c ← [c +] factor · a b, on this thread.
    fn multiply(self, dims: (usize, usize, usize), a: Grid, b: Grid, c: Sum) {
        self.slices.yield_to_serving();
        small::multiply(dims, a, b, c, false);
    }

    /// First columns of a key/value head's k and v.
    fn columns(self, head: usize) -> [usize; 2] {
        [self.query + head, self.query + self.key_value + head].map(|h| h * self.dim())
    }
}

/// One task's part of a matrix: the rows of a segment, some columns.
struct Part {
    row: usize,
    column: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Part {
    fn new(segment: &Segment, column: usize, columns: usize) -> Self {
        let rows = segment.rows();
        Self {
            row: rows.start,
            column,
            columns,
            values: vec![0.0; rows.len() * columns],
        }
    }

    fn sum(&mut self, row: usize, column: usize, factor: f32) -> Sum<'_> {
        let at = (row - self.row) * self.columns + column;
        Sum {
            data: &mut self.values,
            at,
            stride: self.columns,
            add: true,
            factor,
        }
    }

    fn place(&self, into: &mut [f32], width: usize) {
        for (i, from) in self.values.chunks_exact(self.columns).enumerate() {
            into[(self.row + i) * width + self.column..][..self.columns].copy_from_slice(from);
        }
    }
}

/// One head's view of q, k and v.
#[derive(Clone, Copy)]
struct HeadView<'a> {
    qkv: &'a [f32],
    heads: Heads<'a>,
    query: usize,
    kv: usize,
}

impl<'a> HeadView<'a> {
    fn grid(&self, row: usize, column: usize) -> Grid<'a> {
        let width = self.heads.width();
        Grid::rows(self.qkv, width).from(row * width + column)
    }

    fn q(&self, row: usize) -> Grid<'a> {
        self.grid(row, self.query * self.heads.dim())
    }

    fn k(&self, row: usize) -> Grid<'a> {
        self.grid(row, self.heads.columns(self.kv)[0])
    }

    fn v(&self, row: usize) -> Grid<'a> {
        self.grid(row, self.heads.columns(self.kv)[1])
    }
}

/// scores (rows, keys) ← [scores +] factor · a bᵀ over the head's width, for all of a block's keys.
fn score<'a>(
    block: &Block,
    heads: Heads,
    a: Grid,
    b: impl Fn(usize) -> Grid<'a>,
    scores: &mut [f32],
    factor: f32,
    add: bool,
) {
    let stride = block.width();
    for keys in &block.keys {
        let c = Sum {
            data: scores,
            at: keys.column,
            stride,
            add,
            factor,
        };
        let dims = (block.rows.len(), keys.rows.len(), heads.dim());
        heads.multiply(dims, a, b(keys.rows.start).transposed(), c);
    }
}

/// Softmax weights of a block, zero where a row does not look; the capped scores stay in `capped`.
fn weights(block: &Block, head: HeadView, scores: &mut Vec<f32>, capped: &mut Vec<f32>) {
    let shape = head.heads.shape;
    scores.clear();
    scores.resize(block.rows.len() * block.width(), 0.0);
    score(
        block,
        head.heads,
        head.q(block.rows.start),
        |row| head.k(row),
        scores,
        shape.scale,
        false,
    );
    if let Some(cap) = shape.cap {
        soft_cap_in_place(scores, cap);
        capped.clear();
        capped.extend_from_slice(scores);
    }
    for (row, seen) in scores.chunks_exact_mut(block.width()).zip(block.seen()) {
        let largest = seen
            .iter()
            .flat_map(|s| &row[s.clone()])
            .fold(f32::NEG_INFINITY, |m, v| m.max(*v));
        let sum: f32 = seen
            .iter()
            .map(|s| exp_shifted_sum(&mut row[s.clone()], largest))
            .sum();
        let inverse = 1.0 / sum;
        let mut done = 0;
        for s in seen.iter().filter(|s| !s.is_empty()) {
            row[done..s.start].fill(0.0);
            row[s.clone()].iter_mut().for_each(|w| *w *= inverse);
            done = s.end;
        }
        row[done..].fill(0.0);
    }
}

fn tasks<'a>(segments: &'a [Segment], heads: Heads) -> Vec<(&'a Segment, usize)> {
    let of = |s| (0..heads.key_value).map(move |h| (s, h));
    segments.iter().flat_map(of).collect()
}

/// out (rows, heads · head_dim) ← attention; rows outside every segment are left alone.
pub(super) fn forward(heads: Heads, segments: &[Segment], qkv: &[f32], out: &mut [f32]) {
    let (d, group) = (heads.dim(), heads.group());
    let run = |&(segment, kv): &(&Segment, usize)| {
        let mut part = Part::new(segment, kv * group * d, group * d);
        let (mut scores, mut capped) = (Vec::new(), Vec::new());
        for block in blocks(segment, heads.shape.window) {
            for g in 0..group {
                let head = HeadView {
                    qkv,
                    heads,
                    query: kv * group + g,
                    kv,
                };
                weights(&block, head, &mut scores, &mut capped);
                attend(&block, heads, &scores, |row| head.v(row), &mut part, g * d);
            }
        }
        part
    };
    let parts: Vec<Part> = tasks(segments, heads).par_iter().map(run).collect();
    parts.iter().for_each(|p| p.place(out, heads.query * d));
}

/// part[block's rows] += weights · values.
fn attend<'a>(
    block: &Block,
    heads: Heads,
    weights: &[f32],
    values: impl Fn(usize) -> Grid<'a>,
    part: &mut Part,
    column: usize,
) {
    for keys in &block.keys {
        let p = Grid::rows(weights, block.width()).from(keys.column);
        let into = part.sum(block.rows.start, column, 1.0);
        let dims = (block.rows.len(), heads.dim(), keys.rows.len());
        heads.multiply(dims, p, values(keys.rows.start), into);
    }
}

/// d_qkv ← the gradient in q, k and v for an upstream gradient `d_out`.
pub(crate) fn backward(
    heads: Heads,
    segments: &[Segment],
    qkv: &[f32],
    d_out: &[f32],
    d_qkv: &mut [f32],
) {
    let (d, group) = (heads.dim(), heads.group());
    let run = |&(segment, kv): &(&Segment, usize)| {
        let [k_column, v_column] = heads.columns(kv);
        let mut dq = Part::new(segment, kv * group * d, group * d);
        let (mut dk, mut dv) = (
            Part::new(segment, k_column, d),
            Part::new(segment, v_column, d),
        );
        let (mut p, mut capped, mut ds) = (Vec::new(), Vec::new(), Vec::new());
        for block in blocks(segment, heads.shape.window) {
            for g in 0..group {
                let head = HeadView {
                    qkv,
                    heads,
                    query: kv * group + g,
                    kv,
                };
                weights(&block, head, &mut p, &mut capped);
                let out_width = heads.query * d;
                let upstream = Grid::rows(d_out, out_width)
                    .from(block.rows.start * out_width + head.query * d);
                ds.clear();
                ds.resize(p.len(), 0.0);
                score(
                    &block,
                    heads,
                    upstream,
                    |row| head.v(row),
                    &mut ds,
                    1.0,
                    false,
                );
                through_softmax(&block, &p, heads.shape, &capped, &mut ds);
                for keys in &block.keys {
                    let (rows, n, first) = (block.rows.len(), keys.rows.len(), keys.rows.start);
                    let ds = Grid::rows(&ds, block.width()).from(keys.column);
                    let p = Grid::rows(&p, block.width()).from(keys.column);
                    heads.multiply(
                        (rows, d, n),
                        ds,
                        head.k(first),
                        dq.sum(block.rows.start, g * d, 1.0),
                    );
                    heads.multiply(
                        (n, d, rows),
                        ds.transposed(),
                        head.q(block.rows.start),
                        dk.sum(first, 0, 1.0),
                    );
                    heads.multiply(
                        (n, d, rows),
                        p.transposed(),
                        upstream,
                        dv.sum(first, 0, 1.0),
                    );
                }
            }
        }
        [dq, dk, dv]
    };
    let parts: Vec<[Part; 3]> = tasks(segments, heads).par_iter().map(run).collect();
    parts
        .iter()
        .flatten()
        .for_each(|p| p.place(d_qkv, heads.width()));
}

/// ds: from gradients of softmax weights to gradients of the products q kᵀ.
fn through_softmax(
    block: &Block,
    p: &[f32],
    shape: AttentionShape,
    capped: &[f32],
    ds: &mut [f32],
) {
    let width = block.width();
    for (ds, p) in ds.chunks_exact_mut(width).zip(p.chunks_exact(width)) {
        let mean: f32 = ds.iter().zip(p).map(|(g, w)| g * w).sum();
        ds.iter_mut()
            .zip(p)
            .for_each(|(g, w)| *g = w * (*g - mean) * shape.scale);
    }
    if let Some(cap) = shape.cap {
        soft_cap_backward(capped, cap, ds);
    }
}

/// t_out ← the tangent of the output along tangents `t_qkv` of q, k and v.
pub(crate) fn tangent(
    heads: Heads,
    segments: &[Segment],
    qkv: &[f32],
    t_qkv: &[f32],
    t_out: &mut [f32],
) {
    let (d, group) = (heads.dim(), heads.group());
    let run = |&(segment, kv): &(&Segment, usize)| {
        let mut part = Part::new(segment, kv * group * d, group * d);
        let (mut p, mut capped, mut ts) = (Vec::new(), Vec::new(), Vec::new());
        for block in blocks(segment, heads.shape.window) {
            for g in 0..group {
                let head = HeadView {
                    qkv,
                    heads,
                    query: kv * group + g,
                    kv,
                };
                let moved = HeadView { qkv: t_qkv, ..head };
                weights(&block, head, &mut p, &mut capped);
                ts.clear();
                ts.resize(p.len(), 0.0);
                let (row, scale) = (block.rows.start, heads.shape.scale);
                score(
                    &block,
                    heads,
                    moved.q(row),
                    |row| head.k(row),
                    &mut ts,
                    scale,
                    false,
                );
                score(
                    &block,
                    heads,
                    head.q(row),
                    |row| moved.k(row),
                    &mut ts,
                    scale,
                    true,
                );
                if let Some(cap) = heads.shape.cap {
                    soft_cap_backward(&capped, cap, &mut ts);
                }
                let width = block.width();
                for (ts, p) in ts.chunks_exact_mut(width).zip(p.chunks_exact(width)) {
                    let mean: f32 = ts.iter().zip(p).map(|(t, w)| t * w).sum();
                    ts.iter_mut().zip(p).for_each(|(t, w)| *t = w * (*t - mean));
                }
                attend(&block, heads, &ts, |row| head.v(row), &mut part, g * d);
                attend(&block, heads, &p, |row| moved.v(row), &mut part, g * d);
            }
        }
        part
    };
    let parts: Vec<Part> = tasks(segments, heads).par_iter().map(run).collect();
    parts.iter().for_each(|p| p.place(t_out, heads.query * d));
}
