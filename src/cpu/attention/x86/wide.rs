//! A register of sixteen floats.

use std::arch::x86_64::*;

use half::f16;

use super::super::lanes::{BYTES, LANES, Lanes};

/// One vector of sixteen: AVX-512 F, BW, VL and VNNI.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Avx512(__m512);

impl Lanes for Avx512 {
    type Sums = __m512i;
    type Bytes = __m512i;

    /// At most 24 of 32 registers hold results.
    #[inline(always)]
    fn breadth(_: usize) -> usize {
        4
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        call!(Self(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        call!(Self(_mm512_loadu_ps(from.as_ptr())))
    }

    #[inline(always)]
    fn widen(from: &[f16; LANES]) -> Self {
        call!(Self(_mm512_cvtph_ps(_mm256_loadu_si256(
            from.as_ptr().cast()
        ))))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        call!(_mm512_storeu_ps(to.as_mut_ptr(), self.0));
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        call!(Self(_mm512_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        call!(Self(_mm512_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        call!(Self(_mm512_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn over(self, other: Self) -> Self {
        call!(Self(_mm512_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        call!(Self(_mm512_fmadd_ps(self.0, factor.0, sum.0)))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        call!(Self(_mm512_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        call!(Self(_mm512_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        call!(
            let n = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(n)))
        )
    }

    #[inline(always)]
    fn raised_by(self, n: Self) -> Self {
        call!(
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), n)))
        )
    }

    #[inline(always)]
    fn zero_below(self, x: Self, limit: Self) -> Self {
        call!(
            let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, limit.0);
            Self(_mm512_maskz_mov_ps(kept, self.0))
        )
    }

    #[inline(always)]
    fn within(self, from: usize, to: usize) -> Self {
        let below = |lane: usize| (1u32 << lane.min(LANES)) - 1;
        let kept = (below(to) & !below(from)) as u16;
        call!(
            let none = _mm512_set1_ps(f32::NEG_INFINITY);
            Self(_mm512_mask_mov_ps(none, kept, self.0))
        )
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        call!(_mm_prefetch::<_MM_HINT_T1>(at.cast()));
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        call!(
            let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
            _mm512_reduce_max_ps(_mm512_max_ps(self.0, lowest))
        )
    }

    #[inline(always)]
    fn sums(x: i32) -> Self::Sums {
        call!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    fn bytes(from: &[u8; BYTES]) -> Self::Bytes {
        call!(_mm512_loadu_si512(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn four(bytes: u32) -> Self::Bytes {
        call!(_mm512_set1_epi32(bytes as i32))
    }

    #[inline(always)]
    fn dot(sum: Self::Sums, unsigned: Self::Bytes, signed: Self::Bytes) -> Self::Sums {
        call!(_mm512_dpbusd_epi32(sum, unsigned, signed))
    }

    #[inline(always)]
    fn raised(sum: Self::Sums) -> Self::Sums {
        call!(_mm512_slli_epi32::<8>(sum))
    }

    #[inline(always)]
    fn floats(sums: Self::Sums) -> Self {
        call!(Self(_mm512_cvtepi32_ps(sums)))
    }

    /// Packing works within quarters of a vector, and leaves fours of the four vectors in turn.
    #[inline(always)]
    fn limbs(floats: [Self; 4]) -> [[u8; BYTES]; 2] {
        let [a, b, c, d] = floats;
        let mut limbs = [[0u8; BYTES]; 2];
        call!(
            let ab = _mm512_packus_epi32(_mm512_cvtps_epi32(a.0), _mm512_cvtps_epi32(b.0));
            let cd = _mm512_packus_epi32(_mm512_cvtps_epi32(c.0), _mm512_cvtps_epi32(d.0));
            let byte = _mm512_set1_epi16(255);
            let (low_ab, low_cd) = (_mm512_and_si512(ab, byte), _mm512_and_si512(cd, byte));
            let (high_ab, high_cd) = (_mm512_srli_epi16::<8>(ab), _mm512_srli_epi16::<8>(cd));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let high = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(high_ab, high_cd));
            let low = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low_ab, low_cd));
            _mm512_storeu_si512(limbs[0].as_mut_ptr().cast(), high);
            _mm512_storeu_si512(limbs[1].as_mut_ptr().cast(), low);
        );
        limbs
    }
}
