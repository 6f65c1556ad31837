//! Four outputs per 128-bit vector; a panel is four of them. With the dot product instruction, or in
//! widening products where a processor has none (before ARMv8.2).

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Format, PANEL, Rows, Tile, for_format};
use crate::packed::{BlockLayout, SCALE_BYTES, high_place};
use realign_model::blocks::UNIT;

/// Four halves as floats.
#[inline(always)]
pub(crate) fn widen(halves: uint16x4_t) -> float32x4_t {
    let floats: float32x4_t;
    // SAFETY: the instruction computes in registers only, and every ARMv8 processor has it.
    unsafe {
        asm!(
            "fcvtl {0:v}.4s, {1:v}.4h",
            lateout(vreg) floats, in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    floats
}

/// With the dot product instruction.
///
/// # Safety
/// The processor has `dotprod`, `bytes` is one panel of `x.columns` columns in this format, and
/// sixteen rows of `x` can be read.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dotprod(format: Format, bytes: &[u8], x: Rows, rows: usize, tile: &mut Tile) {
    // SAFETY: passed on.
    unsafe { integer::<true>(format, bytes, x, rows, tile) };
}

/// On any processor.
///
/// # Safety
/// As [`dotprod`], except for the processor.
pub(super) unsafe fn widening(format: Format, bytes: &[u8], x: Rows, rows: usize, tile: &mut Tile) {
    // SAFETY: passed on.
    unsafe { integer::<false>(format, bytes, x, rows, tile) };
}

/// # Safety
/// As [`dotprod`]; the processor has `dotprod` if `DOT`.
#[inline(always)]
unsafe fn integer<const DOT: bool>(
    format: Format,
    bytes: &[u8],
    x: Rows,
    rows: usize,
    tile: &mut Tile,
) {
    macro_rules! call {
        ($bits:literal, $scales:literal, $minimum:literal, $factored:literal) => {
            for first in (0..rows).step_by(4) {
                // The sums of few rows leave registers for more of a panel at once.
                // SAFETY: passed on; `first` stays below sixteen, and rows up to there can be read.
                unsafe {
                    match rows - first {
                        1 => block::<DOT, 1, 4, $bits, $scales, $minimum, $factored>(
                            format,
                            bytes,
                            x,
                            (first, 0),
                            tile,
                        ),
                        2 => {
                            for from in [0, 2] {
                                block::<DOT, 2, 2, $bits, $scales, $minimum, $factored>(
                                    format,
                                    bytes,
                                    x,
                                    (first, from),
                                    tile,
                                );
                            }
                        }
                        _ => {
                            for from in 0..4 {
                                block::<DOT, 4, 1, $bits, $scales, $minimum, $factored>(
                                    format,
                                    bytes,
                                    x,
                                    (first, from),
                                    tile,
                                );
                            }
                        }
                    }
                }
            }
        };
    }
    for_format!(format, call)
}

/// The products of ROWS rows with QUARTERS quarters of a panel.
///
/// # Safety
/// As [`integer`]; `first + ROWS` ≤ 16 and `from + QUARTERS` ≤ 4.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // one index walks several register arrays
unsafe fn block<
    const DOT: bool,
    const ROWS: usize,
    const QUARTERS: usize,
    const BITS: usize,
    const SCALES: usize,
    const MINIMUM: bool,
    const FACTORED: bool,
>(
    format: Format,
    bytes: &[u8],
    x: Rows,
    (first, from): (usize, usize),
    tile: &mut Tile,
) {
    let layout = const { BlockLayout::new(BITS, SCALES, MINIMUM, FACTORED) };
    let units = x.columns / UNIT;
    let (mut at, mut factors) = (bytes.as_ptr(), bytes.as_ptr());
    // SAFETY: `at` walks the panel block by block and unit by unit; activations of the rows can be read.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); QUARTERS]; ROWS];
        let flip = vdupq_n_u8(format.zero as u8);
        for u in 0..units {
            if FACTORED && u % layout.units == 0 {
                factors = at;
                at = at.add(layout.factors);
            }
            let (head, integers) = (at, at.add(layout.head + 16 * from));
            at = at.add(layout.unit);
            let halves = |at: *const u8, i: usize, q: usize| {
                widen(vld1_u16(
                    at.add(SCALE_BYTES * i + 8 * (from + q)).cast::<u16>(),
                ))
            };
            let number = |i: usize, q: usize| match FACTORED {
                true => {
                    let levels = head.add(PANEL * i + 4 * (from + q)).cast::<i32>();
                    let levels = vreinterpret_s8_s32(vdup_n_s32(levels.read_unaligned()));
                    let levels = vmovl_s16(vget_low_s16(vmovl_s8(levels)));
                    vmulq_f32(vcvtq_f32_s32(levels), halves(factors, i / SCALES, q))
                }
                false => halves(head, i, q),
            };
            let mut products = [[[vdupq_n_s32(0); QUARTERS]; ROWS]; SCALES];
            let mut row = [[vdupq_n_s8(0); 2]; ROWS];
            for (r, row) in row.iter_mut().enumerate() {
                let values = x.rounded.add((first + r) * x.columns + u * 32);
                *row = [vld1q_s8(values), vld1q_s8(values.add(16))];
            }
            macro_rules! step {
                ($($j:literal)*) => { $(
                    for q in 0..QUARTERS {
                        let place = |step: usize| integers.add(64 * step + 16 * q);
                        let (low, high) = match BITS {
                            // The signed weight itself: q − zero fits eight bits.
                            8 => (
                                vsubq_u8(vld1q_u8(place($j)), flip),
                                vsubq_u8(vld1q_u8(place($j + 4)), flip),
                            ),
                            _ => {
                                let packed = vld1q_u8(place($j));
                                let low = vandq_u8(packed, vdupq_n_u8(15));
                                let high = vshrq_n_u8::<4>(packed);
                                let above = |step| above::<BITS>(place(4), step);
                                (vorrq_u8(low, above($j)), vorrq_u8(high, above($j + 4)))
                            }
                        };
                        let (low, high) = (vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high));
                        for r in 0..ROWS {
                            let sum = &mut products[0][r][q];
                            *sum = dot::<DOT, $j>(*sum, low, row[r][0]);
                            let sum = &mut products[SCALES - 1][r][q];
                            *sum = dot::<DOT, $j>(*sum, high, row[r][1]);
                        }
                    }
                )* };
            }
            step!(0 1 2 3);
            for r in 0..ROWS {
                let unit = &*x.units.add((first + r) * units + u);
                for s in 0..SCALES {
                    let total = match SCALES {
                        1 => unit.halves[0] + unit.halves[1],
                        _ => unit.halves[s],
                    };
                    for q in 0..QUARTERS {
                        let mut product = products[s][r][q];
                        if BITS < 8 && !MINIMUM {
                            product = vsubq_s32(product, vdupq_n_s32(format.zero * total));
                        }
                        let scale = vmulq_n_f32(number(s, q), unit.scale);
                        let product = vcvtq_f32_s32(product);
                        sums[r][q] = vfmaq_f32(sums[r][q], scale, product);
                        if MINIMUM {
                            let total = match SCALES {
                                1 => unit.sum,
                                _ => unit.scale * total as f32,
                            };
                            sums[r][q] = vfmaq_n_f32(sums[r][q], number(SCALES + s, q), total);
                        }
                    }
                }
            }
        }
        for r in 0..ROWS {
            for q in 0..QUARTERS {
                vst1q_f32(tile[first + r].as_mut_ptr().add(4 * (from + q)), sums[r][q]);
            }
        }
    }
}

/// What the elements of a step have above four bits, in bits four and five.
///
/// # Safety
/// 16 bytes can be read of each of the lines of 64 that begin at `at`, `BITS` − 4 of them.
#[inline(always)]
unsafe fn above<const BITS: usize>(at: *const u8, step: usize) -> uint8x16_t {
    // SAFETY: passed on.
    unsafe {
        if BITS == 4 {
            return vdupq_n_u8(0);
        }
        let (line, shift) = high_place(BITS, step);
        let moved = vshlq_u8(vld1q_u8(at.add(64 * line)), vdupq_n_s8(4 - shift as i8));
        vandq_u8(moved, vdupq_n_u8(if BITS == 5 { 16 } else { 48 }))
    }
}

/// Adds to each of four sums the products of four weights with the four activations of a lane.
///
/// # Safety
/// The processor has `dotprod` if `DOT`.
#[inline(always)]
unsafe fn dot<const DOT: bool, const LANE: i32>(
    mut sum: int32x4_t,
    weights: int8x16_t,
    x: int8x16_t,
) -> int32x4_t {
    // SAFETY: the instructions compute in registers only; the caller has checked for the first.
    unsafe {
        if DOT {
            asm!(
                ".arch_extension dotprod",
                "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]",
                inlateout(vreg) sum, in(vreg) weights, in(vreg) x, const LANE,
                options(pure, nomem, nostack, preserves_flags)
            );
            return sum;
        }
        let x = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(x)));
        let low = vpaddlq_s16(vmull_s8(vget_low_s8(weights), vget_low_s8(x)));
        let high = vpaddlq_s16(vmull_high_s8(weights, x));
        vaddq_s32(sum, vpaddq_s32(low, high))
    }
}
