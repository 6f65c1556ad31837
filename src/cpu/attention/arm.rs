//! Sixteen floats in four registers of an ARM processor. NEON belongs to every 64-bit one.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::lanes::{BYTES, LANES, Lanes, Plain, limbs};
use crate::kernels::neon::widen;

/// Calls intrinsics.
macro_rules! call {
    ($($intrinsics:tt)*) => {
        // SAFETY: every 64-bit ARM processor has NEON; pointers come from references to arrays.
        unsafe { $($intrinsics)* }
    };
}

/// Four vectors of four.
#[derive(Clone, Copy)]
pub(super) struct Neon([float32x4_t; 4]);

impl Neon {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Neon {
    type Sums = [i32; LANES];
    type Bytes = [u8; BYTES];

    /// At most 24 of 32 registers hold results, four of them for a vector.
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
        call!(Self([vdupq_n_f32(x); 4]))
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        let at = from.as_ptr();
        call!(Self(std::array::from_fn(|i| vld1q_f32(at.add(4 * i)))))
    }

    #[inline(always)]
    fn widen(from: &[f16; LANES]) -> Self {
        let at = from.as_ptr().cast::<u16>();
        call!(Self(std::array::from_fn(|i| widen(vld1_u16(
            at.add(4 * i)
        )))))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        let at = to.as_mut_ptr();
        for (i, four) in self.0.into_iter().enumerate() {
            call!(vst1q_f32(at.add(4 * i), four));
        }
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| call!(vaddq_f32(a, b)))
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self.zip(other, |a, b| call!(vsubq_f32(a, b)))
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        self.zip(other, |a, b| call!(vmulq_f32(a, b)))
    }

    #[inline(always)]
    fn over(self, other: Self) -> Self {
        self.zip(other, |a, b| call!(vdivq_f32(a, b)))
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        call!(Self(std::array::from_fn(|i| vfmaq_f32(
            sum.0[i],
            self.0[i],
            factor.0[i]
        ))))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        self.zip(other, |a, b| call!(vbslq_f32(vcgtq_f32(a, b), a, b)))
    }

    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        self.zip(other, |a, b| call!(vbslq_f32(vcltq_f32(a, b), a, b)))
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        call!(
            let bias = vdupq_n_s32(127);
            Self(self.0.map(|x| {
                let n = vaddq_s32(vreinterpretq_s32_f32(x), bias);
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(n))
            }))
        )
    }

    #[inline(always)]
    fn raised_by(self, n: Self) -> Self {
        self.zip(n, |x, n| {
            call!(
                let n = vshlq_n_s32::<23>(vreinterpretq_s32_f32(n));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), n))
            )
        })
    }

    #[inline(always)]
    fn zero_below(self, x: Self, limit: Self) -> Self {
        call!(Self(std::array::from_fn(|i| {
            let below = vcltq_f32(x.0[i], limit.0[i]);
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(self.0[i]), below))
        })))
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
        // SAFETY: a prefetch changes no memory and faults nowhere.
        unsafe {
            asm!("prfm pldl2keep, [{0}]", in(reg) at, options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        call!(
            let lowest = vdupq_n_f32(f32::NEG_INFINITY);
            let most = self.0.into_iter().fold(lowest, |most, four| {
                vbslq_f32(vcgtq_f32(four, most), four, most)
            });
            vmaxvq_f32(most)
        )
    }

    #[inline(always)]
    fn sums(x: i32) -> Self::Sums {
        [x; LANES]
    }

    #[inline(always)]
    fn bytes(from: &[u8; BYTES]) -> Self::Bytes {
        *from
    }

    #[inline(always)]
    fn four(bytes: u32) -> Self::Bytes {
        Plain::four(bytes)
    }

    /// Left to the compiler: the instructions for dot products take no bytes of two kinds.
    #[inline(always)]
    fn dot(sum: Self::Sums, unsigned: Self::Bytes, signed: Self::Bytes) -> Self::Sums {
        Plain::dot(sum, unsigned, signed)
    }

    #[inline(always)]
    fn raised(sum: Self::Sums) -> Self::Sums {
        Plain::raised(sum)
    }

    #[inline(always)]
    fn floats(sums: Self::Sums) -> Self {
        Self::load(&sums.map(|sum| sum as f32))
    }

    #[inline(always)]
    fn limbs(floats: [Self; 4]) -> [[u8; BYTES]; 2] {
        let mut lanes = [[0f32; LANES]; 4];
        for (floats, lanes) in floats.into_iter().zip(&mut lanes) {
            floats.store(lanes);
        }
        limbs(&lanes)
    }
}
