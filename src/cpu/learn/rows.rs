//! What is done to every row: norms with gradient and tangent, rotations, gates.

use rayon::prelude::*;

use realign_model::time_slices::TimeSlices;
use realign_model::vector::dot;
use realign_model::{Activation, RopeTable};

use crate::gates::{gated, gated_gradient};
use crate::rows::{inverse_rms, normalise, rotate};

/// Rows that one task takes at least.
const ROWS: usize = 8;

/// Makes `buffer` hold `len` elements; what they are is unspecified.
pub(crate) fn fit(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    buffer.truncate(len);
    buffer
}

/// Runs `f(row, values)` for every row of a matrix.
pub(crate) fn for_rows(
    data: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    data.par_chunks_mut(width)
        .enumerate()
        .with_min_len(ROWS)
        .for_each(|(row, values)| f(row, values));
}

/// An RMSNorm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm<'a> {
    /// Its scale, one per column.
    pub(crate) weight: &'a [f32],
    /// Its ε.
    pub(crate) eps: f32,
}

impl Norm<'_> {
    fn width(&self) -> usize {
        self.weight.len()
    }

    /// y ← norm(x), row by row.
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32]) {
        let width = self.width();
        for_rows(y, width, |row, y| {
            normalise(&x[row * width..][..width], self.weight, self.eps, y)
        });
    }

    /// g ← the gradient in x of what has the gradient g in norm(x).
    pub(crate) fn pull(&self, x: &[f32], g: &mut [f32]) {
        let width = self.width();
        for_rows(g, width, |row, g| {
            self.pull_row(&x[row * width..][..width], g)
        });
    }

    /// As [`Norm::pull`] for one row: r · (g w − x · r² · mean(g w x)).
    pub(crate) fn pull_row(&self, x: &[f32], g: &mut [f32]) {
        let r = inverse_rms(x, self.eps);
        g.iter_mut().zip(self.weight).for_each(|(g, w)| *g *= w);
        let along = dot(g, x) * r * r / x.len() as f32;
        g.iter_mut()
            .zip(x)
            .for_each(|(g, x)| *g = r * (*g - x * along));
    }

    /// t ← the tangent of norm(x) along the tangent t of x.
    pub(crate) fn push(&self, x: &[f32], t: &mut [f32]) {
        let width = self.width();
        for_rows(t, width, |row, t| {
            self.push_row(&x[row * width..][..width], t)
        });
    }

    /// As [`Norm::push`] for one row: w · r · (t − x · r² · mean(x t)).
    pub(crate) fn push_row(&self, x: &[f32], t: &mut [f32]) {
        let r = inverse_rms(x, self.eps);
        let along = dot(t, x) * r * r / x.len() as f32;
        for ((t, x), w) in t.iter_mut().zip(x).zip(self.weight) {
            *t = w * r * (*t - x * along);
        }
    }
}

/// x += y.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    const CHUNK: usize = 8192;
    x.par_chunks_mut(CHUNK)
        .zip(y.par_chunks(CHUNK))
        .for_each(|(x, y)| {
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        });
}

/// Adds a bias to some columns of every row.
pub(crate) fn add_bias(data: &mut [f32], stride: usize, column: usize, bias: &[f32]) {
    for_rows(data, stride, |_, row| {
        row[column..]
            .iter_mut()
            .zip(bias)
            .for_each(|(y, b)| *y += b);
    });
}

/// Which way heads turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// By the row's angles.
    Forward,
    /// Back, which is also the gradient.
    Back,
}

/// Rotates the first `columns` columns of every row, head by head.
pub(crate) fn turn(
    data: &mut [f32],
    stride: usize,
    columns: usize,
    head_dim: usize,
    rope: &RopeTable,
    turn: Turn,
) {
    for_rows(data, stride, |row, values| {
        let (cos, sin) = rope.row(row);
        for head in values[..columns].chunks_exact_mut(head_dim) {
            match turn {
                Turn::Forward => rotate(head, (cos, sin)),
                Turn::Back => {
                    let (low, high) = head.split_at_mut(cos.len());
                    for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                        (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
                    }
                }
            }
        }
    });
}

/// activation(gate) · up, element by element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gated<'a> {
    /// Whom it yields to.
    pub(crate) slices: &'a TimeSlices,
    /// The function of the gate.
    pub(crate) activation: Activation,
    /// The gate projection.
    pub(crate) gate: &'a [f32],
    /// The up projection, of the same length.
    pub(crate) up: &'a [f32],
}

impl Gated<'_> {
    /// out ← activation(gate) · up.
    pub(crate) fn apply(&self, out: &mut [f32]) {
        const CHUNK: usize = 4096;
        out.par_chunks_mut(CHUNK)
            .zip(self.gate.par_chunks(CHUNK).zip(self.up.par_chunks(CHUNK)))
            .for_each(|(out, (gate, up))| {
                self.slices.yield_to_serving();
                gated(self.activation, gate, up, out);
            });
    }

    /// d_gate, d_up ← the gradients in both of what has the gradient g in the result.
    pub(crate) fn pull(&self, g: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        const CHUNK: usize = 4096;
        d_gate
            .par_chunks_mut(CHUNK)
            .zip(d_up.par_chunks_mut(CHUNK))
            .zip(
                self.gate
                    .par_chunks(CHUNK)
                    .zip(self.up.par_chunks(CHUNK))
                    .zip(g.par_chunks(CHUNK)),
            )
            .for_each(|((d_gate, d_up), ((gate, up), g))| {
                self.slices.yield_to_serving();
                gated_gradient(self.activation, (gate, up), g, d_gate, d_up)
            });
    }

    /// t_gate ← the tangent of the result along tangents of both.
    pub(crate) fn push(&self, t_gate: &mut [f32], t_up: &[f32]) {
        const CHUNK: usize = 1024;
        const ONES: [f32; CHUNK] = [1.0; CHUNK];
        t_gate
            .par_chunks_mut(CHUNK)
            .zip(t_up.par_chunks(CHUNK))
            .zip(self.gate.par_chunks(CHUNK).zip(self.up.par_chunks(CHUNK)))
            .with_min_len(4)
            .for_each(|((t_gate, t_up), (gate, up))| {
                self.slices.yield_to_serving();
                let (mut by_gate, mut by_up) = ([0f32; CHUNK], [0f32; CHUNK]);
                let n = gate.len();
                gated_gradient(
                    self.activation,
                    (gate, up),
                    &ONES[..n],
                    &mut by_gate[..n],
                    &mut by_up[..n],
                );
                for i in 0..n {
                    t_gate[i] = t_gate[i] * by_gate[i] + t_up[i] * by_up[i];
                }
            });
    }
}
