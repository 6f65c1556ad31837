//! Eight outputs per 256-bit vector; a panel is two of them.

use std::arch::x86_64::*;

use super::{Format, Rows, Tile, bits, for_format};
use crate::packed::{BlockLayout, SCALE_BYTES};
use realign_model::blocks::UNIT;

/// # Safety
/// The processor has the features, `bytes` is one panel of `x.columns` columns in this format, and
/// sixteen rows of `x` can be read.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn integer(format: Format, bytes: &[u8], x: Rows, rows: usize, tile: &mut Tile) {
    macro_rules! call {
        ($bits:literal, $scales:literal, $minimum:literal, $factored:literal) => {
            // SAFETY: passed on; `first` stays below sixteen, and rows up to there can be read.
            unsafe {
                for first in (0..rows).step_by(4) {
                    for half in 0..2 {
                        match rows - first {
                            1 => block::<1, $bits, $scales, $minimum, $factored>(
                                format, bytes, x, first, half, tile,
                            ),
                            2 => block::<2, $bits, $scales, $minimum, $factored>(
                                format, bytes, x, first, half, tile,
                            ),
                            _ => block::<4, $bits, $scales, $minimum, $factored>(
                                format, bytes, x, first, half, tile,
                            ),
                        }
                    }
                }
            }
        };
    }
    for_format!(format, call)
}

/// Steps whose sums of two products, of the largest weight with ±127, fit sixteen bits.
const fn at_a_time(bits: usize) -> usize {
    match bits {
        4 => 8,
        5 => 4,
        6 => 2,
        _ => 1,
    }
}

/// # Safety
/// As [`integer`]; `first + ROWS` ≤ 16 and `half` < 2.
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // one index walks several register arrays
unsafe fn block<
    const ROWS: usize,
    const BITS: usize,
    const SCALES: usize,
    const MINIMUM: bool,
    const FACTORED: bool,
>(
    format: Format,
    bytes: &[u8],
    x: Rows,
    first: usize,
    half: usize,
    tile: &mut Tile,
) {
    let layout = const { BlockLayout::new(BITS, SCALES, MINIMUM, FACTORED) };
    let units = x.columns / UNIT;
    let mut at = bytes.as_ptr();
    let mut factors = [_mm256_setzero_ps(); 2];
    let mut sums = [_mm256_setzero_ps(); ROWS];
    let ones = _mm256_set1_epi16(1);
    let flip = _mm256_set1_epi8(format.zero as u8 as i8);
    for u in 0..units {
        // SAFETY: `at` walks the panel block by block and unit by unit; activations of the rows can be read.
        unsafe {
            if FACTORED && u % layout.units == 0 {
                factors = [
                    bits::narrow::halves(at.add(16 * half)),
                    bits::narrow::halves(at.add(SCALE_BYTES + 16 * half)),
                ];
                at = at.add(layout.factors);
            }
            let (head, integers) = (at, at.add(layout.head));
            at = at.add(layout.unit);
            let number = |i: usize| {
                bits::narrow::numbers::<FACTORED>(head, i, 8 * half, factors[i / SCALES])
            };
            let scales: [__m256; SCALES] = std::array::from_fn(number);
            let minima: [__m256; SCALES] = match MINIMUM {
                true => std::array::from_fn(|i| number(SCALES + i)),
                false => [_mm256_setzero_ps(); SCALES],
            };
            let mut q = bits::narrow::integers::<BITS>(integers.add(32 * half));
            if BITS == 8 {
                // The signed weight itself: q − zero fits eight bits.
                q = q.map(|q| _mm256_sub_epi8(q, flip));
            }
            for r in 0..ROWS {
                let row = first + r;
                let values = x.rounded.add(row * x.columns + u * 32).cast::<i32>();
                let unit = &*x.units.add(row * units + u);
                let scale = _mm256_set1_ps(unit.scale);
                for s in 0..SCALES {
                    let steps = s * 8 / SCALES..(s + 1) * 8 / SCALES;
                    let total = match SCALES {
                        1 => unit.halves[0] + unit.halves[1],
                        _ => unit.halves[s],
                    };
                    let mut sum = match BITS < 8 && !MINIMUM {
                        true => _mm256_set1_epi32(-format.zero * total),
                        false => _mm256_setzero_si256(),
                    };
                    let at_a_time = const { at_a_time(BITS) };
                    for first in steps.step_by(at_a_time) {
                        let mut pairs = _mm256_setzero_si256();
                        for j in first..first + at_a_time.min(8 / SCALES) {
                            let four = _mm256_set1_epi32(values.add(j).read_unaligned());
                            let product = match BITS < 8 {
                                true => _mm256_maddubs_epi16(q[j], four),
                                // maddubs wants one unsigned factor: |w| times x with w's sign.
                                false => _mm256_maddubs_epi16(
                                    _mm256_abs_epi8(q[j]),
                                    _mm256_sign_epi8(four, q[j]),
                                ),
                            };
                            pairs = _mm256_add_epi16(pairs, product);
                        }
                        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                    }
                    let product = _mm256_cvtepi32_ps(sum);
                    sums[r] = _mm256_fmadd_ps(_mm256_mul_ps(scales[s], scale), product, sums[r]);
                    if MINIMUM {
                        let total = match SCALES {
                            1 => unit.sum,
                            _ => unit.scale * total as f32,
                        };
                        sums[r] = _mm256_fmadd_ps(minima[s], _mm256_set1_ps(total), sums[r]);
                    }
                }
            }
        }
    }
    for r in 0..ROWS {
        // SAFETY: a row of the tile holds two halves of eight floats.
        unsafe { _mm256_storeu_ps(tile[first + r].as_mut_ptr().add(8 * half), sums[r]) };
    }
}
