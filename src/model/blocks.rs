//! GGUF's quantised blocks in one common form.
//!
//! All of GGML's integer formats say w = scale · (q − zero) + minimum with small unsigned q, a
//! scale per 16 or 32 elements, and either a zero point or a minimum. Layouts: `ggml-common.h` of
//! GGML. In K-quants scales and minima are small integers, times f16 factors of 256 elements.

use candle_core::quantized::GgmlDType;
use half::f16;

/// Elements that one [`Unit`] holds.
pub const UNIT: usize = 32;

/// Units of a block of a K-quant, which share its factors.
pub const BLOCK_UNITS: usize = 8;

/// How a format's elements are represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits per packed element: 4, 5, 6 or 8.
    pub bits: usize,
    /// Scales per unit: 1, or 2 for formats with a scale for every 16 elements.
    pub scales: usize,
    /// Whether a minimum is added. Formats have a minimum or a zero point, never both.
    pub minimum: bool,
    /// What is subtracted from q.
    pub zero: i32,
    /// Whether scales and minima are integers, times factors that 256 elements share: K-quants.
    pub factored: bool,
}

impl Format {
    /// The form of a GGUF type; `None` for types that are not integers with scales.
    pub fn of(dtype: GgmlDType) -> Option<Self> {
        let form = |bits, scales, minimum, zero| {
            Some(Self {
                bits,
                scales,
                minimum,
                zero,
                factored: dtype.block_size() > UNIT,
            })
        };
        match dtype {
            GgmlDType::Q4_0 => form(4, 1, false, 8),
            GgmlDType::Q4_1 => form(4, 1, true, 0),
            GgmlDType::Q5_0 => form(5, 1, false, 16),
            GgmlDType::Q5_1 => form(5, 1, true, 0),
            GgmlDType::Q8_0 => form(8, 1, false, 128),
            GgmlDType::Q2K => form(4, 2, true, 0),
            GgmlDType::Q3K => form(4, 2, false, 4),
            GgmlDType::Q4K => form(4, 1, true, 0),
            GgmlDType::Q5K => form(5, 1, true, 0),
            GgmlDType::Q6K => form(6, 2, false, 32),
            _ => None,
        }
    }
}

/// 32 consecutive elements of a row of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// The unsigned values, before the zero point is subtracted.
    pub q: [u8; UNIT],
    /// Scales of the two halves, equal in formats with one scale.
    pub scales: [f32; 2],
    /// Minima of the two halves, zero in formats with a zero point.
    pub minima: [f32; 2],
    /// What scales and minima are products of, in formats that are [`Format::factored`].
    pub factors: Factors,
}

/// Scales and minima of a unit of a K-quant as its file has them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Factors {
    /// What scales and what minima are multiplied with.
    pub common: [f16; 2],
    /// Scales of the two halves.
    pub scales: [i8; 2],
    /// Minima of the two halves.
    pub minima: [i8; 2],
}

impl Factors {
    /// A unit with these factors.
    fn unit(self, q: [u8; UNIT]) -> Unit {
        let times = |factor: f16| move |level: i8| factor.to_f32() * f32::from(level);
        Unit {
            q,
            scales: self.scales.map(times(self.common[0])),
            minima: self.minima.map(times(self.common[1])),
            factors: self,
        }
    }
}

/// Reads unit `index` of a row of blocks of a type that [`Format::of`] knows.
pub fn read_unit(dtype: GgmlDType, row: &[u8], index: usize) -> Unit {
    let (elements, bytes) = (dtype.block_size(), dtype.type_size());
    let per_block = elements / UNIT;
    let block = &row[index / per_block * bytes..][..bytes];
    let sub = index % per_block;
    match dtype {
        GgmlDType::Q4_0 => simple(half(block, 0), 0.0, nibbles(&block[2..18])),
        GgmlDType::Q4_1 => simple(half(block, 0), half(block, 2), nibbles(&block[4..20])),
        GgmlDType::Q5_0 => simple(half(block, 0), 0.0, fives(&block[2..6], &block[6..22])),
        GgmlDType::Q5_1 => simple(
            half(block, 0),
            half(block, 2),
            fives(&block[4..8], &block[8..24]),
        ),
        GgmlDType::Q8_0 => simple(
            half(block, 0),
            0.0,
            std::array::from_fn(|i| block[2 + i].wrapping_add(128)),
        ),
        GgmlDType::Q2K => q2k(block, sub),
        GgmlDType::Q3K => q3k(block, sub),
        GgmlDType::Q4K => q4k(block, sub),
        GgmlDType::Q5K => q5k(block, sub),
        _ => q6k(block, sub),
    }
}

/// A bound on the scales and minima of a block, near the largest of them.
pub fn scale_bound(dtype: GgmlDType, block: &[u8]) -> f32 {
    let at = |at: usize| half(block, at).abs();
    match dtype {
        GgmlDType::Q4_1 | GgmlDType::Q5_1 => at(0).max(at(2)),
        GgmlDType::Q2K => 15.0 * at(80).max(at(82)),
        GgmlDType::Q3K => 32.0 * at(108),
        GgmlDType::Q4K | GgmlDType::Q5K => 63.0 * at(0).max(at(2)),
        GgmlDType::Q6K => 128.0 * at(208),
        _ => at(0),
    }
}

/// `N` bytes from `at` on: of a length that the compiler knows, loops over them become vector
/// instructions.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

fn half(bytes: &[u8], at: usize) -> f32 {
    factor(bytes, at).to_f32()
}

fn factor(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn simple(scale: f32, minimum: f32, q: [u8; UNIT]) -> Unit {
    Unit {
        q,
        scales: [scale; 2],
        minima: [minimum; 2],
        factors: Factors::default(),
    }
}

/// 16 bytes: low nibbles are elements 0–15, high ones 16–31.
fn nibbles(bytes: &[u8]) -> [u8; UNIT] {
    let bytes: [u8; 16] = part(bytes, 0);
    std::array::from_fn(|i| (bytes[i % 16] >> (4 * (i / 16))) & 15)
}

/// Nibbles with a fifth bit each from a 32-bit mask.
fn fives(high: &[u8], low: &[u8]) -> [u8; UNIT] {
    let low = nibbles(low);
    std::array::from_fn(|i| low[i] | ((high[i / 8] >> (i % 8)) & 1) << 4)
}

/// Scale and minimum of group `j` of eight, six bits each in twelve bytes.
pub fn six_bits(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        return (packed[j] & 63, packed[j + 4] & 63);
    }
    (
        (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4,
        (packed[j + 4] >> 4) | (packed[j] >> 6) << 4,
    )
}

/// 256 elements: 16 scale/minimum nibbles, 64 bytes of 2-bit values, two f16 factors.
fn q2k(block: &[u8], sub: usize) -> Unit {
    let quarter: [u8; UNIT] = part(block, 16 + sub / 4 * 32);
    let levels: [u8; 2] = part(block, 2 * sub);
    let factors = Factors {
        common: [factor(block, 80), -factor(block, 82)],
        scales: levels.map(|both| (both & 15) as i8),
        minima: levels.map(|both| (both >> 4) as i8),
    };
    factors.unit(std::array::from_fn(|i| (quarter[i] >> (2 * (sub % 4))) & 3))
}

/// 256 elements: 32 bytes of high bits, 64 of 2-bit values, 16 six-bit scales, one f16 factor.
fn q3k(block: &[u8], sub: usize) -> Unit {
    let (masks, packed) = (part::<UNIT>(block, 0), &block[96..108]);
    let low: [u8; UNIT] = part(block, 32 + sub / 4 * 32);
    let scale = |j: usize| {
        let four = if j < 8 {
            packed[j] & 15
        } else {
            packed[j - 8] >> 4
        };
        let two = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
        (four | two << 4) as i8 - 32
    };
    let factors = Factors {
        common: [factor(block, 108), f16::ZERO],
        scales: [scale(2 * sub), scale(2 * sub + 1)],
        minima: [0; 2],
    };
    factors.unit(std::array::from_fn(|i| {
        ((low[i] >> (2 * (sub % 4))) & 3) | ((masks[i] >> sub) & 1) << 2
    }))
}

/// The factors of a unit with one scale and one minimum of six bits.
fn six_bit_factors(block: &[u8], sub: usize) -> Factors {
    let (scale, minimum) = six_bits(&block[4..16], sub);
    Factors {
        common: [factor(block, 0), -factor(block, 2)],
        scales: [scale as i8; 2],
        minima: [minimum as i8; 2],
    }
}

/// 256 elements: two f16 factors, twelve bytes of scales and minima, 128 bytes of nibbles.
fn q4k(block: &[u8], sub: usize) -> Unit {
    let bytes: [u8; UNIT] = part(block, 16 + sub / 2 * 32);
    let q = std::array::from_fn(|i| (bytes[i] >> (4 * (sub % 2))) & 15);
    six_bit_factors(block, sub).unit(q)
}

/// As [`q4k`], with 32 bytes of fifth bits before the nibbles.
fn q5k(block: &[u8], sub: usize) -> Unit {
    let high: [u8; UNIT] = part(block, 16);
    let bytes: [u8; UNIT] = part(block, 48 + sub / 2 * 32);
    six_bit_factors(block, sub).unit(std::array::from_fn(|i| {
        ((bytes[i] >> (4 * (sub % 2))) & 15) | ((high[i] >> sub) & 1) << 4
    }))
}

/// 256 elements: 128 bytes of nibbles, 64 of 2-bit values, 16 signed scales, one f16 factor.
fn q6k(block: &[u8], sub: usize) -> Unit {
    let (chunk, quarter) = (sub / 4, sub % 4);
    let low: [u8; UNIT] = part(block, chunk * 64 + (quarter % 2) * 32);
    let high: [u8; UNIT] = part(block, 128 + chunk * 32);
    let factors = Factors {
        common: [factor(block, 208), f16::ZERO],
        scales: part::<2>(block, 192 + 2 * sub).map(|scale| scale as i8),
        minima: [0; 2],
    };
    factors.unit(std::array::from_fn(|i| {
        ((low[i] >> (4 * (quarter / 2))) & 15) | ((high[i] >> (2 * quarter)) & 3) << 4
    }))
}

/// A power of two that brings scales of up to `largest` to about 2¹⁴, or 1 where f16 holds them as
/// they are.
pub fn gain_for(largest: f32) -> f32 {
    let exponent = largest.log2().floor();
    match largest.is_normal() && !(-6.0..=14.0).contains(&exponent) {
        true => (exponent - 14.0).clamp(-120.0, 120.0).exp2(),
        false => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Result, Tensor};

    use super::*;

    #[test]
    fn every_format_reads_as_candle_dequantises_it() -> Result<()> {
        let dense = Tensor::randn(0f32, 1.0, (3, 512), &Device::Cpu)?;
        use GgmlDType::*;
        for dtype in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
            let weight = QTensor::quantize(&dense, dtype)?;
            let expected = weight.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
            let zero = Format::of(dtype).unwrap().zero as f32;
            let data = weight.data()?;
            for (row, expected) in data.chunks_exact(data.len() / 3).zip(&expected) {
                for (index, expected) in expected.chunks_exact(UNIT).enumerate() {
                    let unit = read_unit(dtype, row, index);
                    let per_block = dtype.block_size() / UNIT;
                    let block = &row[index / per_block * dtype.type_size()..];
                    let bound = scale_bound(dtype, block);
                    let all = unit.scales.into_iter().chain(unit.minima);
                    assert!(all.clone().all(|s| s.abs() <= bound * 1.0001), "{dtype:?}");
                    for (i, e) in expected.iter().enumerate() {
                        let w = unit.scales[i / 16] * (f32::from(unit.q[i]) - zero)
                            + unit.minima[i / 16];
                        assert!(
                            (w - e).abs() < 1e-5,
                            "{dtype:?}: element {i}: {w} is not {e}"
                        );
                    }
                }
            }
        }
        Ok(())
    }
}
