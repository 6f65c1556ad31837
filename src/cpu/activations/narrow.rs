//! Rounding a row to 8 bits with AVX2: a block in four vectors, to the same numbers as
//! [`quantize_block`](realign_model::vector::quantize_block).

use std::arch::x86_64::*;

use realign_model::blocks::UNIT;

use super::ActivationUnit;

/// Whether this processor has the instructions.
pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx2")
}

/// As [`round_row`](super::round_row).
#[target_feature(enable = "avx2")]
pub(super) fn round_row(values: &[f32], rounded: &mut [i8], units: &mut [ActivationUnit]) {
    let (values, _) = values.as_chunks::<UNIT>();
    let (rounded, _) = rounded.as_chunks_mut::<UNIT>();
    for ((x, q), unit) in values.iter().zip(rounded).zip(units) {
        *unit = round(x, q);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn round(x: &[f32; UNIT], q: &mut [i8; UNIT]) -> ActivationUnit {
    // SAFETY: `x` is four vectors.
    let x: [__m256; 4] = std::array::from_fn(|v| unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * v)) });
    let sign = _mm256_set1_epi32(i32::MIN);
    let [a, b, c, d] = x.map(|v| _mm256_andnot_si256(sign, _mm256_castps_si256(v)));
    let scale = f32::from_bits(largest(_mm256_max_epu32(
        _mm256_max_epu32(a, b),
        _mm256_max_epu32(c, d),
    ))) / 127.0;
    let inverse = if scale >= f32::MIN_POSITIVE {
        1.0 / scale
    } else {
        0.0
    };
    let inverse = _mm256_set1_ps(inverse);
    let [a, b, c, d] = x.map(|v| {
        let v = _mm256_mul_ps(v, inverse);
        // Where a value is not finite, so is the scale.
        let ordered = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_ORD_Q>(v, v));
        _mm256_and_si256(_mm256_cvtps_epi32(v), ordered)
    });
    // Packing works in halves of 128 bits, so fours of bytes come out in another order.
    let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let bytes = _mm256_permutevar8x32_epi32(bytes, order);
    // SAFETY: `q` is one vector.
    unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), bytes) };
    let halves = [total(_mm256_add_epi32(a, b)), total(_mm256_add_epi32(c, d))];
    ActivationUnit {
        scale,
        sum: scale * (halves[0] + halves[1]) as f32,
        halves,
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn largest(v: __m256i) -> u32 {
    let v = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
    let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
    _mm_cvtsi128_si32(v) as u32
}

#[inline]
#[target_feature(enable = "avx2")]
fn total(v: __m256i) -> i32 {
    let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
    _mm_cvtsi128_si32(v)
}
