//! Adapters as the kernels want them: both factors packed, once per adapter.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Result};

use super::activations::{Activations, ROW_SLACK};
use super::kernels::{self, Isa, Tile};
use super::packed::{PANEL, PackedWeight};
use super::team::{Shards, Team};
use realign_model::AdapterSpan;
use realign_model::lora::{LoraPair, LoraSite};

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
pub(crate) struct PackedAdapter(BTreeMap<LoraSite, Arc<PackedPair>>);

impl PackedAdapter {
    /// Packs every pair, its factors in `dtype`: f32, or f16 with a power of two taken out, which
    /// keeps eleven bits of every element.
    ///
    /// # Errors
    /// If a factor is not a matrix on the CPU.
    pub(crate) fn new(sites: &BTreeMap<LoraSite, LoraPair>, dtype: DType) -> Result<Self> {
        let packed = |(site, pair): (&LoraSite, &LoraPair)| {
            Ok((*site, Arc::new(PackedPair::new(pair, dtype)?)))
        };
        sites.iter().map(packed).collect::<Result<_>>().map(Self)
    }
}

/// The adapters of a batch.
#[derive(Debug, Default)]
pub(crate) struct Adapters {
    current: Vec<(Range<usize>, Arc<PackedAdapter>)>,
    /// Scratch: what [`Adapters::project`] shares out.
    pieces: Vec<Piece>,
    /// Scratch: the rows and factors behind each buffer that takes results.
    spans: Vec<Span>,
}

/// Rows of a step and the factors that they carry at some site.
type Span = (Range<usize>, Arc<PackedPair>);

/// Up to sixteen rows of one span, times one panel of its A.
#[derive(Clone, Copy, Debug)]
struct Piece {
    span: usize,
    /// First row of the span.
    first: usize,
    panel: usize,
}

impl Adapters {
    /// Sets the batch's adapters.
    ///
    /// # Errors
    /// If an adapter was staged by another backend.
    pub(crate) fn set(&mut self, spans: &[AdapterSpan]) -> Result<()> {
        self.current.clear();
        for span in spans {
            let packed = span.adapter.get::<PackedAdapter>()?;
            self.current.push((span.rows.clone(), packed));
        }
        Ok(())
    }

    /// Computes scale · A x at sites that read the same `x`, for every row whose adapter has the
    /// site. One parallel section for all of it: a section each would cost more than its work.
    pub(crate) fn project<const N: usize>(
        &mut self,
        team: &mut Team,
        isa: Isa,
        sites: [LoraSite; N],
        x: &Activations,
        into: &mut [Projected],
    ) {
        self.pieces.clear();
        self.spans.clear();
        let mut targets = Vec::new();
        for (site, into) in sites.into_iter().zip(into) {
            into.spans.clear();
            for (rows, adapter) in &self.current {
                if let Some(pair) = adapter.0.get(&site) {
                    let span = self.spans.len();
                    share_out(span, rows.len(), pair.a.panels(), &mut self.pieces);
                    self.spans.push((rows.clone(), pair.clone()));
                    into.spans.push((rows.clone(), pair.clone()));
                }
            }
            targets.extend(into.buffers());
        }
        let (spans, pieces) = (&self.spans, &self.pieces);
        team.run(pieces.len(), |_, at| {
            let piece = pieces[at];
            let (rows, pair) = &spans[piece.span];
            pair.project(isa, x, rows, piece, &targets[piece.span]);
        });
    }
}

/// Cuts a span of some rows into pieces.
fn share_out(span: usize, rows: usize, panels: usize, pieces: &mut Vec<Piece>) {
    for first in (0..rows).step_by(ROW_SLACK) {
        pieces.extend((0..panels).map(|panel| Piece { span, first, panel }));
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
pub(crate) struct Projected {
    spans: Vec<Span>,
    inner: Vec<Activations>,
}

impl Projected {
    /// The buffers of the current spans, each (rows, rank).
    fn buffers(&mut self) -> impl Iterator<Item = Shards<'_, f32>> {
        let count = self.spans.len().max(self.inner.len());
        self.inner.resize_with(count, Activations::default);
        let spans = self.spans.iter().zip(&mut self.inner);
        spans.map(|((rows, pair), inner)| {
            inner.reshape(rows.len(), pair.a.out);
            Shards::new(&mut inner.values)
        })
    }

    /// Starts to fetch what [`Projected::add`] will read for an output panel and rows from `first`.
    pub(crate) fn prefetch(&self, panel: usize, first: usize) {
        // Later rows find it there.
        if first > 0 {
            return;
        }
        for (_, pair) in &self.spans {
            kernels::prefetch(&pair.b, panel);
        }
    }

    /// Adds B (A x) to the tile of output panel `panel` and rows `first .. first + rows`.
    pub(crate) fn add(&self, isa: Isa, panel: usize, first: usize, rows: usize, tile: &mut Tile) {
        for ((span, pair), inner) in self.spans.iter().zip(&self.inner) {
            let (from, to) = (first.max(span.start), (first + rows).min(span.end));
            if from >= to {
                continue;
            }
            let target = &mut tile[from - first..to - first];
            kernels::add_panel(isa, &pair.b, panel, inner, from - span.start, target);
        }
    }
}
