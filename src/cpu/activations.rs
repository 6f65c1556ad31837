//! Rows of activations, in the forms that kernels read: floats, pairs of bfloat16, and 8-bit integers
//! in blocks of 32.

#[cfg(target_arch = "x86_64")]
mod narrow;
#[cfg(target_arch = "x86_64")]
mod wide;

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

/// Pairs in a row of so many elements.
pub(crate) fn pairs_of(columns: usize) -> usize {
    columns.div_ceil(2)
}

/// Rounds a row to bfloat16, to nearest, ties to even; an odd last element is paired with zero.
pub(crate) fn pair_row(row: &[f32], into: &mut [u32]) {
    let (twos, rest) = row.as_chunks::<2>();
    for (into, [a, b]) in into.iter_mut().zip(twos) {
        *into = brain(*a) | brain(*b) << 16;
    }
    if let [last] = rest {
        into[twos.len()] = brain(*last);
    }
}

/// A float's bfloat16 bits, rounded to nearest, ties to even.
#[inline(always)]
fn brain(x: f32) -> u32 {
    let bits = x.to_bits();
    match x.is_nan() {
        true => 0x7fc0,
        false => bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16,
    }
}

/// The forms in which a model's weights want their activations, besides floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Rounded to 8 bits.
    pub(crate) integers: bool,
    /// Rounded to bfloat16.
    pub(crate) pairs: bool,
}

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
    /// Their roundings to bfloat16, two in each.
    pub(crate) pairs: Vec<u32>,
    /// Whether `pairs` holds this matrix.
    pub(crate) in_pairs: bool,
    /// What is prepared for products.
    pub(crate) wanted: Wanted,
}

impl Activations {
    /// Changes the shape. Memory grows to the largest shape seen and is kept; contents are
    /// unspecified afterwards.
    pub(crate) fn reshape(&mut self, rows: usize, columns: usize) {
        (self.rows, self.columns, self.in_pairs) = (rows, columns, false);
        let size = (rows + ROW_SLACK) * columns;
        if self.values.len() < size {
            self.values.resize(size, 0.0);
            self.rounded.resize(size, 0);
            self.units
                .resize(size.div_ceil(UNIT), ActivationUnit::default());
        }
    }

    /// Makes room for pairs, which are to be written then.
    pub(crate) fn pair(&mut self) {
        let size = self.rows * pairs_of(self.columns);
        if self.pairs.len() < size {
            self.pairs.resize(size, 0);
        }
        self.in_pairs = true;
    }
}

/// Rounds one row. Lengths: values and rounded the same multiple of 32, units a 32nd of it.
pub(crate) fn round_row(values: &[f32], rounded: &mut [i8], units: &mut [ActivationUnit]) {
    #[cfg(target_arch = "x86_64")]
    if wide::detected() {
        // SAFETY: the instructions were just detected.
        return unsafe { wide::round_row(values, rounded, units) };
    } else if narrow::detected() {
        // SAFETY: as above.
        return unsafe { narrow::round_row(values, rounded, units) };
    }
    round_blocks(values, rounded, units);
}

/// The slow twin of the forms with vectors, and the form of other processors.
fn round_blocks(values: &[f32], rounded: &mut [i8], units: &mut [ActivationUnit]) {
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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn vectors_round_to_the_same_numbers() {
        type Round = fn(&[f32], &mut [i8], &mut [ActivationUnit]);
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut forms: Vec<Round> = vec![round_row];
        // Where there is AVX-512 this one is not chosen.
        #[cfg(target_arch = "x86_64")]
        if narrow::detected() {
            // SAFETY: the instructions were just detected.
            forms.push(|values, q, units| unsafe { narrow::round_row(values, q, units) });
        }
        let row = |n: usize, scale: f32| -> Vec<f32> {
            let value = |i: usize| (((i * 7_919 + n) % 4_001) as f32 / 2_000.5 - 1.0) * scale;
            (0..96).map(value).collect()
        };
        let scales = [1.0, 1e-3, 3e4, 1e30, 1e-37, 1e-39, 1e-45, 0.0];
        let mut rows: Vec<Vec<f32>> = (0..40)
            .flat_map(|n| scales.map(|scale| row(n, scale)))
            .collect();
        // Halfway between two integers, and the largest.
        rows.push((0..96).map(|i| (i % 32) as f32 + 0.5).collect());
        rows.push(
            (0..96)
                .map(|i| if i % 32 == 5 { -127.0 } else { 2.5 })
                .collect(),
        );
        for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            rows.push([&[1.0; 40][..], &[odd], &[-2.0; 55]].concat());
        }
        for row in rows {
            let rounded = |round: Round| {
                let (mut q, mut units) = ([0i8; 96], [ActivationUnit::default(); 3]);
                round(&row, &mut q, &mut units);
                let bits = units.map(|u| (u.scale.to_bits(), u.sum.is_nan(), u.halves));
                let sums = units.map(|u| if u.sum.is_nan() { 0.0 } else { u.sum });
                (q, bits, sums)
            };
            for form in &forms {
                assert_eq!(rounded(*form), rounded(round_blocks), "{row:?}");
            }
        }
    }

    #[test]
    fn pairs_are_rounded_as_bfloat16_is() {
        let mut row: Vec<f32> = (0..4_001)
            .map(|i| ((i * 7_919) % 4_001) as f32 / 313.0 - 6.0)
            .collect();
        let odd = [
            f32::NAN,
            f32::from_bits(0xffff_ffff),
            f32::INFINITY,
            f32::NEG_INFINITY,
            -0.0,
        ];
        let near = [
            f32::MAX,
            f32::MIN_POSITIVE,
            1.0 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
        ];
        row.splice(0..9, odd.into_iter().chain(near));
        let mut words = vec![u32::MAX; pairs_of(row.len())];
        pair_row(&row, &mut words);
        for (i, x) in row.iter().enumerate() {
            let got = bf16::from_bits((words[i / 2] >> (i % 2 * 16)) as u16);
            let expected = bf16::from_f32(*x);
            assert!(got == expected || got.is_nan() && x.is_nan(), "{x}: {got}");
        }
        assert_eq!(words[2_000] >> 16, 0);
    }
}
