//! The slow twin: what the vector kernels compute, spelt out.

use super::{Format, PANEL, Rows, Tile, UNIT, extents};
use crate::packed::{SCALE_BYTES, element};
use half::f16;

/// One panel times some rows.
pub(crate) fn integer(format: Format, bytes: &[u8], x: Rows, rows: usize, tile: &mut Tile) {
    let (units, header) = extents(format, x);
    let unit_bytes = bytes.len().checked_div(units).unwrap_or(1);
    for (row, sums) in tile[..rows].iter_mut().enumerate() {
        *sums = [0.0; PANEL];
        for (u, unit) in bytes.chunks_exact(unit_bytes).enumerate() {
            let (head, integers) = unit.split_at(header);
            for (lane, sum) in sums.iter_mut().enumerate() {
                for half in 0..format.scales {
                    *sum += half_unit(format, head, integers, lane, half, (x, row, u));
                }
            }
        }
    }
}

/// The elements of one lane that share a scale, times their activations.
fn half_unit(
    format: Format,
    head: &[u8],
    integers: &[u8],
    lane: usize,
    half: usize,
    (x, row, u): (Rows, usize, usize),
) -> f32 {
    let vector = |i: usize| {
        let at = i * SCALE_BYTES + 2 * lane;
        f16::from_le_bytes([head[at], head[at + 1]]).to_f32()
    };
    let length = UNIT / format.scales;
    let (mut sum, mut total) = (0i32, 0i32);
    for i in half * length..(half + 1) * length {
        let q = element(format.bits, integers, lane, i);
        // SAFETY: `Rows` promises that this row can be read.
        let value = i32::from(unsafe { *x.rounded.add(row * x.columns + u * UNIT + i) });
        sum += (i32::from(q) - format.zero) * value;
        total += value;
    }
    // SAFETY: as above.
    let scale = unsafe { (*x.units.add(row * (x.columns / UNIT) + u)).scale };
    let minimum = match format.minimum {
        true => vector(format.scales + half),
        false => 0.0,
    };
    vector(half) * scale * sum as f32 + minimum * scale * total as f32
}
