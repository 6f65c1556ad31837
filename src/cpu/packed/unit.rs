//! Blocks of a panel of integers: where factors, scales and integers of its sixteen rows lie.
//!
//! A block is one unit of 32 input elements, or eight that share factors. First come the factors, sixteen f16
//! for scales and sixteen for minima; then unit after unit: its scales and minima, f16 or, with factors, signed
//! bytes, and its integers. So a panel is read from front to back.
//!
//! A line of integers is 64 bytes: four input elements, a step, of each row. With eight bits, a unit is eight
//! lines. Below, four lines hold the low four bits of two steps each, and after them comes what is above: one
//! line for a fifth bit, two for a fifth and sixth. So a line in a register gives every step by a shift and a
//! mask.

use half::f16;
use realign_model::blocks::{BLOCK_UNITS, Format, UNIT, Unit};

use super::{PANEL, SCALE_BYTES};

/// Bytes of the factors of a block: a line. Its second half is of no use where there are no minima.
const FACTOR_BYTES: usize = 2 * SCALE_BYTES;

/// Sizes of the parts of a block, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockLayout {
    /// Units of the block.
    pub(crate) units: usize,
    /// Its factors, which come first.
    pub(crate) factors: usize,
    /// Scales and minima of a unit, which come before its integers.
    pub(crate) head: usize,
    /// A unit.
    pub(crate) unit: usize,
    /// The whole block.
    pub(crate) bytes: usize,
}

impl BlockLayout {
    /// Of panels in this format.
    pub(crate) const fn of(format: Format) -> Self {
        Self::new(format.bits, format.scales, format.minimum, format.factored)
    }

    /// Of panels in a format with these.
    pub(crate) const fn new(bits: usize, scales: usize, minimum: bool, factored: bool) -> Self {
        let (units, factors, scale) = match factored {
            true => (BLOCK_UNITS, FACTOR_BYTES, PANEL),
            false => (1, 0, SCALE_BYTES),
        };
        let head = scales * scale * if minimum { 2 } else { 1 };
        let unit = head + UNIT * PANEL * bits / 8;
        Self {
            units,
            factors,
            head,
            unit,
            bytes: factors + units * unit,
        }
    }

    /// Unit `index` of a panel.
    #[inline(always)]
    pub(crate) fn unit<'a>(&self, panel: &'a [u8], index: usize) -> UnitBytes<'a> {
        let block = &panel[index / self.units * self.bytes..][..self.bytes];
        let (factors, units) = block.split_at(self.factors);
        let (head, integers) =
            units[index % self.units * self.unit..][..self.unit].split_at(self.head);
        UnitBytes {
            factors,
            head,
            integers,
        }
    }
}

/// One unit of a panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnitBytes<'a> {
    /// Factors of its block, if the format has some.
    pub(crate) factors: &'a [u8],
    /// Scales, then minima.
    pub(crate) head: &'a [u8],
    /// Lines of integers.
    pub(crate) integers: &'a [u8],
}

impl UnitBytes<'_> {
    /// The scale of row `lane` for part `part` of the unit's elements.
    #[inline(always)]
    pub(crate) fn scale(&self, format: Format, part: usize, lane: usize) -> f32 {
        self.number(format, 0, part, lane)
    }

    /// What is added to them; the format has minima.
    #[inline(always)]
    pub(crate) fn minimum(&self, format: Format, part: usize, lane: usize) -> f32 {
        self.number(format, 1, part, lane)
    }

    #[inline(always)]
    fn number(&self, format: Format, which: usize, part: usize, lane: usize) -> f32 {
        let vector = which * format.scales + part;
        match format.factored {
            true => {
                let level = self.head[vector * PANEL + lane] as i8;
                half_at(self.factors, which * PANEL + lane) * f32::from(level)
            }
            false => half_at(self.head, vector * PANEL + lane),
        }
    }
}

/// Element `index` of some f16.
#[inline(always)]
fn half_at(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}

/// Where the bits of a step (four input elements) above the fourth lie: the line of 64 bytes after
/// the low bits, and their place in each of its bytes. A byte has one bit of eight steps, or two of four.
pub(crate) fn high_place(bits: usize, step: usize) -> (usize, usize) {
    let each = bits - 4;
    (step * each / 8, step * each % 8)
}

/// Lines of the low four bits of a unit's elements, in formats of fewer than eight.
const LOW_LINES: usize = 4;

/// Element `i` of row `lane` among a unit's integers. Four elements of a row lie side by side; below
/// eight bits, the low four of elements 16 to 31 are the high halves of those of 0 to 15.
pub(crate) fn element(bits: usize, integers: &[u8], lane: usize, i: usize) -> u8 {
    let (step, column) = (i / 4, lane * 4 + i % 4);
    if bits == 8 {
        return integers[step * 64 + column];
    }
    let low = (integers[step % 4 * 64 + column] >> (step / 4 * 4)) & 15;
    if bits == 4 {
        return low;
    }
    let (line, shift) = high_place(bits, step);
    let high = integers[(LOW_LINES + line) * 64 + column] >> shift;
    low | (high & ((1 << (bits - 4)) - 1)) << 4
}

/// Writes unit `index` of one row into its block: every byte that is this row's.
pub(super) fn write(
    format: Format,
    (unit, index): (&Unit, usize),
    gain: f32,
    lane: usize,
    block: &mut [u8],
) {
    let layout = BlockLayout::of(format);
    let (factors, units) = block.split_at_mut(layout.factors);
    let bytes = &mut units[index * layout.unit..][..layout.unit];
    let (head, integers) = bytes.split_at_mut(layout.head);
    if format.factored {
        put_half(factors, lane, unit.factors.common[0]);
        put_half(factors, PANEL + lane, unit.factors.common[1]);
    }
    for part in 0..format.scales {
        let mut put = |vector: usize, value: f32, level: i8| match format.factored {
            true => head[vector * PANEL + lane] = level as u8,
            false => put_half(head, vector * PANEL + lane, f16::from_f32(value / gain)),
        };
        put(part, unit.scales[part], unit.factors.scales[part]);
        if format.minimum {
            let level = unit.factors.minima[part];
            put(format.scales + part, unit.minima[part], level);
        }
    }
    write_integers(format.bits, &unit.q, lane, integers);
}

/// Writes f16 number `index` of some.
pub(super) fn put_half(bytes: &mut [u8], index: usize, value: f16) {
    bytes[2 * index..2 * index + 2].copy_from_slice(&value.to_le_bytes());
}

/// Low halves of four bytes.
const LOW: u32 = 0x0f0f_0f0f;

/// Writes a row's 32 elements, four of them at a time.
#[inline(always)]
fn write_integers(bits: usize, q: &[u8; UNIT], lane: usize, integers: &mut [u8]) {
    let steps: [u32; 8] =
        std::array::from_fn(|step| u32::from_le_bytes(std::array::from_fn(|i| q[4 * step + i])));
    let mut put = |line: usize, four: u32| {
        let at = line * 64 + lane * 4;
        integers[at..at + 4].copy_from_slice(&four.to_le_bytes());
    };
    if bits == 8 {
        return steps
            .into_iter()
            .enumerate()
            .for_each(|(i, four)| put(i, four));
    }
    for line in 0..LOW_LINES {
        put(line, (steps[line] & LOW) | (steps[line + 4] & LOW) << 4);
    }
    let above = |step: usize| ((steps[step] >> 4) & LOW) << high_place(bits, step).1;
    match bits {
        5 => put(LOW_LINES, (0..8).fold(0, |line, step| line | above(step))),
        6 => {
            put(LOW_LINES, (0..4).fold(0, |line, step| line | above(step)));
            put(
                LOW_LINES + 1,
                (4..8).fold(0, |line, step| line | above(step)),
            );
        }
        _ => {}
    }
}

/// Row `lane` of a unit as floats.
pub(super) fn read(format: Format, unit: UnitBytes, gain: f32, lane: usize, into: &mut [f32]) {
    for (i, value) in into.iter_mut().enumerate() {
        let part = i / 16 * (format.scales - 1);
        let q = i32::from(element(format.bits, unit.integers, lane, i)) - format.zero;
        let minimum = match format.minimum {
            true => unit.minimum(format, part, lane) * gain,
            false => 0.0,
        };
        *value = unit.scale(format, part, lane) * gain * q as f32 + minimum;
    }
}
