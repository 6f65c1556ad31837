//! Floats in 128-bit vectors: the sixteen weights of an input element are four.

use std::arch::aarch64::*;

use super::super::neon::widen;
use super::{BF16, F16, PANEL, Strided, pair_bytes};

/// Rows at a time, where one half of a panel is computed after the other: with two sums each they
/// leave registers for weights and activations.
const ROWS: usize = 4;

/// # Safety
/// `bytes` is one panel of `columns` columns in the encoding; of `x` as many rows can be read as
/// `tile` has.
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
                1 => block::<KIND, ADD, 1, 4>(weights, x, gain, tile, 0),
                2 => block::<KIND, ADD, 2, 4>(weights, x, gain, tile, 0),
                _ => {
                    block::<KIND, ADD, ROWS, 2>(weights, x, gain, tile, 0);
                    block::<KIND, ADD, ROWS, 2>(weights, x, gain, tile, 2);
                }
            }
        }
    }
}

/// A quarter of the weights of two input elements.
///
/// # Safety
/// `quarter` < 4, and two elements' weights can be read at `at`.
#[inline(always)]
unsafe fn pair<const KIND: u8>(at: *const u8, quarter: usize) -> [float32x4_t; 2] {
    // SAFETY: passed on.
    unsafe {
        match KIND {
            BF16 => {
                let pairs = vld1q_u32(at.add(16 * quarter).cast());
                let high = vdupq_n_u32(0xffff_0000);
                [
                    vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)),
                    vreinterpretq_f32_u32(vandq_u32(pairs, high)),
                ]
            }
            F16 => [
                single::<KIND>(at, quarter),
                single::<KIND>(at.add(2 * PANEL), quarter),
            ],
            _ => [
                single::<KIND>(at, quarter),
                single::<KIND>(at.add(4 * PANEL), quarter),
            ],
        }
    }
}

/// A quarter of the weights of an input element that has no companion.
///
/// # Safety
/// As [`pair`], of a panel's last element.
#[inline(always)]
unsafe fn single<const KIND: u8>(at: *const u8, quarter: usize) -> float32x4_t {
    // SAFETY: passed on; in bfloat16 the companion that a panel lacks is stored as zero.
    unsafe {
        match KIND {
            BF16 => pair::<KIND>(at, quarter)[0],
            F16 => widen(vld1_u16(at.add(8 * quarter).cast())),
            _ => vld1q_f32(at.add(16 * quarter).cast()),
        }
    }
}

/// # Safety
/// As [`panel`]; the tile has a row, and at most N; `from` + Q ≤ 4.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // one index walks several register arrays
unsafe fn block<const KIND: u8, const ADD: bool, const N: usize, const Q: usize>(
    (bytes, columns): (&[u8], usize),
    x: Strided<f32>,
    gain: f32,
    tile: &mut [[f32; PANEL]],
    from: usize,
) {
    // Rows that the tile has not repeat its last one.
    let x: [*const f32; N] = std::array::from_fn(|r| x.row(r.min(tile.len() - 1)));
    let size = pair_bytes(KIND);
    // SAFETY: a panel has the weights of all columns, and rows have an element for each; a row of
    // the tile holds four quarters of four floats.
    unsafe {
        // Even and odd columns apart: a lone row would wait for each of its sums.
        let mut even = [[vdupq_n_f32(0.0); Q]; N];
        let mut odd = [[vdupq_n_f32(0.0); Q]; N];
        for p in 0..columns / 2 {
            let at = bytes.as_ptr().add(p * size);
            for q in 0..Q {
                let [first, second] = pair::<KIND>(at, from + q);
                for r in 0..N {
                    let x = x[r].add(2 * p);
                    even[r][q] = vfmaq_n_f32(even[r][q], first, *x);
                    odd[r][q] = vfmaq_n_f32(odd[r][q], second, *x.add(1));
                }
            }
        }
        if !columns.is_multiple_of(2) {
            let at = bytes.as_ptr().add(columns / 2 * size);
            for q in 0..Q {
                let last = single::<KIND>(at, from + q);
                for r in 0..N {
                    even[r][q] = vfmaq_n_f32(even[r][q], last, *x[r].add(columns - 1));
                }
            }
        }
        for (r, row) in tile.iter_mut().enumerate().take(N) {
            for q in 0..Q {
                let at = row.as_mut_ptr().add(4 * (from + q));
                let sum = vmulq_n_f32(vaddq_f32(even[r][q], odd[r][q]), gain);
                let sum = match ADD {
                    true => vaddq_f32(vld1q_f32(at), sum),
                    false => sum,
                };
                vst1q_f32(at, sum);
            }
        }
    }
}
