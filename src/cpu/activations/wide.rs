//! Rounding a row to 8 bits with AVX-512: a block in two vectors, to the same numbers as
//! [`quantize_block`](realign_model::vector::quantize_block).

use std::arch::x86_64::*;

use realign_model::blocks::UNIT;

use super::ActivationUnit;

/// Whether this processor has the instructions.
pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

/// As [`round_row`](super::round_row).
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn round_row(values: &[f32], rounded: &mut [i8], units: &mut [ActivationUnit]) {
    let (values, _) = values.as_chunks::<UNIT>();
    let (rounded, _) = rounded.as_chunks_mut::<UNIT>();
    for ((x, q), unit) in values.iter().zip(rounded).zip(units) {
        *unit = round(x, q);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn round(x: &[f32; UNIT], q: &mut [i8; UNIT]) -> ActivationUnit {
    let sign = _mm512_set1_epi32(i32::MIN);
    let magnitude = |v| _mm512_andnot_si512(sign, _mm512_castps_si512(v));
    // SAFETY: both halves lie in `x`.
    let (low, high) = unsafe {
        (
            _mm512_loadu_ps(x.as_ptr()),
            _mm512_loadu_ps(x.as_ptr().add(16)),
        )
    };
    let largest = _mm512_max_epu32(magnitude(low), magnitude(high));
    let scale = f32::from_bits(_mm512_reduce_max_epu32(largest)) / 127.0;
    let inverse = if scale >= f32::MIN_POSITIVE {
        1.0 / scale
    } else {
        0.0
    };
    let inverse = _mm512_set1_ps(inverse);
    let (first, second) = q.split_at_mut(UNIT / 2);
    let halves = [(low, first), (high, second)].map(|(v, into)| {
        let v = _mm512_mul_ps(v, inverse);
        // Where a value is not finite, so is the scale.
        let ordered = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(v, v);
        let v = _mm512_maskz_cvtps_epi32(ordered, v);
        // SAFETY: each half has sixteen bytes.
        unsafe { _mm_storeu_si128(into.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)) };
        _mm512_reduce_add_epi32(v)
    });
    ActivationUnit {
        scale,
        sum: scale * (halves[0] + halves[1]) as f32,
        halves,
    }
}
