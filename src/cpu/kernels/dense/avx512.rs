//! Floats in 512-bit vectors: the sixteen weights of an input element are one.

use std::arch::x86_64::*;

use super::{BF16, F16, PANEL, Strided, pair_bytes};

/// Rows at a time: with two sums each they leave registers for the weights.
const ROWS: usize = 8;

/// # Safety
/// The processor has the features; `bytes` is one panel of `columns` columns in the encoding; of `x`
/// as many rows can be read as `tile` has.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
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
        // SAFETY: passed on. Few rows are not padded to many: decoding a few streams is then bound
        // by memory.
        unsafe {
            match tile.len() {
                1 => block::<KIND, ADD, 1>(weights, x, gain, tile),
                2 => block::<KIND, ADD, 2>(weights, x, gain, tile),
                3..=4 => block::<KIND, ADD, 4>(weights, x, gain, tile),
                _ => block::<KIND, ADD, ROWS>(weights, x, gain, tile),
            }
        }
    }
}

/// The weights of two input elements.
///
/// # Safety
/// The processor has the features, and two elements' weights can be read at `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn pair<const KIND: u8>(at: *const u8) -> [__m512; 2] {
    // SAFETY: passed on.
    unsafe {
        match KIND {
            BF16 => {
                let pairs = _mm512_loadu_si512(at.cast());
                let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                [
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
                    _mm512_castsi512_ps(_mm512_and_si512(pairs, high)),
                ]
            }
            F16 => [single::<KIND>(at), single::<KIND>(at.add(2 * PANEL))],
            _ => [single::<KIND>(at), single::<KIND>(at.add(4 * PANEL))],
        }
    }
}

/// The weights of an input element that has no companion.
///
/// # Safety
/// As [`pair`], of a panel's last element.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn single<const KIND: u8>(at: *const u8) -> __m512 {
    // SAFETY: passed on; in bfloat16 the companion that a panel lacks is stored as zero.
    unsafe {
        match KIND {
            BF16 => pair::<KIND>(at)[0],
            F16 => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
            _ => _mm512_loadu_ps(at.cast()),
        }
    }
}

/// # Safety
/// As [`panel`]; the tile has a row, and at most N.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // one index walks several register arrays
unsafe fn block<const KIND: u8, const ADD: bool, const N: usize>(
    (bytes, columns): (&[u8], usize),
    x: Strided<f32>,
    gain: f32,
    tile: &mut [[f32; PANEL]],
) {
    // Rows that the tile has not repeat its last one.
    let x: [*const f32; N] = std::array::from_fn(|r| x.row(r.min(tile.len() - 1)));
    // Even and odd columns apart: a lone row would wait for each of its sums.
    let (mut even, mut odd) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
    let size = pair_bytes(KIND);
    for p in 0..columns / 2 {
        // SAFETY: a panel has the weights of all pairs, and rows have both elements of each;
        // prefetching accesses nothing.
        unsafe {
            let at = bytes.as_ptr().add(p * size);
            // The processor reads ahead by itself for few rows, and faster: see `kernels::avx512`.
            if N > 2 {
                for line in 0..size / 64 {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(2048 + 64 * line).cast());
                }
            }
            let [first, second] = pair::<KIND>(at);
            for r in 0..N {
                let x = x[r].add(2 * p);
                even[r] = _mm512_fmadd_ps(first, _mm512_set1_ps(*x), even[r]);
                odd[r] = _mm512_fmadd_ps(second, _mm512_set1_ps(*x.add(1)), odd[r]);
            }
        }
    }
    if !columns.is_multiple_of(2) {
        // SAFETY: as above, for the last column.
        unsafe {
            let last = single::<KIND>(bytes.as_ptr().add(columns / 2 * size));
            for r in 0..N {
                even[r] = _mm512_fmadd_ps(last, _mm512_set1_ps(*x[r].add(columns - 1)), even[r]);
            }
        }
    }
    let gain = _mm512_set1_ps(gain);
    for (r, row) in tile.iter_mut().enumerate().take(N) {
        let sum = _mm512_mul_ps(gain, _mm512_add_ps(even[r], odd[r]));
        // SAFETY: a row of the tile holds sixteen floats.
        unsafe {
            let sum = match ADD {
                true => _mm512_add_ps(_mm512_loadu_ps(row.as_ptr()), sum),
                false => sum,
            };
            _mm512_storeu_ps(row.as_mut_ptr(), sum);
        }
    }
}
