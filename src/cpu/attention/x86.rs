//! Sixteen floats in registers of an x86 processor.
//!
//! Methods are always inlined into functions that were compiled for the features, and intrinsics
//! only then; no closure may stand between them.

use std::arch::x86_64::*;

use half::f16;

use super::lanes::{LANES, Lanes};

/// Calls intrinsics.
macro_rules! call {
    ($($intrinsics:tt)*) => {
        // SAFETY: only functions that were compiled for the features make vectors of these types,
        // and they are called after detection; pointers come from references to arrays, except
        // those of prefetches, which access nothing.
        unsafe { $($intrinsics)* }
    };
}

/// Two vectors of eight: AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

impl Lanes for Avx2 {
    /// Twelve of sixteen registers hold results, two of them for a vector.
    #[inline(always)]
    fn breadth(queries: usize) -> usize {
        match queries {
            1 => 4,
            2 | 3 => 2,
            _ => 1,
        }
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        let half = call!(_mm256_set1_ps(x));
        Self(half, half)
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        let at = from.as_ptr();
        call!(Self(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))))
    }

    #[inline(always)]
    fn widen(from: &[f16; LANES]) -> Self {
        let at = from.as_ptr().cast::<__m128i>();
        call!(Self(
            _mm256_cvtph_ps(_mm_loadu_si128(at)),
            _mm256_cvtph_ps(_mm_loadu_si128(at.add(1)))
        ))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        let at = to.as_mut_ptr();
        call!(
            _mm256_storeu_ps(at, self.0);
            _mm256_storeu_ps(at.add(8), self.1);
        );
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        call!(Self(
            _mm256_add_ps(self.0, other.0),
            _mm256_add_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        call!(Self(
            _mm256_sub_ps(self.0, other.0),
            _mm256_sub_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        call!(Self(
            _mm256_mul_ps(self.0, other.0),
            _mm256_mul_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn over(self, other: Self) -> Self {
        call!(Self(
            _mm256_div_ps(self.0, other.0),
            _mm256_div_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        call!(Self(
            _mm256_fmadd_ps(self.0, factor.0, sum.0),
            _mm256_fmadd_ps(self.1, factor.1, sum.1)
        ))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        call!(Self(
            _mm256_max_ps(self.0, other.0),
            _mm256_max_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        call!(Self(
            _mm256_min_ps(self.0, other.0),
            _mm256_min_ps(self.1, other.1)
        ))
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        call!(
            let bias = _mm256_set1_epi32(127);
            let a = _mm256_add_epi32(_mm256_castps_si256(self.0), bias);
            let b = _mm256_add_epi32(_mm256_castps_si256(self.1), bias);
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(b)),
            )
        )
    }

    #[inline(always)]
    fn zero_below(self, x: Self, limit: Self) -> Self {
        call!(Self(
            _mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_NLT_UQ>(x.0, limit.0)),
            _mm256_and_ps(self.1, _mm256_cmp_ps::<_CMP_NLT_UQ>(x.1, limit.1))
        ))
    }

    #[inline(always)]
    fn within(self, from: usize, to: usize) -> Self {
        let mut lanes = [0f32; LANES];
        self.store(&mut lanes);
        lanes[..from.min(LANES)].fill(f32::NEG_INFINITY);
        lanes[to.min(LANES)..].fill(f32::NEG_INFINITY);
        Self::load(&lanes)
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        call!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        call!(
            let lowest = _mm256_set1_ps(f32::NEG_INFINITY);
            let eight = _mm256_max_ps(self.1, _mm256_max_ps(self.0, lowest));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        )
    }
}

/// One vector of sixteen: AVX-512 F, BW and VL.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

impl Lanes for Avx512 {
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
        call!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        call!(
            let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
            _mm512_reduce_max_ps(_mm512_max_ps(self.0, lowest))
        )
    }
}
