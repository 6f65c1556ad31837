//! Panels of floats: laid out from rows, and read back.
//!
//! The sixteen weights of an input element lie side by side. In bfloat16 two input elements share a
//! line, the two weights of an output next to each other: what an instruction that multiplies pairs
//! wants, and what becomes f32 by a shift and a mask.

use rayon::prelude::*;

use super::{PANEL, SLACK};
use crate::aligned::AlignedBytes;

/// Columns of sixteen rows that are moved at a time: they stay in the first-level cache.
const BLOCK: usize = 32;

/// Where element `column` of row `lane` lies in a panel whose columns are interleaved in groups of
/// `STEP`.
#[inline(always)]
fn place<const STEP: usize>(column: usize, lane: usize) -> usize {
    (column / STEP * PANEL + lane) * STEP + column % STEP
}

/// Rows of `columns` values as panels of elements of `N` bytes. What a last group of columns lacks
/// is zero.
pub(super) fn pack<T: Copy + Sync, const N: usize, const STEP: usize>(
    values: &[T],
    columns: usize,
    bytes_of: impl Fn(T) -> [u8; N] + Sync,
) -> AlignedBytes {
    let out = values.len().checked_div(columns).unwrap_or(0);
    let panel_bytes = columns.next_multiple_of(STEP) * PANEL * N;
    let panels = out.div_ceil(PANEL);
    let mut data = AlignedBytes::zeroed(panels * panel_bytes + SLACK);
    data[..panels * panel_bytes]
        .par_chunks_exact_mut(panel_bytes.max(1))
        .zip(values.par_chunks((PANEL * columns).max(1)))
        .for_each(|(into, values)| {
            let rows: Vec<&[T]> = values.chunks_exact(columns).collect();
            panel::<_, N, STEP>(&rows, into, &bytes_of);
        });
    data
}

/// A panel of up to sixteen rows. Bytes that belong to no value stay as they are.
pub(super) fn panel<T: Copy, const N: usize, const STEP: usize>(
    rows: &[&[T]],
    into: &mut [u8],
    bytes_of: impl Fn(T) -> [u8; N],
) {
    let into = into.as_chunks_mut::<N>().0;
    let columns = rows.first().map_or(0, |row| row.len());
    for first in (0..columns).step_by(BLOCK) {
        let last = columns.min(first + BLOCK);
        for (lane, row) in rows.iter().enumerate() {
            for (column, value) in (first..last).zip(&row[first..last]) {
                into[place::<STEP>(column, lane)] = bytes_of(*value);
            }
        }
    }
}

/// Row `lane` of a panel.
pub(super) fn read<const N: usize, const STEP: usize>(
    panel: &[u8],
    lane: usize,
    into: &mut [f32],
    value: impl Fn([u8; N]) -> f32,
) {
    let panel = panel.as_chunks::<N>().0;
    for (column, into) in into.iter_mut().enumerate() {
        *into = value(panel[place::<STEP>(column, lane)]);
    }
}
