//! Packing from a mapped file, panel by panel: the bytes are those of [`PackedWeight::from_quantized`].
//!
//! For the common types of integers a panel is made block by block from its sixteen rows at once, a line
//! of the panel being four bytes of each row; the others take a unit after the other, as the slow path
//! does. Floats stay what they are.

use candle_core::quantized::GgmlDType;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use realign_model::blocks::{Format, UNIT, gain_for, read_unit, scale_bound, six_bits};
use realign_model::mapped::Blocks;

use super::{
    BF16_STEP, BlockLayout, Encoding, PANEL, PackedWeight, Panels, SCALE_BYTES, SLACK, dense, unit,
};
use crate::aligned::AlignedBytes;

/// Rows whose largest scale a task looks for.
const ROWS: usize = 16;

/// A matrix that is yet to be packed.
pub(crate) struct Unpacked<'a> {
    blocks: &'a Blocks,
    encoding: Encoding,
    gain: f32,
}

impl<'a> Unpacked<'a> {
    /// Looks for the gain; `None` if the blocks are of no type that is packed as it is.
    pub(crate) fn new(blocks: &'a Blocks) -> Option<Self> {
        let dtype = blocks.dtype();
        let encoding = match dtype {
            GgmlDType::F32 => Encoding::F32,
            GgmlDType::F16 => Encoding::F16,
            GgmlDType::BF16 => Encoding::Bf16,
            _ => Encoding::Integer(Format::of(dtype)?),
        };
        let gain = match encoding {
            Encoding::Integer(format) if !format.factored => {
                let row_bytes = blocks.bytes().len().checked_div(blocks.shape().0)?;
                let parts = blocks.bytes().par_chunks((ROWS * row_bytes).max(1));
                let largest = parts.map(|part| largest_scale(dtype, part));
                gain_for(largest.reduce(|| 0f32, f32::max))
            }
            _ => 1.0,
        };
        Some(Self {
            blocks,
            encoding,
            gain,
        })
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        self.blocks.shape()
    }

    pub(crate) fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub(crate) fn gain(&self) -> f32 {
        self.gain
    }

    pub(crate) fn panels(&self) -> usize {
        self.shape().0.div_ceil(PANEL)
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        self.encoding().panel_bytes(self.shape().1)
    }

    /// Writes as many panels as `into` holds, from panel `first` on, each byte of them.
    pub(crate) fn pack(&self, first: usize, into: &mut [u8]) {
        let panels = into.par_chunks_exact_mut(self.panel_bytes().max(1));
        panels.enumerate().for_each(|(index, bytes)| {
            let row = (first + index) * PANEL;
            let rows = row..self.shape().0.min(row + PANEL);
            let rows: Vec<&[u8]> = rows.map(|row| self.blocks.row(row)).collect();
            // Bytes of rows that are missing, or of a missing second column in bfloat16.
            if rows.len() < PANEL || !self.shape().1.is_multiple_of(BF16_STEP) {
                bytes.fill(0);
            }
            self.panel(&rows, bytes);
        });
    }

    fn panel(&self, rows: &[&[u8]], bytes: &mut [u8]) {
        match self.encoding {
            Encoding::Integer(format) => {
                panel(self.blocks.dtype(), format, rows, self.gain, bytes);
            }
            Encoding::F32 => floats::<4, 1>(rows, bytes),
            Encoding::F16 => floats::<2, 1>(rows, bytes),
            Encoding::Bf16 => floats::<2, BF16_STEP>(rows, bytes),
        }
    }

    /// The weight, in memory of its own.
    pub(crate) fn into_memory(self) -> PackedWeight {
        let (out, columns) = self.shape();
        let bytes = self.panels() * self.panel_bytes();
        let mut data = AlignedBytes::zeroed(bytes + SLACK);
        self.pack(0, &mut data[..bytes]);
        PackedWeight {
            out,
            columns,
            encoding: self.encoding(),
            gain: self.gain,
            data: std::sync::Arc::new(Panels::Own(data)),
        }
    }
}

/// Floats of `N` bytes, as the file has them.
fn floats<const N: usize, const STEP: usize>(rows: &[&[u8]], bytes: &mut [u8]) {
    let rows: Vec<&[[u8; N]]> = rows.iter().map(|row| row.as_chunks().0).collect();
    dense::panel::<_, N, STEP>(&rows, bytes, |value| value);
}

/// The largest [`scale_bound`] of whole blocks without common factors.
fn largest_scale(dtype: GgmlDType, blocks: &[u8]) -> f32 {
    let factors = |step: usize, at: [usize; 2]| largest_half(blocks, step, at);
    match dtype {
        GgmlDType::Q4_0 => factors(18, [0, 0]),
        GgmlDType::Q4_1 => factors(20, [0, 2]),
        GgmlDType::Q8_0 => factors(34, [0, 0]),
        _ => {
            let blocks = blocks.chunks_exact(dtype.type_size());
            let bounds = blocks.map(|block| scale_bound(dtype, block));
            bounds.fold(0f32, f32::max)
        }
    }
}

/// The largest absolute value of two f16 in each `step` bytes. The bits of those that are numbers are
/// in the order of their values; what is no number does not count.
fn largest_half(blocks: &[u8], step: usize, at: [usize; 2]) -> f32 {
    let bits = |block: &[u8], at: usize| {
        let bits = u16::from_le_bytes([block[at], block[at + 1]]) & 0x7fff;
        if bits > 0x7c00 { 0 } else { bits }
    };
    let blocks = blocks.chunks_exact(step);
    let both = blocks.map(|block| bits(block, at[0]).max(bits(block, at[1])));
    f16::from_bits(both.max().unwrap_or(0)).to_f32()
}

fn panel(dtype: GgmlDType, format: Format, rows: &[&[u8]], gain: f32, bytes: &mut [u8]) {
    match dtype {
        GgmlDType::Q4_0 => singles::<18, 256>(rows, gain, bytes, [Some(0), None], |q| q),
        GgmlDType::Q4_1 => singles::<20, 256>(rows, gain, bytes, [Some(0), Some(2)], |q| q),
        GgmlDType::Q8_0 => {
            singles::<34, 512>(rows, gain, bytes, [Some(0), None], |q| q ^ 0x8080_8080)
        }
        GgmlDType::Q4K => q4k(rows, format, bytes),
        _ => units(dtype, format, rows, gain, bytes),
    }
}

/// Any type, a unit of a row after the other.
fn units(dtype: GgmlDType, format: Format, rows: &[&[u8]], gain: f32, bytes: &mut [u8]) {
    let layout = BlockLayout::of(format);
    for (first, block) in bytes.chunks_exact_mut(layout.bytes).enumerate() {
        for (lane, row) in rows.iter().enumerate() {
            for index in 0..layout.units {
                let unit = read_unit(dtype, row, first * layout.units + index);
                unit::write(format, (&unit, index), gain, lane, block);
            }
        }
    }
}

/// One number for each row of a panel.
type Lanes = [f32; PANEL];

/// Stores scales or minima as f16.
fn put(values: &Lanes, bytes: &mut [u8]) {
    let mut halves = [f16::ZERO; PANEL];
    halves.convert_from_f32_slice(values);
    for (half, bytes) in halves.iter().zip(bytes.as_chunks_mut::<2>().0) {
        *bytes = half.to_le_bytes();
    }
}

fn half_at(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// Types whose blocks of `BYTES` are a unit: f16 at these places, then integers that lie in the file as
/// in a panel, `INTEGERS` bytes for sixteen rows.
#[inline(always)]
fn singles<const BYTES: usize, const INTEGERS: usize>(
    rows: &[&[u8]],
    gain: f32,
    bytes: &mut [u8],
    places: [Option<usize>; 2],
    four: impl Fn(u32) -> u32,
) {
    // A power of two: multiplying by its inverse is dividing.
    let inverse = 1.0 / gain;
    let vectors = places.iter().flatten().count();
    let unit = vectors * SCALE_BYTES + INTEGERS;
    for (index, unit) in bytes.chunks_exact_mut(unit).enumerate() {
        let (header, integers) = unit.split_at_mut(vectors * SCALE_BYTES);
        for (place, into) in places
            .iter()
            .flatten()
            .zip(header.chunks_exact_mut(SCALE_BYTES))
        {
            let mut scales = Lanes::default();
            for (scale, row) in scales.iter_mut().zip(rows) {
                *scale = half_at(&row[index * BYTES..], *place).to_f32() * inverse;
            }
            put(&scales, into);
        }
        let (lines, _) = integers.as_chunks_mut::<{ 4 * PANEL }>();
        for (lane, row) in rows.iter().enumerate() {
            let block = &row[index * BYTES..][..BYTES];
            let (fours, _) = block[2 * vectors..].as_chunks::<4>();
            for (line, value) in lines.iter_mut().zip(fours) {
                let value = four(u32::from_le_bytes(*value));
                line[4 * lane..4 * lane + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// Bytes of a block of Q4_K.
const Q4K_BYTES: usize = 144;

/// Low halves of eight bytes.
const LOW: u64 = 0x0f0f_0f0f_0f0f_0f0f;

fn q4k(rows: &[&[u8]], format: Format, bytes: &mut [u8]) {
    let layout = BlockLayout::of(format);
    for (index, block) in bytes.chunks_exact_mut(layout.bytes).enumerate() {
        let (factors, units) = block.split_at_mut(layout.factors);
        for (lane, row) in rows.iter().enumerate() {
            let block = &row[index * Q4K_BYTES..][..Q4K_BYTES];
            unit::put_half(factors, lane, half_at(block, 0));
            unit::put_half(factors, PANEL + lane, -half_at(block, 2));
            let (pairs, _) = block[16..].as_chunks::<{ UNIT }>();
            let both = units.chunks_exact_mut(2 * layout.unit);
            for (index, (pair, both)) in pairs.iter().zip(both).enumerate() {
                let (even, odd) = both.split_at_mut(layout.unit);
                let [even, odd] = [(even, 0), (odd, 1)].map(|(unit, odd)| {
                    let (head, integers) = unit.split_at_mut(layout.head);
                    let (scale, minimum) = six_bits(&block[4..16], 2 * index + odd);
                    (head[lane], head[PANEL + lane]) = (scale, minimum);
                    integers
                });
                halves(pair, lane, even, odd);
            }
        }
    }
}

/// 32 bytes whose low halves are one unit and whose high halves the next, as two units' integers.
#[inline(always)]
fn halves(pair: &[u8; UNIT], lane: usize, even: &mut [u8], odd: &mut [u8]) {
    let (words, _) = pair.as_chunks::<8>();
    let (even, _) = even.as_chunks_mut::<{ 4 * PANEL }>();
    let (odd, _) = odd.as_chunks_mut::<{ 4 * PANEL }>();
    for eight in 0..2 {
        // Elements 0 to 15 go to the low halves, 16 to 31 to the high ones.
        let (first, last) = (
            u64::from_le_bytes(words[eight]),
            u64::from_le_bytes(words[eight + 2]),
        );
        let low = (first & LOW) | (last & LOW) << 4;
        let high = (first >> 4 & LOW) | (last & !LOW);
        for (lines, value) in [(&mut *even, low), (&mut *odd, high)] {
            let value = value.to_le_bytes();
            lines[2 * eight][4 * lane..4 * lane + 4].copy_from_slice(&value[..4]);
            lines[2 * eight + 1][4 * lane..4 * lane + 4].copy_from_slice(&value[4..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType::*, QStorage, QTensor};
    use candle_core::{Device, Tensor};
    use realign_model::mapped::blocks_of;

    use super::*;

    /// Every bit pattern may be in a file: factors that are infinite or no numbers among them.
    #[test]
    fn panels_from_a_map_have_the_bytes_of_those_from_memory() {
        let mut state = 7u64;
        let mut byte = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        for dtype in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
            for (rows, small) in [(16, true), (37, true), (37, false), (5, false)] {
                let size = rows * 512 / dtype.block_size() * dtype.type_size();
                let mut data: Vec<u8> = (0..size).map(|_| byte()).collect();
                // Factors near 2⁻¹⁰, which want a gain.
                if small {
                    for block in data.chunks_exact_mut(dtype.type_size()) {
                        for at in [[0, 2], [80, 82], [108, 108], [208, 208]].concat() {
                            let wanted = match dtype {
                                Q2K => at == 80 || at == 82,
                                Q3K => at == 108,
                                Q6K => at == 208,
                                Q4_0 | Q5_0 | Q8_0 => at == 0,
                                _ => at == 0 || at == 2,
                            };
                            if wanted {
                                block[at + 1] = 0x14 | (block[at + 1] & 0x83);
                            }
                        }
                    }
                }
                let storage = QStorage::from_data(data.into(), &Device::Cpu, dtype).unwrap();
                let tensor = QTensor::new(storage, (rows, 512)).unwrap();
                let slow = PackedWeight::from_quantized(&tensor).unwrap();
                let blocks = blocks_of(&tensor, &mut tempfile::tempfile().unwrap());
                // A buffer that was used before holds anything.
                let unpacked = Unpacked::new(&blocks).unwrap();
                let mut used = vec![0xa5; unpacked.panels() * unpacked.panel_bytes()];
                unpacked.pack(0, &mut used);
                assert!(slow.raw()[..used.len()] == used, "{dtype:?}, {rows} rows");
                let fast = unpacked.into_memory();
                assert_eq!(slow.gain, fast.gain, "{dtype:?}, {rows} rows");
                assert!(slow.raw() == fast.raw(), "{dtype:?}, {rows} rows");
                assert_eq!(slow.encoding, fast.encoding);
            }
        }
    }

    #[test]
    fn floats_from_a_map_have_the_bytes_of_those_from_memory() {
        for (dtype, encoding) in [
            (F32, Encoding::F32),
            (F16, Encoding::F16),
            (BF16, Encoding::Bf16),
        ] {
            for (rows, columns) in [(16, 64), (37, 64), (5, 33), (48, 33)] {
                let values = Tensor::rand(-1f32, 1f32, (rows, columns), &Device::Cpu).unwrap();
                let tensor = QTensor::quantize(&values, dtype).unwrap();
                let blocks = blocks_of(&tensor, &mut tempfile::tempfile().unwrap());
                let unpacked = Unpacked::new(&blocks).unwrap();
                let mut used = vec![0xa5; unpacked.panels() * unpacked.panel_bytes()];
                unpacked.pack(0, &mut used);
                let slow = PackedWeight::from_quantized(&tensor).unwrap();
                assert_eq!(unpacked.encoding(), encoding);
                assert_eq!(slow.encoding, encoding);
                assert!(slow.raw()[..used.len()] == used, "{dtype:?}, {rows} rows");
                assert!(slow.raw() == unpacked.into_memory().raw(), "{dtype:?}");
            }
        }
    }
}
