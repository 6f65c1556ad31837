//! Loops over rows and tiles, and what is done to one row.

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};

use super::activations::{Activations, ROW_SLACK, pair_row, pairs_of, round_row};
use super::kernels::Tile;
use super::packed::PANEL;
use super::team::{Shards, Team};
use realign_model::blocks::UNIT;
use realign_model::vector::dot;

/// Pieces per thread that a section is cut into: small enough that a thread that falls behind
/// holds little, large enough that claiming them costs nothing.
const PIECES: usize = 8;

/// Runs `f(panel, first row, rows, tiles)` for every panel of a product and every sixteen rows.
/// The two tiles are scratch: what they hold is unspecified.
///
/// A piece is a few panels for all rows: its weights stay in the first-level cache while the
/// activations pass.
pub(crate) fn for_tiles(
    team: &mut Team,
    panels: usize,
    rows: usize,
    f: impl Fn(usize, usize, usize, &mut [Tile; 2]) + Sync,
) {
    let per_piece = panels
        .div_ceil(team.threads() * PIECES)
        .clamp(1, MAX_PANELS);
    team.run(panels.div_ceil(per_piece), |_, piece| {
        let mut tiles: [Tile; 2] = [[[0.0; PANEL]; ROW_SLACK]; 2];
        for first in (0..rows).step_by(ROW_SLACK) {
            let count = ROW_SLACK.min(rows - first);
            for panel in piece * per_piece..panels.min((piece + 1) * per_piece) {
                f(panel, first, count, &mut tiles);
            }
        }
    });
}

/// Panels of a piece at most: beyond this the pieces of an LM head outgrow the caches.
const MAX_PANELS: usize = 32;

/// Runs `f(row)` for every row; one row alone is not worth sharing out.
pub(crate) fn for_rows(team: &mut Team, rows: usize, f: impl Fn(usize) + Sync) {
    let per_piece = rows.div_ceil(team.threads() * PIECES).max(1);
    team.run(rows.div_ceil(per_piece), |_, piece| {
        (piece * per_piece..rows.min((piece + 1) * per_piece)).for_each(&f);
    });
}

/// Prepares the values of `x` for products, in the forms that are wanted.
pub(crate) fn round_rows(team: &mut Team, x: &mut Activations) {
    if x.wanted.integers {
        to_integers(team, x);
    }
    if x.wanted.pairs {
        x.pair();
        let (columns, stride) = (x.columns, pairs_of(x.columns));
        let (values, pairs) = (&x.values, Shards::new(&mut x.pairs));
        for_rows(team, x.rows, |row| {
            // SAFETY: every row is written once.
            let into = unsafe { pairs.part(row * stride, stride) };
            pair_row(&values[row * columns..][..columns], into);
        });
    }
}

fn to_integers(team: &mut Team, x: &mut Activations) {
    let columns = x.columns;
    if !columns.is_multiple_of(UNIT) {
        return; // no integer format has such rows
    }
    let (rounded, units) = (Shards::new(&mut x.rounded), Shards::new(&mut x.units));
    let values = &x.values;
    for_rows(team, x.rows, |row| {
        let at = row * columns;
        // SAFETY: every row is rounded once.
        let (rounded, units) = unsafe {
            (
                rounded.part(at, columns),
                units.part(at / UNIT, columns / UNIT),
            )
        };
        round_row(&values[at..at + columns], rounded, units);
    });
}

/// 1 / √(mean(x²) + ε); NaN if the mean overflows, as 1 / ∞ would turn the row into zeros.
pub(crate) fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mean = dot(x, x) / x.len() as f32 + eps;
    if mean.is_finite() {
        1.0 / mean.sqrt()
    } else {
        f32::NAN
    }
}

/// y = x / rms(x) · w.
pub(crate) fn normalise(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let inverse = inverse_rms(x, eps);
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * inverse * w;
    }
}

/// As [`normalise`], in place.
pub(crate) fn normalise_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let inverse = inverse_rms(x, eps);
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * inverse * w;
    }
}

/// Rotates one head by its row's angles, in the rotate-half layout.
pub(crate) fn rotate(head: &mut [f32], (cos, sin): (&[f32], &[f32])) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// tile += bias, for the outputs from `column` on.
pub(crate) fn add_bias(tile: &mut [f32; PANEL], bias: Option<&[f32]>, column: usize) {
    if let Some(bias) = bias {
        for (y, b) in tile.iter_mut().zip(&bias[column..]) {
            *y += b;
        }
    }
}

/// Hands the elements of a contiguous f32 vector on the CPU to `f`.
pub(crate) fn with_floats<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(f(&values[start..end])),
        _ => bail!("expected contiguous f32 on the CPU, got {tensor:?}"),
    }
}

/// As [`with_floats`], for what may be absent.
pub(crate) fn with_optional<T>(
    tensor: Option<&Tensor>,
    f: impl FnOnce(Option<&[f32]>) -> T,
) -> Result<T> {
    match tensor {
        Some(tensor) => with_floats(tensor, |values| f(Some(values))),
        None => Ok(f(None)),
    }
}
