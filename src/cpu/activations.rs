//! Rows of activations, as floats and rounded to 8 bits in blocks of 32.

use realign_model::blocks::UNIT;
use realign_model::vector::quantize_block;

/// What the integer kernels need to know about 32 rounded activations.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct ActivationUnit {
    /// x ≈ scale · value.
    pub(crate) scale: f32,
    /// scale · Σ values, which multiplies a weight's minimum.
    pub(crate) sum: f32,
    /// Σ values of each half, which multiply a weight's zero point.
    pub(crate) halves: [i32; 2],
}

/// Rows that a kernel may read past the last: it works on up to this many at once.
pub(crate) const ROW_SLACK: usize = 16;

/// A reusable matrix of activations, (rows, columns).
#[derive(Debug, Default)]
pub(crate) struct Activations {
    /// Rows that mean something.
    pub(crate) rows: usize,
    /// Elements of a row.
    pub(crate) columns: usize,
    /// The floats, (rows + slack, columns).
    pub(crate) values: Vec<f32>,
    /// Their 8-bit roundings.
    pub(crate) rounded: Vec<i8>,
    /// One per 32 roundings.
    pub(crate) units: Vec<ActivationUnit>,
}

impl Activations {
    /// Changes the shape. Memory grows to the largest shape seen and is kept; contents are
    /// unspecified afterwards.
    pub(crate) fn reshape(&mut self, rows: usize, columns: usize) {
        (self.rows, self.columns) = (rows, columns);
        let size = (rows + ROW_SLACK) * columns;
        if self.values.len() < size {
            self.values.resize(size, 0.0);
            self.rounded.resize(size, 0);
            self.units
                .resize(size.div_ceil(UNIT), ActivationUnit::default());
        }
    }
}

/// Rounds one row. Lengths: values and rounded the same multiple of 32, units a 32nd of it.
pub(crate) fn round_row(values: &[f32], rounded: &mut [i8], units: &mut [ActivationUnit]) {
    let blocks = values
        .chunks_exact(UNIT)
        .zip(rounded.chunks_exact_mut(UNIT));
    for ((x, q), unit) in blocks.zip(units) {
        let (scale, total) = quantize_block(x, q);
        let first: i32 = q[..UNIT / 2].iter().map(|v| i32::from(*v)).sum();
        *unit = ActivationUnit {
            scale,
            sum: scale * total as f32,
            halves: [first, total - first],
        };
    }
}
