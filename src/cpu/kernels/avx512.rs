//! Sixteen outputs per 512-bit vector, four products per lane and instruction (VNNI).

use std::arch::x86_64::*;

use crate::packed::{BlockLayout, SCALE_BYTES};
use realign_model::blocks::UNIT;

use super::{Format, ROW_SLACK, Rows, Tile, bits, for_format};

/// # Safety
/// The processor has the features, `bytes` is one panel of `x.columns` columns in this format, and
/// sixteen rows of `x` can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(crate) unsafe fn integer(format: Format, bytes: &[u8], x: Rows, rows: usize, tile: &mut Tile) {
    macro_rules! call {
        ($bits:literal, $scales:literal, $minimum:literal, $factored:literal) => {
            // SAFETY: passed on. Rows beyond `rows` are slack that may be read.
            unsafe {
                match rows {
                    0 => {}
                    1 => block::<1, $bits, $scales, $minimum, $factored>(format, bytes, x, tile),
                    2 => block::<2, $bits, $scales, $minimum, $factored>(format, bytes, x, tile),
                    3..=4 => {
                        block::<4, $bits, $scales, $minimum, $factored>(format, bytes, x, tile)
                    }
                    5..=8 => {
                        block::<8, $bits, $scales, $minimum, $factored>(format, bytes, x, tile)
                    }
                    _ => block::<ROW_SLACK, $bits, $scales, $minimum, $factored>(
                        format, bytes, x, tile,
                    ),
                }
            }
        };
    }
    for_format!(format, call)
}

/// How far ahead many rows read, in bytes. One or two rows leave that to the processor: they ask for more lines
/// than the first-level cache can have on their way, and prefetching makes them slower.
const AHEAD: usize = 4096;

/// # Safety
/// As [`integer`]; `ROWS` ≤ 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
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
    tile: &mut Tile,
) {
    let layout = const { BlockLayout::new(BITS, SCALES, MINIMUM, FACTORED) };
    let units = x.columns / UNIT;
    let mut at = bytes.as_ptr();
    let mut factors = [_mm512_setzero_ps(); 2];
    let mut sums = [_mm512_setzero_ps(); ROWS];
    for u in 0..units {
        // SAFETY: `at` walks the panel block by block and unit by unit; activations of ROWS rows can be
        // read; prefetching has no effect on memory safety.
        unsafe {
            if FACTORED && u % layout.units == 0 {
                factors = [
                    bits::wide::halves(at),
                    bits::wide::halves(at.add(SCALE_BYTES)),
                ];
                at = at.add(layout.factors);
            }
            let (head, integers) = (at, at.add(layout.head));
            at = at.add(layout.unit);
            let number =
                |i: usize| bits::wide::numbers::<FACTORED>(head, i, 0, factors[i / SCALES]);
            let scales: [__m512; SCALES] = std::array::from_fn(number);
            let minima: [__m512; SCALES] = match MINIMUM {
                true => std::array::from_fn(|i| number(SCALES + i)),
                false => [_mm512_setzero_ps(); SCALES],
            };
            let q = bits::wide::integers::<BITS>(integers);
            if ROWS > 2 {
                for line in 0..=BITS {
                    _mm_prefetch::<_MM_HINT_T0>(integers.wrapping_add(AHEAD + 64 * line).cast());
                }
            }
            for r in 0..ROWS {
                let values = x.rounded.add(r * x.columns + u * 32).cast::<i32>();
                let unit = &*x.units.add(r * units + u);
                let scale = _mm512_set1_ps(unit.scale);
                for s in 0..SCALES {
                    let total = match SCALES {
                        1 => unit.halves[0] + unit.halves[1],
                        _ => unit.halves[s],
                    };
                    // Starting from −zero · Σx makes the sum that of the signed weights, exactly.
                    let mut sum = match MINIMUM {
                        true => _mm512_setzero_si512(),
                        false => _mm512_set1_epi32(-format.zero * total),
                    };
                    // Integer sums are exact in any order: a lone row takes two chains, so that
                    // one product need not wait for the last.
                    let mut other = _mm512_setzero_si512();
                    for j in s * 8 / SCALES..(s + 1) * 8 / SCALES {
                        let four = _mm512_set1_epi32(values.add(j).read_unaligned());
                        if ROWS == 1 && j % 2 == 1 {
                            other = _mm512_dpbusd_epi32(other, q[j], four);
                        } else {
                            sum = _mm512_dpbusd_epi32(sum, q[j], four);
                        }
                    }
                    if ROWS == 1 {
                        sum = _mm512_add_epi32(sum, other);
                    }
                    let product = _mm512_cvtepi32_ps(sum);
                    sums[r] = _mm512_fmadd_ps(_mm512_mul_ps(scales[s], scale), product, sums[r]);
                    if MINIMUM {
                        let total = match SCALES {
                            1 => unit.sum,
                            _ => unit.scale * total as f32,
                        };
                        sums[r] = _mm512_fmadd_ps(minima[s], _mm512_set1_ps(total), sums[r]);
                    }
                }
            }
        }
    }
    for r in 0..ROWS {
        // SAFETY: a row of the tile holds sixteen floats.
        unsafe { _mm512_storeu_ps(tile[r].as_mut_ptr(), sums[r]) };
    }
}
