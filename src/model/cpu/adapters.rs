//! Adapters as the kernels want them: both factors packed, once per adapter.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use candle_core::Result;

use super::activations::{Activations, ROW_SLACK};
use super::kernels::{self, Isa, Tile};
use super::packed::{PANEL, PackedWeight};
use super::team::{Shards, Team};
use crate::model::linear::AdapterSpan;
use crate::model::lora::{LoraPair, LoraSite, LoraWeights};

/// The factors of one site: x → scale · B (A x).
#[derive(Debug)]
struct PackedPair {
    a: PackedWeight,
    b: PackedWeight,
    scale: f32,
}

impl PackedPair {
    fn new(pair: &LoraPair) -> Result<Self> {
        Ok(Self {
            a: PackedWeight::from_dense(&pair.a)?,
            b: PackedWeight::from_dense(&pair.b)?,
            scale: pair.scale as f32,
        })
    }

    /// scale · A x of some rows of `x`: (rows, rank).
    fn project(
        &self,
        team: &mut Team,
        isa: Isa,
        x: &Activations,
        rows: &Range<usize>,
        into: &mut Activations,
    ) {
        let rank = self.a.out;
        into.reshape(rows.len(), rank);
        let shards = Shards::new(&mut into.values);
        team.run(rows.len().div_ceil(ROW_SLACK), |_, piece| {
            let first = piece * ROW_SLACK;
            let count = ROW_SLACK.min(rows.len() - first);
            // SAFETY: every piece has its own rows.
            let inner = unsafe { shards.part(first * rank, count * rank) };
            let mut tile: Tile = [[0.0; PANEL]; ROW_SLACK];
            for panel in 0..self.a.panels() {
                kernels::panel(isa, &self.a, panel, x, rows.start + first, count, &mut tile);
                for (row, tile) in inner.chunks_exact_mut(rank).zip(&tile) {
                    for (y, value) in row[panel * PANEL..].iter_mut().zip(tile) {
                        *y = value * self.scale;
                    }
                }
            }
        });
    }
}

type PackedAdapter = BTreeMap<LoraSite, PackedPair>;

/// The adapters of a batch, and packed forms of all adapters that are still in use.
#[derive(Debug, Default)]
pub struct Adapters {
    known: Vec<(Weak<LoraWeights>, Arc<PackedAdapter>)>,
    current: Vec<(Range<usize>, Arc<PackedAdapter>)>,
}

impl Adapters {
    /// Sets the batch's adapters, packing those that are new and forgetting those that are gone.
    pub fn set(&mut self, spans: &[AdapterSpan]) -> Result<()> {
        self.known.retain(|(adapter, _)| adapter.strong_count() > 0);
        self.current.clear();
        for span in spans {
            let packed = self.packed(&span.adapter)?;
            self.current.push((span.rows.clone(), packed));
        }
        Ok(())
    }

    fn packed(&mut self, adapter: &Arc<LoraWeights>) -> Result<Arc<PackedAdapter>> {
        let same = |known: &Weak<LoraWeights>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(adapter));
        if let Some((_, packed)) = self.known.iter().find(|(known, _)| same(known)) {
            return Ok(packed.clone());
        }
        let pairs = adapter.sites.iter();
        let packed: PackedAdapter = pairs
            .map(|(site, pair)| Ok((*site, PackedPair::new(pair)?)))
            .collect::<Result<_>>()?;
        let packed = Arc::new(packed);
        self.known.push((Arc::downgrade(adapter), packed.clone()));
        Ok(packed)
    }

    /// Computes scale · A x for every row whose adapter has this site.
    pub fn project(
        &self,
        team: &mut Team,
        isa: Isa,
        site: LoraSite,
        x: &Activations,
        into: &mut Projected,
    ) {
        into.site = Some(site);
        into.spans.clear();
        for (rows, adapter) in &self.current {
            let Some(pair) = adapter.get(&site) else {
                continue;
            };
            let at = into.spans.len();
            if into.inner.len() == at {
                into.inner.push(Activations::default());
            }
            pair.project(team, isa, x, rows, &mut into.inner[at]);
            into.spans.push((rows.clone(), adapter.clone()));
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
    /// Adds B (A x) to the tile of output panel `panel` and rows `first .. first + rows`.
    pub fn add(&self, isa: Isa, panel: usize, first: usize, rows: usize, tile: &mut Tile) {
        let Some(site) = self.site else { return };
        for ((span, adapter), inner) in self.spans.iter().zip(&self.inner) {
            let (from, to) = (first.max(span.start), (first + rows).min(span.end));
            let Some(pair) = adapter.get(&site).filter(|_| from < to) else {
                continue;
            };
            let mut delta: Tile = [[0.0; PANEL]; ROW_SLACK];
            kernels::panel(
                isa,
                &pair.b,
                panel,
                inner,
                from - span.start,
                to - from,
                &mut delta,
            );
            for (row, delta) in (from..to).zip(&delta) {
                for (y, d) in tile[row - first].iter_mut().zip(delta) {
                    *y += d;
                }
            }
        }
    }
}
