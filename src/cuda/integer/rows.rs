//! One row of an integer matrix, written and read on the host.

use candle_core::quantized::GgmlDType;
use half::f16;

use super::{Bits, Layout};
use realign_model::blocks::{UNIT, Unit, gain_for, read_unit, scale_bound};

/// Lays a row of a file's blocks out.
pub(crate) fn pack(
    layout: &Layout,
    (dtype, row): (GgmlDType, &[u8]),
    columns: usize,
    into: &mut [u8],
) {
    let [high, scales, factor, _] = layout.offsets(columns);
    let blocks = row.chunks_exact(dtype.type_size());
    let gain = gain_for(blocks.fold(0f32, |m, block| m.max(scale_bound(dtype, block))));
    for index in 0..columns / UNIT {
        let unit = read_unit(dtype, row, index);
        let low = UNIT / 8 * layout.bits.low();
        write_low(layout.bits, &unit, &mut into[index * low..][..low]);
        let above = UNIT / 8 * layout.bits.high();
        write_high(
            layout.bits,
            &unit,
            &mut into[high + index * above..][..above],
        );
        write_scales(layout, &unit, gain, &mut into[scales..factor], index);
    }
    into[factor..factor + 4].copy_from_slice(&gain.to_le_bytes());
}

fn write_low(bits: Bits, unit: &Unit, into: &mut [u8]) {
    match bits {
        Bits::Eight => into.copy_from_slice(&unit.q),
        Bits::Four | Bits::Five | Bits::Six => {
            let (pairs, _) = unit.q.as_chunks::<2>();
            for (byte, [a, b]) in into.iter_mut().zip(pairs) {
                *byte = (a & 15) | (b & 15) << 4;
            }
        }
    }
}

/// What lies above four bits: of eight elements in a byte, or of four.
fn write_high(bits: Bits, unit: &Unit, into: &mut [u8]) {
    let each = bits.high();
    for (i, q) in unit.q.iter().enumerate().filter(|_| each > 0) {
        let at = i * each;
        into[at / 8] |= (q >> 4) << (at % 8);
    }
}

fn write_scales(layout: &Layout, unit: &Unit, gain: f32, into: &mut [u8], index: usize) {
    let (groups, vectors) = (UNIT / layout.group, 1 + usize::from(layout.minimum));
    for half in 0..groups {
        let both = [unit.scales[half], unit.minima[half]];
        for (which, value) in both.iter().take(vectors).enumerate() {
            let at = 2 * ((index * groups + half) * vectors + which);
            let bytes = f16::from_f32(value / gain).to_le_bytes();
            into[at..at + 2].copy_from_slice(&bytes);
        }
    }
}

/// The floats of a row: the slow twin of the kernels' `unpack8`.
pub(super) fn unpack(layout: &Layout, row: &[u8], into: &mut [f32]) {
    let [high, scales, factor, _] = layout.offsets(into.len());
    let float = |at: usize| f16::from_le_bytes([row[at], row[at + 1]]).to_f32();
    let gain = [0, 1, 2, 3].map(|i| row[factor + i]);
    let gain = f32::from_le_bytes(gain);
    for (i, value) in into.iter_mut().enumerate() {
        let low = match layout.bits {
            Bits::Eight => row[i],
            Bits::Four | Bits::Five | Bits::Six => (row[i / 2] >> (i % 2 * 4)) & 15,
        };
        let each = layout.bits.high();
        let above = match each {
            0 => 0,
            _ => (row[high + i * each / 8] >> (i * each % 8)) & ((1 << each) - 1),
        };
        let q = i32::from(low | above << 4) - layout.zero;
        let vectors = 1 + usize::from(layout.minimum);
        let at = scales + i / layout.group * vectors * 2;
        let minimum = if layout.minimum { float(at + 2) } else { 0.0 };
        *value = gain * (float(at) * q as f32 + minimum);
    }
}
