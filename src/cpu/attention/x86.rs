//! Sixteen floats in registers of an x86 processor.
//!
//! Methods are always inlined into functions that were compiled for the features, and intrinsics
//! only then; no closure may stand between them.

use std::arch::x86_64::*;

use half::f16;

use super::lanes::{BYTES, LANES, Lanes, limbs};

/// Calls intrinsics.
macro_rules! call {
    ($($intrinsics:tt)*) => {
        // SAFETY: only functions that were compiled for the features make vectors of these types,
        // and they are called after detection; pointers come from references to arrays, except
        // those of prefetches, which access nothing.
        unsafe { $($intrinsics)* }
    };
}

mod wide;

pub(super) use self::wide::Avx512;

/// Two vectors of eight: AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

/// Two vectors of 32 bytes.
#[derive(Clone, Copy)]
pub(super) struct Halves(__m256i, __m256i);

impl Lanes for Avx2 {
    type Sums = (__m256i, __m256i);
    type Bytes = Halves;

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
    fn raised_by(self, n: Self) -> Self {
        call!(
            let a = _mm256_slli_epi32::<23>(_mm256_castps_si256(n.0));
            let b = _mm256_slli_epi32::<23>(_mm256_castps_si256(n.1));
            Self(
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), a)),
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.1), b)),
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
        call!(_mm_prefetch::<_MM_HINT_T1>(at.cast()));
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

    #[inline(always)]
    fn sums(x: i32) -> Self::Sums {
        let half = call!(_mm256_set1_epi32(x));
        (half, half)
    }

    #[inline(always)]
    fn bytes(from: &[u8; BYTES]) -> Self::Bytes {
        let at = from.as_ptr().cast::<__m256i>();
        call!(Halves(
            _mm256_loadu_si256(at),
            _mm256_loadu_si256(at.add(1))
        ))
    }

    #[inline(always)]
    fn four(bytes: u32) -> Self::Bytes {
        let half = call!(_mm256_set1_epi32(bytes as i32));
        Halves(half, half)
    }

    /// In integers of 16 bits: the instruction for bytes saturates.
    #[inline(always)]
    fn dot(sum: Self::Sums, unsigned: Self::Bytes, signed: Self::Bytes) -> Self::Sums {
        (
            dot_of_half(sum.0, unsigned.0, signed.0),
            dot_of_half(sum.1, unsigned.1, signed.1),
        )
    }

    #[inline(always)]
    fn raised(sum: Self::Sums) -> Self::Sums {
        call!((_mm256_slli_epi32::<8>(sum.0), _mm256_slli_epi32::<8>(sum.1)))
    }

    #[inline(always)]
    fn floats(sums: Self::Sums) -> Self {
        call!(Self(_mm256_cvtepi32_ps(sums.0), _mm256_cvtepi32_ps(sums.1)))
    }

    #[inline(always)]
    fn limbs(floats: [Self; 4]) -> [[u8; BYTES]; 2] {
        let mut lanes = [[0f32; LANES]; 4];
        for i in 0..4 {
            floats[i].store(&mut lanes[i]);
        }
        limbs(&lanes)
    }
}

/// Four products of bytes for each of eight sums.
#[inline(always)]
fn dot_of_half(sum: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    call!(
        let even = _mm256_and_si256(unsigned, _mm256_set1_epi16(255));
        let odd = _mm256_srli_epi16::<8>(unsigned);
        let signed_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(signed));
        let signed_odd = _mm256_srai_epi16::<8>(signed);
        let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, signed_even));
        _mm256_add_epi32(sum, _mm256_madd_epi16(odd, signed_odd))
    )
}
