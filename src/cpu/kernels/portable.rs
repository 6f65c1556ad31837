//! The slow twin: what the vector kernels compute, spelt out.

use super::{Format, PANEL, Rows, Tile, UNIT};
use crate::packed::{BlockLayout, UnitBytes, element};

/// One panel times some rows.
pub(crate) fn integer(format: Format, bytes: &[u8], x: Rows, rows: usize, tile: &mut Tile) {
    let layout = BlockLayout::of(format);
    for (row, sums) in tile[..rows].iter_mut().enumerate() {
        *sums = [0.0; PANEL];
        for u in 0..x.columns / UNIT {
            let unit = layout.unit(bytes, u);
            for (lane, sum) in sums.iter_mut().enumerate() {
                for half in 0..format.scales {
                    *sum += half_unit(format, unit, lane, half, (x, row, u));
                }
            }
        }
    }
}

/// The elements of one lane that share a scale, times their activations.
fn half_unit(
    format: Format,
    unit: UnitBytes,
    lane: usize,
    half: usize,
    (x, row, u): (Rows, usize, usize),
) -> f32 {
    let length = UNIT / format.scales;
    let (mut sum, mut total) = (0i32, 0i32);
    for i in half * length..(half + 1) * length {
        let q = element(format.bits, unit.integers, lane, i);
        // SAFETY: `Rows` promises that this row can be read.
        let value = i32::from(unsafe { *x.rounded.add(row * x.columns + u * UNIT + i) });
        sum += (i32::from(q) - format.zero) * value;
        total += value;
    }
    // SAFETY: as above.
    let scale = unsafe { (*x.units.add(row * (x.columns / UNIT) + u)).scale };
    let minimum = match format.minimum {
        true => unit.minimum(format, half, lane),
        false => 0.0,
    };
    unit.scale(format, half, lane) * scale * sum as f32 + minimum * scale * total as f32
}
