//! Small strided products between things that are not frozen weights: adapters, attention.

use gemm::Parallelism;

/// A strided matrix inside a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid<'a> {
    /// What it lies in.
    pub(crate) data: &'a [f32],
    /// Index of its first element.
    pub(crate) at: usize,
    /// Elements from one row to the next.
    pub(crate) row: usize,
    /// Elements from one column to the next.
    pub(crate) column: usize,
}

impl<'a> Grid<'a> {
    /// A row-major matrix of `columns` columns that is the whole slice.
    pub(crate) fn rows(data: &'a [f32], columns: usize) -> Self {
        Self {
            data,
            at: 0,
            row: columns,
            column: 1,
        }
    }

    /// From another first element.
    pub(crate) fn from(self, at: usize) -> Self {
        Self {
            at: self.at + at,
            ..self
        }
    }

    /// Rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    fn check(&self, rows: usize, columns: usize) {
        let last = self.at + (rows - 1) * self.row + (columns - 1) * self.column;
        assert!(
            last < self.data.len(),
            "a matrix of {rows} × {columns} lies inside its slice"
        );
    }
}

/// c (m, n), row-major with `stride` elements a row from element `at` on, ← [c +] factor · a b.
#[derive(Debug)]
pub(crate) struct Sum<'a> {
    /// What c lies in.
    pub(crate) data: &'a mut [f32],
    /// Index of its first element.
    pub(crate) at: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Whether to add to what is there.
    pub(crate) add: bool,
    /// Factor on the product.
    pub(crate) factor: f32,
}

/// The product of `a` (m, k) and `b` (k, n); `shared` splits it over the pool's threads. The caller
/// yields to serving first.
///
/// # Panics
/// If a matrix does not lie inside its slice.
pub(crate) fn multiply((m, n, k): (usize, usize, usize), a: Grid, b: Grid, c: Sum, shared: bool) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    a.check(m, k);
    b.check(k, n);
    assert!(n <= c.stride && c.at + (m - 1) * c.stride + n <= c.data.len());
    let parallelism = match shared {
        true => Parallelism::Rayon(0),
        false => Parallelism::None,
    };
    // SAFETY: the checks above bound every access, and c is uniquely borrowed.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.data.as_mut_ptr().add(c.at),
            1,
            c.stride as isize,
            c.add,
            a.data.as_ptr().add(a.at),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr().add(b.at),
            b.column as isize,
            b.row as isize,
            1.0,
            c.factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}
