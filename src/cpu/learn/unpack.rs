//! Packed weights back to floats, a panel of 32 output columns at a time: what the products of
//! learning multiply with. The weights themselves stay as they are.

use crate::packed::{BlockLayout, Encoding, PANEL, PackedWeight, UnitBytes, high_place};
use half::f16;
use realign_model::blocks::{Format, UNIT};

/// Output columns of a panel of floats: two 512-bit vectors.
pub(crate) const WIDTH: usize = 32;

/// Which way a weight (out, in) enters a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// x Wᵀ: the sum runs over the weight's columns.
    Forward,
    /// g W, the gradient of that product's input: the sum runs over the weight's rows.
    Backward,
}

impl Way {
    /// (length of the sum, output columns).
    pub(crate) fn extents(self, weight: &PackedWeight) -> (usize, usize) {
        match self {
            Way::Forward => (weight.columns, weight.out),
            Way::Backward => (weight.out, weight.columns),
        }
    }
}

/// Writes output columns `first .. first + 32`, over the sum's elements `from .. from + length`,
/// to `panel` (length, 32); columns that the weight has not are zero. `first` is a multiple of
/// 32, `from` of 32.
pub(crate) fn unpack(
    weight: &PackedWeight,
    way: Way,
    first: usize,
    from: usize,
    panel: &mut [[f32; WIDTH]],
) {
    match way {
        Way::Forward => forward(weight, first, from, panel),
        Way::Backward => backward(weight, first, from, panel),
    }
}

fn forward(weight: &PackedWeight, first: usize, from: usize, panel: &mut [[f32; WIDTH]]) {
    for half in 0..WIDTH / PANEL {
        let index = first / PANEL + half;
        if index >= weight.panels() {
            panel
                .iter_mut()
                .for_each(|row| row[half * PANEL..][..PANEL].fill(0.0));
            continue;
        }
        for (block, rows) in panel.chunks_mut(UNIT).enumerate() {
            let values = read(weight, index, from + block * UNIT, rows.len());
            for (row, values) in rows.iter_mut().zip(&values) {
                row[half * PANEL..][..PANEL].copy_from_slice(values);
            }
        }
    }
}

fn backward(weight: &PackedWeight, first: usize, from: usize, panel: &mut [[f32; WIDTH]]) {
    let width = WIDTH.min(weight.columns - first);
    for (block, rows) in panel.chunks_mut(PANEL).enumerate() {
        let values = read(weight, from / PANEL + block, first, width);
        for (lane, row) in rows.iter_mut().enumerate() {
            for (into, value) in row.iter_mut().zip(&values) {
                *into = value[lane];
            }
        }
    }
}

/// Columns `first .. first + count` (at most 32) of one panel, zero beyond them.
#[inline(always)]
fn read(weight: &PackedWeight, panel: usize, first: usize, count: usize) -> [[f32; PANEL]; UNIT] {
    let bytes = weight.panel(panel);
    match weight.encoding {
        Encoding::Integer(format) => {
            let unit = BlockLayout::of(format).unit(bytes, first / UNIT);
            integers(format, unit, weight.gain)
        }
        Encoding::F32 => floats(bytes, first, count, f32::from_le_bytes),
        Encoding::Bf16 => pairs(bytes, first, count),
        Encoding::F16 => floats(bytes, first, count, |b| {
            f16::from_le_bytes(b).to_f32() * weight.gain
        }),
    }
}

#[inline(always)]
fn floats<const N: usize>(
    bytes: &[u8],
    first: usize,
    count: usize,
    value: impl Fn([u8; N]) -> f32,
) -> [[f32; PANEL]; UNIT] {
    let mut values = [[0f32; PANEL]; UNIT];
    let source = bytes[first * PANEL * N..]
        .as_chunks::<N>()
        .0
        .as_chunks::<PANEL>()
        .0;
    for (into, from) in values.iter_mut().zip(&source[..count]) {
        *into = from.map(&value);
    }
    values
}

/// Columns of bfloat16, which lie in pairs; `first` is even.
#[inline(always)]
fn pairs(bytes: &[u8], first: usize, count: usize) -> [[f32; PANEL]; UNIT] {
    let mut values = [[0f32; PANEL]; UNIT];
    let source = bytes[first * PANEL * 2..]
        .as_chunks::<4>()
        .0
        .as_chunks::<PANEL>()
        .0;
    let (twos, _) = values.as_chunks_mut::<2>();
    for (two, from) in twos.iter_mut().zip(&source[..count.div_ceil(2)]) {
        let words = from.map(u32::from_le_bytes);
        *two = [
            words.map(|pair| f32::from_bits(pair << 16)),
            words.map(|pair| f32::from_bits(pair & 0xffff_0000)),
        ];
    }
    values
}

/// One unit: 32 columns of sixteen rows.
#[inline(always)]
fn integers(format: Format, unit: UnitBytes, gain: f32) -> [[f32; PANEL]; UNIT] {
    let words = unit.integers.as_chunks::<4>().0.as_chunks::<PANEL>().0;
    let mut values = [[0f32; PANEL]; UNIT];
    for part in 0..format.scales {
        let scale: [f32; PANEL] = std::array::from_fn(|lane| unit.scale(format, part, lane) * gain);
        let minimum = match format.minimum {
            true => std::array::from_fn(|lane| unit.minimum(format, part, lane) * gain),
            false => scale.map(|s| -s * format.zero as f32),
        };
        let columns = UNIT / format.scales;
        let rows = values.iter_mut().enumerate();
        for (i, into) in rows.skip(part * columns).take(columns) {
            let (step, byte) = (i / 4, i % 4);
            let (low, shift, mask) = match format.bits {
                8 => (&words[step], 8 * byte, 255),
                _ => (&words[step % 4], 8 * byte + step / 4 * 4, 15),
            };
            let mut q = low.map(|word| (u32::from_le_bytes(word) >> shift) & mask);
            if let bits @ (5 | 6) = format.bits {
                let (line, shift) = high_place(bits, step);
                let (above, shift) = (&words[4 + line], 8 * byte + shift);
                for (q, word) in q.iter_mut().zip(above) {
                    *q |= ((u32::from_le_bytes(*word) >> shift) & ((1 << (bits - 4)) - 1)) << 4;
                }
            }
            for lane in 0..PANEL {
                into[lane] = q[lane] as i32 as f32 * scale[lane] + minimum[lane];
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn panels_hold_the_weights_both_ways() -> candle_core::Result<()> {
        let dense = Tensor::randn(0f32, 1.0, (70, 96), &Device::Cpu)?;
        let odd = Tensor::randn(0f32, 1.0, (45, 51), &Device::Cpu)?;
        let mut weights = Vec::new();
        for dense in [&dense, &odd] {
            weights.push(PackedWeight::from_dense(dense)?);
            weights.push(PackedWeight::from_dense(&dense.to_dtype(DType::BF16)?)?);
            weights.push(PackedWeight::from_factor(dense, DType::F16)?);
        }
        for dtype in [
            GgmlDType::Q4_1,
            GgmlDType::Q8_0,
            GgmlDType::Q4_0,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
        ] {
            weights.push(PackedWeight::from_quantized(&QTensor::quantize(
                &dense, dtype,
            )?)?);
        }
        let dense = Tensor::randn(0f32, 1.0, (70, 256), &Device::Cpu)?;
        for dtype in [GgmlDType::Q5K, GgmlDType::Q6K] {
            let weight = QTensor::quantize(&dense, dtype)?;
            weights.push(PackedWeight::from_quantized(&weight)?);
        }
        for weight in weights {
            let exact = weight.dequantize()?.to_vec2::<f32>()?;
            for way in [Way::Forward, Way::Backward] {
                let (inner, out) = way.extents(&weight);
                for first in (0..out).step_by(WIDTH) {
                    let mut panel = vec![[9f32; WIDTH]; inner - 32];
                    unpack(&weight, way, first, 32, &mut panel);
                    for (i, row) in panel.iter().enumerate() {
                        for (c, got) in row.iter().enumerate().take(out - first) {
                            let expected = match way {
                                Way::Forward => exact[first + c][32 + i],
                                Way::Backward => exact[32 + i][first + c],
                            };
                            assert!(
                                (got - expected).abs() < 1e-5,
                                "{:?} {way:?}",
                                weight.encoding
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
