//! Sixteen floats at a time, in three instruction sets, and the elements that they are read from.
//!
//! The kernel is written once, for any [`Lanes`]. With FMA every form rounds alike, so AVX2 and
//! AVX-512 give the same bits.

use half::f16;

use crate::kv::Stored;

/// Floats of a vector.
pub(super) const LANES: usize = 16;

/// Bytes of a vector, four for each lane.
pub(super) const BYTES: usize = 4 * LANES;

/// Sixteen floats. A processor's vectors are made only in functions that were compiled for it.
pub(crate) trait Lanes: Copy {
    /// Sixteen sums of products of bytes, of 32 bits.
    type Sums: Copy;
    /// Sixteen times four bytes.
    type Bytes: Copy;

    /// Vectors of results that a tile of `queries` queries keeps in registers for each of them.
    fn breadth(queries: usize) -> usize;
    /// The same float sixteen times.
    fn splat(x: f32) -> Self;
    /// Reads a vector.
    fn load(from: &[f32; LANES]) -> Self;
    /// Reads and widens a vector.
    fn widen(from: &[f16; LANES]) -> Self;
    /// Writes a vector.
    fn store(self, to: &mut [f32; LANES]);
    /// self + other.
    fn plus(self, other: Self) -> Self;
    /// self − other.
    fn minus(self, other: Self) -> Self;
    /// self · other.
    fn times(self, other: Self) -> Self;
    /// self / other.
    fn over(self, other: Self) -> Self;
    /// self · factor + sum, rounded once where there is FMA.
    fn multiply_add(self, factor: Self, sum: Self) -> Self;
    /// The larger one; `other` where either is NaN.
    fn larger(self, other: Self) -> Self;
    /// The smaller one; `other` where either is NaN.
    fn smaller(self, other: Self) -> Self;
    /// 2ⁿ where self is n + 1.5 · 2²³, for −126 ≤ n ≤ 127.
    fn power_of_two(self) -> Self;
    /// self · 2ⁿ where self and the product are normal, and `n` holds n + 1.5 · 2²³.
    fn raised_by(self, n: Self) -> Self;
    /// self, and zero where x < limit.
    fn zero_below(self, x: Self, limit: Self) -> Self;
    /// self in lanes from ≤ lane < to, −∞ in the others.
    fn within(self, from: usize, to: usize) -> Self;
    /// Starts to bring a cache line into the second cache.
    fn prefetch(at: *const u8);
    /// The largest lane; a lane that is NaN does not count.
    fn largest(self) -> f32;

    /// The same sum sixteen times.
    fn sums(x: i32) -> Self::Sums;
    /// Reads bytes.
    fn bytes(from: &[u8; BYTES]) -> Self::Bytes;
    /// The same four bytes sixteen times.
    fn four(bytes: u32) -> Self::Bytes;
    /// sum + the products of four unsigned bytes with four signed ones.
    fn dot(sum: Self::Sums, unsigned: Self::Bytes, signed: Self::Bytes) -> Self::Sums;
    /// 256 · sum.
    fn raised(sum: Self::Sums) -> Self::Sums;
    /// Sums as floats.
    fn floats(sums: Self::Sums) -> Self;
    /// The high and the low bytes of floats from 0 to 65,535, rounded to integers.
    fn limbs(floats: [Self; 4]) -> [[u8; BYTES]; 2];

    /// The sum of all lanes, in an order of its own.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = [0f32; LANES];
        self.store(&mut lanes);
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    }
}

/// What keys and values are stored as where each is a number by itself.
pub(crate) trait Element: Stored + Default {
    /// Rounds to the nearest.
    fn from_floats(from: &[f32], to: &mut [Self]);
    /// Reads sixteen.
    fn read<V: Lanes>(from: &[Self; LANES]) -> V;
}

impl Element for f32 {
    fn from_floats(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn read<V: Lanes>(from: &[f32; LANES]) -> V {
        V::load(from)
    }
}

impl Element for f16 {
    fn from_floats(from: &[f32], to: &mut [f16]) {
        use half::slice::HalfFloatSliceExt;
        to.convert_from_f32_slice(from);
    }

    #[inline(always)]
    fn read<V: Lanes>(from: &[f16; LANES]) -> V {
        V::widen(from)
    }
}

/// exp(x) with a relative error below 3e-7; zero below −87, and exp(88) above 88. A NaN stays one.
#[inline(always)]
#[allow(clippy::excessive_precision)] // the two parts of ln 2 are exact on purpose
pub(super) fn exp<V: Lanes>(x: V) -> V {
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let lowest = V::splat(-87.0);
    let clamped = V::splat(88.0).smaller(lowest.larger(x));
    let rounded = clamped.multiply_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
    let n = rounded.minus(V::splat(ROUND));
    let r = n.multiply_add(V::splat(-LN2_HIGH), clamped);
    let r = n.multiply_add(V::splat(-LN2_LOW), r);
    let mut p = V::splat(1.0 / 720.0);
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.multiply_add(r, V::splat(coefficient));
    }
    p.times(rounded.power_of_two()).zero_below(x, lowest)
}

/// cap · tanh(x / cap); NaN for an infinity, which comes from an overflow.
#[inline(always)]
pub(super) fn soft_cap<V: Lanes>(x: V, cap: f32) -> V {
    let grown = exp(x.times(V::splat(2.0 / cap))).plus(V::splat(1.0));
    let tanh = V::splat(1.0).minus(V::splat(2.0).over(grown));
    x.multiply_add(V::splat(0.0), tanh.times(V::splat(cap)))
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Plain {
    type Sums = [i32; LANES];
    type Bytes = [u8; BYTES];

    #[inline(always)]
    fn breadth(_: usize) -> usize {
        1
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }

    /// In integers and one product, which vectorises on any processor.
    #[inline(always)]
    fn widen(from: &[f16; LANES]) -> Self {
        const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
        Self(from.map(|h| {
            let bits = u32::from(h.to_bits());
            let magnitude = f32::from_bits((bits & 0x7fff) << 13) * REBIAS;
            let special = if bits & 0x7c00 == 0x7c00 {
                0xff << 23
            } else {
                0
            };
            f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
        }))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn over(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        let fused = cfg!(any(target_feature = "fma", target_arch = "aarch64"));
        Self(std::array::from_fn(|i| match fused {
            true => self.0[i].mul_add(factor.0[i], sum.0[i]),
            false => self.0[i] * factor.0[i] + sum.0[i],
        }))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(
            self.0
                .map(|x| f32::from_bits(x.to_bits().wrapping_add(127) << 23)),
        )
    }

    #[inline(always)]
    fn raised_by(self, n: Self) -> Self {
        let raised = |i: usize| self.0[i].to_bits().wrapping_add(n.0[i].to_bits() << 23);
        Self(std::array::from_fn(|i| f32::from_bits(raised(i))))
    }

    #[inline(always)]
    fn zero_below(self, x: Self, limit: Self) -> Self {
        let kept = |i: usize| if x.0[i] < limit.0[i] { 0.0 } else { self.0[i] };
        Self(std::array::from_fn(kept))
    }

    #[inline(always)]
    fn within(self, from: usize, to: usize) -> Self {
        let kept = |i: usize| {
            if (from..to).contains(&i) {
                self.0[i]
            } else {
                f32::NEG_INFINITY
            }
        };
        Self(std::array::from_fn(kept))
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {}

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0
            .iter()
            .fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
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
        std::array::from_fn(|i| bytes.to_le_bytes()[i % 4])
    }

    #[inline(always)]
    fn dot(sums: Self::Sums, unsigned: Self::Bytes, signed: Self::Bytes) -> Self::Sums {
        let product = |i: usize| i32::from(unsigned[i]) * i32::from(signed[i] as i8);
        std::array::from_fn(|lane| {
            let four = (0..4).map(|i| product(4 * lane + i));
            four.fold(sums[lane], i32::wrapping_add)
        })
    }

    #[inline(always)]
    fn raised(sums: Self::Sums) -> Self::Sums {
        sums.map(|sum| sum << 8)
    }

    #[inline(always)]
    fn floats(sums: Self::Sums) -> Self {
        Self(sums.map(|sum| sum as f32))
    }

    #[inline(always)]
    fn limbs(floats: [Self; 4]) -> [[u8; BYTES]; 2] {
        limbs(&floats.map(|vector| vector.0))
    }
}

/// See [`Lanes::limbs`].
#[inline(always)]
pub(super) fn limbs(floats: &[[f32; LANES]; 4]) -> [[u8; BYTES]; 2] {
    // Adding 2²³ rounds to the nearest integer, which the lowest bits hold then.
    const ROUND: f32 = 8_388_608.0;
    let mut limbs = [[0u8; BYTES]; 2];
    for (i, vector) in floats.iter().enumerate() {
        for (t, x) in vector.iter().enumerate() {
            let [low, high, ..] = (x + ROUND).to_bits().to_le_bytes();
            (limbs[0][i * LANES + t], limbs[1][i * LANES + t]) = (high, low);
        }
    }
    limbs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_to_what_it_is() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let (vectors, _) = all.as_chunks::<LANES>();
        for halves in vectors {
            for (wide, half) in Plain::widen(halves).0.iter().zip(halves) {
                let expected = half.to_f32();
                assert!(
                    *wide == expected || wide.is_nan() && expected.is_nan(),
                    "{half}"
                );
            }
        }
    }
}
