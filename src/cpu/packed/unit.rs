//! One unit of a panel: where the integers of 32 input elements and sixteen rows lie.
//!
//! A line is 64 bytes: four input elements, a step, of each row. With eight bits, a unit is eight lines.
//! Below, four lines hold the low four bits of two steps each, and after them comes what is above: one line for
//! a fifth bit, two for a fifth and sixth. So a line in a register gives every step by a shift and a mask.

use half::f16;
use realign_model::blocks::{Format, UNIT, Unit};

use super::{PANEL, SCALE_BYTES, header_bytes};

/// Bytes of the low four bits of a unit's elements, in formats of fewer than eight.
const LOW_BYTES: usize = UNIT * PANEL / 2;

/// Where the bits of a step (four input elements) above the fourth lie: the line of 64 bytes after
/// the low bits, and their place in each of its bytes. A byte has one bit of eight steps, or two of four.
pub(crate) fn high_place(bits: usize, step: usize) -> (usize, usize) {
    let each = bits - 4;
    (step * each / 8, step * each % 8)
}

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
    let high = integers[LOW_BYTES + line * 64 + column] >> shift;
    low | (high & ((1 << (bits - 4)) - 1)) << 4
}

/// Writes a unit of one row; its integers are zero before.
pub(super) fn write(format: Format, unit: &Unit, gain: f32, lane: usize, bytes: &mut [u8]) {
    let mut put = |vector: usize, value: f32| {
        let at = vector * SCALE_BYTES + 2 * lane;
        bytes[at..at + 2].copy_from_slice(&f16::from_f32(value / gain).to_le_bytes());
    };
    for half in 0..format.scales {
        put(half, unit.scales[half]);
        if format.minimum {
            put(format.scales + half, unit.minima[half]);
        }
    }
    let integers = &mut bytes[header_bytes(format)..];
    let (fours, _) = unit.q.as_chunks::<4>();
    let mut add = |line: usize, four: u32| {
        let at = line * 64 + lane * 4;
        for (byte, part) in integers[at..at + 4].iter_mut().zip(four.to_le_bytes()) {
            *byte |= part;
        }
    };
    for (step, four) in fours.iter().enumerate() {
        let four = u32::from_le_bytes(*four);
        if format.bits == 8 {
            add(step, four);
            continue;
        }
        add(step % 4, (four & 0x0f0f_0f0f) << (step / 4 * 4));
        if format.bits > 4 {
            let (line, shift) = high_place(format.bits, step);
            add(LOW_BYTES / 64 + line, ((four >> 4) & 0x0f0f_0f0f) << shift);
        }
    }
}

/// Row `lane` of a unit as floats.
pub(super) fn read(format: Format, bytes: &[u8], gain: f32, lane: usize, into: &mut [f32]) {
    let get = |vector: usize| {
        let at = vector * SCALE_BYTES + 2 * lane;
        f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32() * gain
    };
    let integers = &bytes[header_bytes(format)..];
    for (i, value) in into.iter_mut().enumerate() {
        let half = i / 16 * (format.scales - 1);
        let q = i32::from(element(format.bits, integers, lane, i)) - format.zero;
        let minimum = if format.minimum {
            get(format.scales + half)
        } else {
            0.0
        };
        *value = get(half) * q as f32 + minimum;
    }
}
