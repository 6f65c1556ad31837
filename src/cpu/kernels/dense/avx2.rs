//! Floats in 256-bit vectors: the sixteen weights of an input element are two.

use std::arch::x86_64::*;

use super::{BF16, F16, PANEL, Strided, pair_bytes};

/// Rows at a time, where one half of a panel is computed after the other: with two sums each they
/// leave registers for weights and activations.
const ROWS: usize = 4;

/// # Safety
/// The processor has the features; `bytes` is one panel of `columns` columns in the encoding; of `x`
/// as many rows can be read as `tile` has.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn panel<const KIND: u8, const ADD: bool>(
    (bytes, columns): (&[u8], usize),
    x: Strided<f32>,
    gain: f32,
    tile: &mut [[f32; PANEL]],
) {
    for (first, tile) in (0..).step_by(ROWS).zip(tile.chunks_mut(ROWS)) {
        let x = Strided {
            at: x.row(first),
            ..x
        };
        let weights = (bytes, columns);
        // SAFETY: passed on. Few rows read the panel once.
        unsafe {
            match tile.len() {
                1 => block::<KIND, ADD, 1, 2>(weights, x, gain, tile, 0),
                2 => block::<KIND, ADD, 2, 2>(weights, x, gain, tile, 0),
                _ => {
                    block::<KIND, ADD, ROWS, 1>(weights, x, gain, tile, 0);
                    block::<KIND, ADD, ROWS, 1>(weights, x, gain, tile, 1);
                }
            }
        }
    }
}

/// Half the weights of two input elements.
///
/// # Safety
/// The processor has the features, `half` < 2, and two elements' weights can be read at `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pair<const KIND: u8>(at: *const u8, half: usize) -> [__m256; 2] {
    // SAFETY: passed on.
    unsafe {
        match KIND {
            BF16 => {
                let pairs = _mm256_loadu_si256(at.add(32 * half).cast());
                let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)),
                    _mm256_castsi256_ps(_mm256_and_si256(pairs, high)),
                ]
            }
            F16 => [
                single::<KIND>(at, half),
                single::<KIND>(at.add(2 * PANEL), half),
            ],
            _ => [
                single::<KIND>(at, half),
                single::<KIND>(at.add(4 * PANEL), half),
            ],
        }
    }
}

/// Half the weights of an input element that has no companion.
///
/// # Safety
/// As [`pair`], of a panel's last element.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn single<const KIND: u8>(at: *const u8, half: usize) -> __m256 {
    // SAFETY: passed on; in bfloat16 the companion that a panel lacks is stored as zero.
    unsafe {
        match KIND {
            BF16 => pair::<KIND>(at, half)[0],
            F16 => _mm256_cvtph_ps(_mm_loadu_si128(at.add(16 * half).cast())),
            _ => _mm256_loadu_ps(at.add(32 * half).cast()),
        }
    }
}

/// # Safety
/// As [`panel`]; the tile has a row, and at most N; `from` + H ≤ 2.
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // one index walks several register arrays
unsafe fn block<const KIND: u8, const ADD: bool, const N: usize, const H: usize>(
    (bytes, columns): (&[u8], usize),
    x: Strided<f32>,
    gain: f32,
    tile: &mut [[f32; PANEL]],
    from: usize,
) {
    // Rows that the tile has not repeat its last one.
    let x: [*const f32; N] = std::array::from_fn(|r| x.row(r.min(tile.len() - 1)));
    // Even and odd columns apart: a lone row would wait for each of its sums.
    let mut even = [[_mm256_setzero_ps(); H]; N];
    let mut odd = [[_mm256_setzero_ps(); H]; N];
    let size = pair_bytes(KIND);
    for p in 0..columns / 2 {
        // SAFETY: a panel has the weights of all pairs, and rows have both elements of each.
        unsafe {
            let at = bytes.as_ptr().add(p * size);
            for h in 0..H {
                let [first, second] = pair::<KIND>(at, from + h);
                for r in 0..N {
                    let x = x[r].add(2 * p);
                    even[r][h] = _mm256_fmadd_ps(first, _mm256_set1_ps(*x), even[r][h]);
                    odd[r][h] = _mm256_fmadd_ps(second, _mm256_set1_ps(*x.add(1)), odd[r][h]);
                }
            }
        }
    }
    if !columns.is_multiple_of(2) {
        // SAFETY: as above, for the last column.
        unsafe {
            let at = bytes.as_ptr().add(columns / 2 * size);
            for h in 0..H {
                let last = single::<KIND>(at, from + h);
                for r in 0..N {
                    let x = _mm256_set1_ps(*x[r].add(columns - 1));
                    even[r][h] = _mm256_fmadd_ps(last, x, even[r][h]);
                }
            }
        }
    }
    let gain = _mm256_set1_ps(gain);
    for (r, row) in tile.iter_mut().enumerate().take(N) {
        for h in 0..H {
            let sum = _mm256_mul_ps(gain, _mm256_add_ps(even[r][h], odd[r][h]));
            // SAFETY: a row of the tile holds two halves of eight floats.
            unsafe {
                let at = row.as_mut_ptr().add(8 * (from + h));
                let sum = match ADD {
                    true => _mm256_add_ps(_mm256_loadu_ps(at), sum),
                    false => sum,
                };
                _mm256_storeu_ps(at, sum);
            }
        }
    }
}
