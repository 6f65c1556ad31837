//! Kernel ridge regression. With more features than rows, a fit needs only the rows' dot products
//! with each other, and the product of two similarities covers all products of two features.
//! Deterministic: every sum runs in one order.

use rayon::prelude::*;

use super::text::{self, SparseVector};

/// Maximum iterations of conjugate gradients; it usually stops far earlier.
const MAX_ITERATIONS: usize = 250;
/// Relative residual at which the iteration stops.
const TOLERANCE: f32 = 1e-4;

/// Similarities of every row with every row (the Gram matrix).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gram {
    count: usize,
    /// (rows, rows), symmetric.
    values: Vec<f32>,
}

/// A solution of [`Gram::ridge`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RidgeFit {
    /// A weight per row; 0 for rows that were not fitted.
    pub weights: Vec<f32>,
    /// Mean target of the fitted rows, which predictions add.
    pub(crate) mean: f32,
}

impl Gram {
    /// Dot products of dense rows.
    pub(crate) fn dense(rows: &[Vec<f32>]) -> Gram {
        Gram::from_rows(rows.len(), |i, out| {
            for (value, row) in out.iter_mut().zip(rows) {
                *value = dot(&rows[i], row);
            }
        })
    }

    /// Dot products of sparse rows.
    pub(crate) fn sparse(rows: &[SparseVector]) -> Gram {
        Gram::from_rows(rows.len(), |i, out| {
            let mut dense = vec![0.0f32; text::WIDTH];
            for (bucket, value) in &rows[i] {
                dense[*bucket as usize] = *value;
            }
            for (value, row) in out.iter_mut().zip(rows) {
                *value = text::dot(row, &dense);
            }
        })
    }

    fn from_rows(count: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Gram {
        let mut values = vec![0.0f32; count * count];
        if count > 0 {
            let rows = values.par_chunks_exact_mut(count).enumerate();
            rows.for_each(|(i, out)| fill(i, out));
        }
        Gram { count, values }
    }

    /// Combines the matrices elementwise.
    pub(crate) fn combine<const N: usize>(
        parts: [&Gram; N],
        combine: impl Fn([f32; N]) -> f32 + Sync,
    ) -> Gram {
        let count = parts[0].count;
        Gram::from_rows(count, |i, out| {
            let rows = parts.map(|part| part.row(i));
            for (j, value) in out.iter_mut().enumerate() {
                *value = combine(rows.map(|row| row[j]));
            }
        })
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.count..(i + 1) * self.count]
    }

    /// The product with a vector of weights: one sum of weighted similarities per row.
    pub(crate) fn apply(&self, weights: &[f32]) -> Vec<f32> {
        let rows = (0..self.count).into_par_iter();
        rows.map(|i| dot(self.row(i), weights)).collect()
    }

    /// Ridge regression on the rows where `keep` is true: `apply(weights) + mean` approximates
    /// `target` there. Solves (K + penalty) weights = target − mean by conjugate gradients.
    pub(crate) fn ridge(&self, keep: &[bool], target: &[f32], penalty: f32) -> RidgeFit {
        let kept = keep.iter().filter(|k| **k).count().max(1) as f32;
        let zero_others = |values: &mut [f32]| {
            let others = values.iter_mut().zip(keep).filter(|(_, k)| !**k);
            others.for_each(|(v, _)| *v = 0.0);
        };
        let mut residual = target.to_vec();
        zero_others(&mut residual);
        let mean = residual.iter().sum::<f32>() / kept;
        residual.iter_mut().for_each(|v| *v -= mean);
        zero_others(&mut residual);
        let mut weights = vec![0.0f32; self.count];
        let mut direction = residual.clone();
        let mut square = dot(&residual, &residual);
        let enough = square * TOLERANCE * TOLERANCE;
        for _ in 0..MAX_ITERATIONS {
            if square <= enough {
                break;
            }
            let mut image = self.apply(&direction);
            zero_others(&mut image);
            add(&mut image, penalty, &direction);
            let step = square / dot(&direction, &image).max(f32::MIN_POSITIVE);
            add(&mut weights, step, &direction);
            add(&mut residual, -step, &image);
            let next = dot(&residual, &residual);
            let beta = next / square;
            let updated = direction.iter_mut().zip(&residual);
            updated.for_each(|(d, r)| *d = r + beta * *d);
            square = next;
        }
        RidgeFit { weights, mean }
    }
}

/// to += factor · what.
fn add(to: &mut [f32], factor: f32, what: &[f32]) {
    to.iter_mut().zip(what).for_each(|(t, w)| *t += factor * w);
}

/// Dot product, in sixteen lanes so that the compiler emits vector instructions.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    let (a_main, b_main) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_main
        .remainder()
        .iter()
        .zip(b_main.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a_main.zip(b_main) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<f32>> {
        let value = |i: usize, j: usize| ((i * 7 + j * 3) as f32 * 0.37).sin();
        (0..20)
            .map(|i| (0..5).map(|j| value(i, j)).collect())
            .collect()
    }

    /// (K + penalty) weights = target − mean, on the kept rows.
    #[test]
    fn a_solution_solves_and_ignores_what_is_left_out() {
        let gram = Gram::dense(&rows());
        let keep: Vec<bool> = (0..20).map(|i| i % 4 != 1).collect();
        let mut target: Vec<f32> = (0..20)
            .map(|i| if i % 3 == 0 { 1.0 } else { -1.0 })
            .collect();
        let fit = gram.ridge(&keep, &target, 0.1);
        let (weights, mean) = (&fit.weights, fit.mean);
        let got = gram.apply(weights);
        for i in 0..20 {
            if keep[i] {
                let error = got[i] + 0.1 * weights[i] - (target[i] - mean);
                assert!(error.abs() < 1e-3, "{i}: {error}");
            } else {
                assert_eq!(weights[i], 0.0);
                target[i] = 99.0;
            }
        }
        assert_eq!(gram.ridge(&keep, &target, 0.1), fit);
    }

    #[test]
    fn sparse_and_dense_rows_have_the_same_similarities() {
        let sparse: Vec<SparseVector> = vec![vec![(1, 2.0), (9, 1.0)], vec![(9, 3.0)], vec![]];
        let dense = |row: &SparseVector| {
            let mut out = vec![0.0; 10];
            row.iter().for_each(|(p, v)| out[*p as usize] = *v);
            out
        };
        let rows: Vec<Vec<f32>> = sparse.iter().map(dense).collect();
        assert_eq!(Gram::sparse(&sparse), Gram::dense(&rows));
        assert_eq!(Gram::sparse(&sparse).row(0), [5.0, 3.0, 0.0]);
        let (a, b) = (Gram::dense(&rows), Gram::sparse(&sparse));
        let sum = Gram::combine([&a, &b], |[x, y]| x * y + 1.0);
        assert_eq!(sum.row(1), [10.0, 82.0, 1.0]);
        assert_eq!(
            Gram::dense(&[]).ridge(&[], &[], 1.0).weights,
            Vec::<f32>::new()
        );
    }
}
