//! Adapters as the kernels want them: both factors packed, once per adapter.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Result};

use super::activations::{Activations, ROW_SLACK};
use super::kernels::{self, Isa, Tile};
use super::packed::{PANEL, PackedWeight};
use super::team::{Shards, Team};
use crate::model::linear::AdapterSpan;
use crate::model::lora::{LoraPair, LoraSite};

/// The factors of one site: x → scale · B (A x).
#[derive(Debug)]
struct PackedPair {
    a: PackedWeight,
    b: PackedWeight,
    scale: f32,
}

impl PackedPair {
    fn new(pair: &LoraPair, dtype: DType) -> Result<Self> {
        Ok(Self {
            a: PackedWeight::from_factor(&pair.a, dtype)?,
            b: PackedWeight::from_factor(&pair.b, dtype)?,
            scale: pair.scale as f32,
        })
    }
}

/// A whole adapter, packed.
#[derive(Debug)]
pub struct PackedAdapter(BTreeMap<LoraSite, PackedPair>);

impl PackedAdapter {
    /// Packs every pair, its factors in `dtype`: f32, or f16 with a power of two taken out, which
    /// keeps eleven bits of every element.
    ///
    /// # Errors
    /// If a factor is not a matrix on the CPU.
    pub fn new(sites: &BTreeMap<LoraSite, LoraPair>, dtype: DType) -> Result<Self> {
        let packed =
            |(site, pair): (&LoraSite, &LoraPair)| Ok((*site, PackedPair::new(pair, dtype)?));
        sites.iter().map(packed).collect::<Result<_>>().map(Self)
    }
}

/// The adapters of a batch.
#[derive(Debug, Default)]
pub struct Adapters {
    current: Vec<(Range<usize>, Arc<PackedAdapter>)>,
    /// Scratch: what [`Adapters::project`] shares out.
    pieces: Vec<Piece>,
}

/// Up to sixteen rows of one adapter, times one panel of one site's A.
#[derive(Clone, Copy, Debug)]
struct Piece {
    site: LoraSite,
    /// Index of the adapter and its rows.
    span: usize,
    /// First row of the span.
    first: usize,
    panel: usize,
    /// Index of the buffer that takes the result.
    target: usize,
}

impl Adapters {
    /// Sets the batch's adapters. One that was not staged beforehand is packed here.
    ///
    /// # Errors
    /// If an adapter cannot be packed.
    pub fn set(&mut self, spans: &[AdapterSpan], dtype: DType) -> Result<()> {
        self.current.clear();
        for span in spans {
            let packed = span.adapter.packed(dtype)?;
            self.current.push((span.rows.clone(), packed));
        }
        Ok(())
    }

    /// Computes scale · A x at sites that read the same `x`, for every row whose adapter has the
    /// site. One parallel section for all of it: a section each would cost more than its work.
    pub fn project<const N: usize>(
        &mut self,
        team: &mut Team,
        isa: Isa,
        sites: [LoraSite; N],
        x: &Activations,
        into: &mut [Projected],
    ) {
        self.pieces.clear();
        let mut targets = Vec::new();
        for (site, into) in sites.into_iter().zip(into) {
            into.site = Some(site);
            into.spans.clear();
            for (span, (rows, adapter)) in self.current.iter().enumerate() {
                let Some(pair) = adapter.0.get(&site) else {
                    continue;
                };
                into.spans.push((rows.clone(), adapter.clone()));
                let target = targets.len() + into.spans.len() - 1;
                for first in (0..rows.len()).step_by(ROW_SLACK) {
                    self.pieces.extend((0..pair.a.panels()).map(|panel| Piece {
                        site,
                        span,
                        first,
                        panel,
                        target,
                    }));
                }
            }
            targets.extend(into.buffers(site));
        }
        let (current, pieces) = (&self.current, &self.pieces);
        team.run(pieces.len(), |_, at| {
            let piece = pieces[at];
            let (rows, adapter) = &current[piece.span];
            if let Some(pair) = adapter.0.get(&piece.site) {
                pair.project(isa, x, rows, piece, &targets[piece.target]);
            }
        });
    }
}

impl PackedPair {
    /// One piece of scale · A x; `target` is (rows, rank).
    fn project(
        &self,
        isa: Isa,
        x: &Activations,
        rows: &Range<usize>,
        piece: Piece,
        target: &Shards<f32>,
    ) {
        let (rank, column) = (self.a.out, piece.panel * PANEL);
        let count = ROW_SLACK.min(rows.len() - piece.first);
        let mut tile: Tile = [[0.0; PANEL]; ROW_SLACK];
        let from = rows.start + piece.first;
        kernels::panel(isa, &self.a, piece.panel, x, from, count, &mut tile);
        let lanes = PANEL.min(rank - column);
        for (row, tile) in tile[..count].iter().enumerate() {
            // SAFETY: every row and panel of a target belongs to one piece.
            let inner = unsafe { target.part((piece.first + row) * rank + column, lanes) };
            for (y, value) in inner.iter_mut().zip(tile) {
                *y = value * self.scale;
            }
        }
    }
}

/// scale · A x of a batch's rows at one site; buffers are reused.
#[derive(Debug, Default)]
pub struct Projected {
    site: Option<LoraSite>,
    spans: Vec<(Range<usize>, Arc<PackedAdapter>)>,
    inner: Vec<Activations>,
}

impl Projected {
    /// The buffers of the current spans, each (rows, rank).
    fn buffers(&mut self, site: LoraSite) -> impl Iterator<Item = Shards<'_, f32>> {
        if self.inner.len() < self.spans.len() {
            self.inner
                .resize_with(self.spans.len(), Activations::default);
        }
        let spans = self.spans.iter().zip(&mut self.inner);
        spans.map(move |((rows, adapter), inner)| {
            let rank = adapter.0.get(&site).map_or(0, |pair| pair.a.out);
            inner.reshape(rows.len(), rank);
            Shards::new(&mut inner.values)
        })
    }

    /// Adds B (A x) to the tile of output panel `panel` and rows `first .. first + rows`.
    pub fn add(&self, isa: Isa, panel: usize, first: usize, rows: usize, tile: &mut Tile) {
        let Some(site) = self.site else { return };
        for ((span, adapter), inner) in self.spans.iter().zip(&self.inner) {
            let (from, to) = (first.max(span.start), (first + rows).min(span.end));
            let Some(pair) = adapter.0.get(&site).filter(|_| from < to) else {
                continue;
            };
            let mut delta: Tile = [[0.0; PANEL]; ROW_SLACK];
            let (start, count) = (from - span.start, to - from);
            kernels::panel(isa, &pair.b, panel, inner, start, count, &mut delta);
            for (row, delta) in (from..to).zip(&delta) {
                for (y, d) in tile[row - first].iter_mut().zip(delta) {
                    *y += d;
                }
            }
        }
    }
}
