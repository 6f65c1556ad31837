//! Eight outputs per 256-bit vector, four products per lane and instruction: AVX-VNNI, which processors have that
//! lack AVX-512.

/// The kernel with the dot product in one of its two encodings.
macro_rules! kernel {
    ($features:literal, $dot:ident) => {
        use crate::kernels::{Format, Rows, Tile, bits, for_format};
        use crate::packed::{BlockLayout, SCALE_BYTES};
        use realign_model::blocks::UNIT;
        use std::arch::x86_64::*;

        /// # Safety
        /// The processor has the features, `bytes` is one panel of `x.columns` columns in this format, and
        /// sixteen rows of `x` can be read.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn integer(
            format: Format,
            bytes: &[u8],
            x: Rows,
            rows: usize,
            tile: &mut Tile,
        ) {
            macro_rules! call {
                ($bits:literal, $scales:literal, $minimum:literal, $factored:literal) => {
                    for (first, half) in (0..rows).step_by(4).flat_map(|r| [(r, 0), (r, 1)]) {
                        // SAFETY: passed on; `first` stays below sixteen, and rows up to there can be read.
                        unsafe {
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
                };
            }
            for_format!(format, call)
        }

        /// # Safety
        /// As [`integer`]; `first + ROWS` ≤ 16 and `half` < 2.
        #[target_feature(enable = $features)]
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
            for u in 0..units {
                // SAFETY: `at` walks the panel block by block and unit by unit; activations of the rows can be
                // read.
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
                        let factor = factors[i / SCALES];
                        bits::narrow::numbers::<FACTORED>(head, i, 8 * half, factor)
                    };
                    let scales: [__m256; SCALES] = std::array::from_fn(number);
                    let minima: [__m256; SCALES] = match MINIMUM {
                        true => std::array::from_fn(|i| number(SCALES + i)),
                        false => [_mm256_setzero_ps(); SCALES],
                    };
                    let q = bits::narrow::integers::<BITS>(integers.add(32 * half));
                    for r in 0..ROWS {
                        let row = first + r;
                        let values = x.rounded.add(row * x.columns + u * 32).cast::<i32>();
                        let unit = &*x.units.add(row * units + u);
                        let scale = _mm256_set1_ps(unit.scale);
                        for s in 0..SCALES {
                            let total = match SCALES {
                                1 => unit.halves[0] + unit.halves[1],
                                _ => unit.halves[s],
                            };
                            // Starting from −zero · Σx makes the sum that of the signed weights, exactly.
                            let mut sum = match MINIMUM {
                                true => _mm256_setzero_si256(),
                                false => _mm256_set1_epi32(-format.zero * total),
                            };
                            for j in s * 8 / SCALES..(s + 1) * 8 / SCALES {
                                let four = _mm256_set1_epi32(values.add(j).read_unaligned());
                                sum = $dot(sum, q[j], four);
                            }
                            let product = _mm256_cvtepi32_ps(sum);
                            let scale = _mm256_mul_ps(scales[s], scale);
                            sums[r] = _mm256_fmadd_ps(scale, product, sums[r]);
                            if MINIMUM {
                                let total = match SCALES {
                                    1 => unit.sum,
                                    _ => unit.scale * total as f32,
                                };
                                let total = _mm256_set1_ps(total);
                                sums[r] = _mm256_fmadd_ps(minima[s], total, sums[r]);
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
    };
}

/// As processors without AVX-512 have it.
pub(super) mod plain {
    kernel!("avx2,fma,f16c,avxvnni", _mm256_dpbusd_avx_epi32);
}

/// As processors with AVX-512 have it too: the same code, so that tests there run it.
#[cfg(test)]
pub(super) mod extended {
    kernel!("avx2,fma,f16c,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
}
