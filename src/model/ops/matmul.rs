//! Matrix products for frozen weights: x Wᵀ forward and g W backward, in f32.
//!
//! A 6 × 16 register tile in AVX2 + FMA over panels of 16 weight columns that are packed as they
//! are used. Measured against the `gemm` crate (the slow twin, and the path for processors
//! without AVX2) in docs/LOG.md.

use rayon::prelude::*;

/// How a weight (n, k), row-major, enters a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// (m, k) · (n, k)ᵀ → (m, n): the forward product.
    Transposed,
    /// (m, n) · (n, k) → (m, k): the gradient of the forward product's input.
    Plain,
}

/// The weight and its shape (n, k).
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Row-major elements.
    pub data: &'a [f32],
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
}

/// x · weight or x · weightᵀ for `x` of `rows` rows. Panics if the slices do not fit the shapes:
/// both callers have checked them.
pub fn matmul(x: &[f32], rows: usize, weight: Matrix, orientation: Orientation) -> Vec<f32> {
    let (inner, out) = match orientation {
        Orientation::Transposed => (weight.k, weight.n),
        Orientation::Plain => (weight.n, weight.k),
    };
    assert!(
        x.len() == rows * inner && weight.data.len() == weight.n * weight.k,
        "slices match their shapes"
    );
    let mut y = vec![0f32; rows * out];
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
        tiled::matmul(x, rows, weight, orientation, &mut y);
        return y;
    }
    generic(x, rows, weight, orientation, &mut y);
    y
}

/// The slow twin.
pub fn generic(x: &[f32], rows: usize, weight: Matrix, orientation: Orientation, y: &mut [f32]) {
    let (inner, out) = match orientation {
        Orientation::Transposed => (weight.k, weight.n),
        Orientation::Plain => (weight.n, weight.k),
    };
    assert!(x.len() == rows * inner && y.len() == rows * out && weight.data.len() == inner * out);
    let (row_stride, column_stride) = match orientation {
        Orientation::Transposed => (1, weight.k as isize),
        Orientation::Plain => (weight.k as isize, 1),
    };
    // SAFETY: the assertion above bounds every access that the strides can make, and y does not
    // overlap the inputs because it is uniquely borrowed.
    unsafe {
        gemm::gemm(
            rows,
            out,
            inner,
            y.as_mut_ptr(),
            1,
            out as isize,
            false,
            x.as_ptr(),
            1,
            inner as isize,
            weight.data.as_ptr(),
            column_stride,
            row_stride,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(rayon::current_num_threads()),
        );
    }
}

#[cfg(target_arch = "x86_64")]
mod tiled {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };

    use super::{IntoParallelIterator, Matrix, Orientation, ParallelIterator};

    /// Output columns of one panel: two AVX registers.
    const PANEL: usize = 16;
    /// Rows of one register tile: 6 × 2 accumulators leave room for two panel loads.
    const TILE: usize = 6;
    /// Inner length of one pass: a panel of this length stays in the first-level cache.
    const DEPTH: usize = 384;
    /// Panels that one task packs and keeps in the second-level cache while rows stream past.
    const GROUP: usize = 4;

    /// A raw output pointer that tasks with disjoint columns share.
    #[derive(Clone, Copy)]
    struct Output(*mut f32);
    // SAFETY: every task writes only the columns of its own panels.
    unsafe impl Send for Output {}
    // SAFETY: as above; nobody reads through it.
    unsafe impl Sync for Output {}

    impl Output {
        fn at(self, offset: usize) -> *mut f32 {
            self.0.wrapping_add(offset)
        }
    }

    pub fn matmul(x: &[f32], rows: usize, weight: Matrix, orientation: Orientation, y: &mut [f32]) {
        let (inner, out) = match orientation {
            Orientation::Transposed => (weight.k, weight.n),
            Orientation::Plain => (weight.n, weight.k),
        };
        assert!(x.len() == rows * inner && y.len() == rows * out);
        let output = Output(y.as_mut_ptr());
        let columns_per_task = GROUP * PANEL;
        (0..out.div_ceil(columns_per_task))
            .into_par_iter()
            .for_each(|task| {
                let first = task * columns_per_task;
                let columns = columns_per_task.min(out - first);
                let mut packed = vec![0f32; columns.div_ceil(PANEL) * PANEL * DEPTH];
                for depth in (0..inner).step_by(DEPTH) {
                    let length = DEPTH.min(inner - depth);
                    for (p, panel) in packed.chunks_exact_mut(PANEL * DEPTH).enumerate() {
                        let width = PANEL.min(columns - p * PANEL);
                        pack(
                            weight,
                            orientation,
                            (first + p * PANEL, width),
                            (depth, length),
                            panel,
                        );
                    }
                    for row in (0..rows).step_by(TILE) {
                        let height = TILE.min(rows - row);
                        let a = &x[row * inner + depth..];
                        for (p, panel) in packed.chunks_exact(PANEL * DEPTH).enumerate() {
                            let column = first + p * PANEL;
                            let tile = Tile {
                                length,
                                stride: inner,
                                out_stride: out,
                                width: PANEL.min(columns - p * PANEL),
                                accumulate: depth > 0,
                            };
                            // SAFETY: the caller detected AVX2 and FMA. `a` holds `height` rows of
                            // `length` elements at `stride`; the tile's columns belong to this task.
                            unsafe {
                                tile.dispatch(height, a, panel, output.at(row * out + column))
                            };
                        }
                    }
                }
            });
    }

    /// Copies `width` output columns from `first`, over inner indices `depth..depth + length`,
    /// into a panel: inner index by inner index, 16 columns each, zero beyond `width`.
    fn pack(
        weight: Matrix,
        orientation: Orientation,
        (first, width): (usize, usize),
        (depth, length): (usize, usize),
        panel: &mut [f32],
    ) {
        match orientation {
            Orientation::Transposed => {
                for j in 0..PANEL {
                    if j < width {
                        let source = &weight.data[(first + j) * weight.k + depth..][..length];
                        for (i, v) in source.iter().enumerate() {
                            panel[i * PANEL + j] = *v;
                        }
                    } else {
                        panel
                            .iter_mut()
                            .skip(j)
                            .step_by(PANEL)
                            .for_each(|v| *v = 0.0);
                    }
                }
            }
            Orientation::Plain => {
                for (i, row) in panel.chunks_exact_mut(PANEL).take(length).enumerate() {
                    let source = &weight.data[(depth + i) * weight.k + first..][..width];
                    row[..width].copy_from_slice(source);
                    row[width..].fill(0.0);
                }
            }
        }
    }

    /// One register tile's constants.
    struct Tile {
        length: usize,
        stride: usize,
        out_stride: usize,
        width: usize,
        accumulate: bool,
    }

    impl Tile {
        /// # Safety
        /// AVX2 and FMA are present; `out` is valid for `height` rows of `width` elements.
        unsafe fn dispatch(&self, height: usize, a: &[f32], panel: &[f32], out: *mut f32) {
            assert!(
                a.len() >= (height - 1) * self.stride + self.length
                    && panel.len() >= self.length * PANEL
            );
            // SAFETY: passed on from the caller; the assertion bounds all reads.
            unsafe {
                match height {
                    6 => self.run::<6>(a, panel, out),
                    5 => self.run::<5>(a, panel, out),
                    4 => self.run::<4>(a, panel, out),
                    3 => self.run::<3>(a, panel, out),
                    2 => self.run::<2>(a, panel, out),
                    _ => self.run::<1>(a, panel, out),
                }
            }
        }

        #[target_feature(enable = "avx2,fma")]
        unsafe fn run<const ROWS: usize>(&self, a: &[f32], panel: &[f32], out: *mut f32) {
            let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
            let (a, b) = (a.as_ptr(), panel.as_ptr());
            for i in 0..self.length {
                // SAFETY: `dispatch` has checked that both slices are long enough.
                unsafe {
                    let low = _mm256_loadu_ps(b.add(i * PANEL));
                    let high = _mm256_loadu_ps(b.add(i * PANEL + 8));
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let value = _mm256_broadcast_ss(&*a.add(r * self.stride + i));
                        sum[0] = _mm256_fmadd_ps(value, low, sum[0]);
                        sum[1] = _mm256_fmadd_ps(value, high, sum[1]);
                    }
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                let row = out.wrapping_add(r * self.out_stride);
                if self.width == PANEL {
                    // SAFETY: a full panel's 16 columns lie inside the output row.
                    unsafe {
                        let (mut low, mut high) = (sum[0], sum[1]);
                        if self.accumulate {
                            low = _mm256_add_ps(low, _mm256_loadu_ps(row));
                            high = _mm256_add_ps(high, _mm256_loadu_ps(row.add(8)));
                        }
                        _mm256_storeu_ps(row, low);
                        _mm256_storeu_ps(row.add(8), high);
                    }
                } else {
                    let mut edge = [0f32; PANEL];
                    // SAFETY: `edge` holds 16 elements; `row` is valid for `width` of them.
                    unsafe {
                        _mm256_storeu_ps(edge.as_mut_ptr(), sum[0]);
                        _mm256_storeu_ps(edge.as_mut_ptr().add(8), sum[1]);
                        for (j, value) in edge.iter().take(self.width).enumerate() {
                            let before = if self.accumulate { *row.add(j) } else { 0.0 };
                            *row.add(j) = before + value;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiled_product_agrees_with_its_twin_on_odd_shapes() {
        let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
        for (rows, n, k) in [
            (1, 16, 8),
            (7, 33, 19),
            (6, 192, 576),
            (13, 100, 800),
            (25, 5, 3),
            (1, 1, 1),
        ] {
            let data: Vec<f32> = (0..n * k).map(value).collect();
            let weight = Matrix { data: &data, n, k };
            for orientation in [Orientation::Transposed, Orientation::Plain] {
                let inner = if orientation == Orientation::Transposed {
                    k
                } else {
                    n
                };
                let x: Vec<f32> = (0..rows * inner).map(|i| value(i + 7)).collect();
                let fast = matmul(&x, rows, weight, orientation);
                let mut slow = vec![0f32; fast.len()];
                generic(&x, rows, weight, orientation, &mut slow);
                for (a, b) in fast.iter().zip(&slow) {
                    assert!(
                        (a - b).abs() < 1e-3,
                        "{rows} {n} {k} {orientation:?}: {a} and {b}"
                    );
                }
            }
        }
    }
}
