//! Adapters on the device: their factors in the weights' element type, and the table by which
//! kernels find those of a row.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::gpu::{Buffer, Element, Gpu};
use super::weights::address;
use realign_model::AdapterSpan;
use realign_model::lora::{LoraPair, LoraSite, Projection};

/// Sites of a layer.
pub(crate) const SITES: usize = Projection::ALL.len();

/// The factors of one site on the device.
#[derive(Debug)]
struct DevicePair {
    a: Tensor,
    b: Tensor,
    scale: f32,
    rank: usize,
}

/// A whole adapter on the device.
#[derive(Debug)]
pub struct DeviceAdapter {
    pairs: BTreeMap<LoraSite, DevicePair>,
    element: Element,
}

impl DeviceAdapter {
    /// Copies every pair and waits until the copies are there, as other streams read them.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn new(
        sites: &BTreeMap<LoraSite, LoraPair>,
        device: &Device,
        element: Element,
    ) -> Result<Self> {
        let copy = |t: &Tensor| {
            let moved = t.detach().to_device(device)?;
            moved.to_dtype(element.dtype())?.contiguous()
        };
        let pair = |(site, pair): (&LoraSite, &LoraPair)| {
            let copied = DevicePair {
                a: copy(&pair.a)?,
                b: copy(&pair.b)?,
                scale: pair.scale as f32,
                rank: pair.a.dim(0)?,
            };
            Ok((*site, copied))
        };
        let pairs = sites.iter().map(pair).collect::<Result<_>>()?;
        device.synchronize()?;
        Ok(Self { pairs, element })
    }

    /// The kernel's `Site` for every projection of every layer.
    fn entries(&self, layers: usize, into: &mut Vec<u8>) -> Result<()> {
        for layer in 0..layers {
            for projection in Projection::ALL {
                let entry = match self.pairs.get(&LoraSite { layer, projection }) {
                    Some(p) => (
                        address(&p.a, self.element)?,
                        address(&p.b, self.element)?,
                        p.rank as u32,
                        p.scale,
                    ),
                    None => (0, 0, 0, 0.0),
                };
                into.extend(entry.0.to_le_bytes());
                into.extend(entry.1.to_le_bytes());
                into.extend(entry.2.to_le_bytes());
                into.extend(entry.3.to_le_bytes());
            }
        }
        Ok(())
    }
}

/// The adapters of a step.
#[derive(Debug, Default)]
pub(crate) struct StepAdapters {
    current: Vec<Arc<DeviceAdapter>>,
    /// Those that a step has met; it must not free what runs.
    table: Option<Buffer>,
    /// Each row's adapter; negative for none.
    pub(crate) owners: Vec<i32>,
    /// Which sites any of them has, per projection.
    sites: [bool; SITES],
    /// Largest rank.
    places: usize,
}

/// What of a step's adapters its launches depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AdapterShape {
    /// Where the table is.
    table: u64,
    /// Which sites any adapter has, per projection; none in a step without adapters.
    sites: [bool; SITES],
    /// Largest rank.
    pub(crate) places: usize,
}

impl AdapterShape {
    /// Where the table is, if any row carries an adapter that has one of these projections.
    pub(crate) fn table(&self, projections: &[Projection]) -> Option<u64> {
        let any = projections.iter().any(|p| self.sites[*p as usize]);
        any.then_some(self.table)
    }
}

impl StepAdapters {
    /// Sets a step's adapters. Call it between steps: it may free what the last one read.
    ///
    /// # Errors
    /// If an adapter was staged by another backend.
    pub(crate) fn set(
        &mut self,
        gpu: &impl Gpu,
        (spans, rows, layers): (&[AdapterSpan], usize, usize),
    ) -> Result<()> {
        self.owners.clear();
        self.owners.resize(rows, -1);
        let mut adapters: Vec<Arc<DeviceAdapter>> = Vec::new();
        for span in spans {
            let adapter = span.adapter.get::<DeviceAdapter>()?;
            let known = adapters.iter().position(|a| Arc::ptr_eq(a, &adapter));
            let number = known.unwrap_or(adapters.len());
            if known.is_none() {
                adapters.push(adapter);
            }
            self.owners[span.rows.clone()].fill(number as i32);
        }
        let same = adapters.len() == self.current.len()
            && adapters
                .iter()
                .zip(&self.current)
                .all(|(a, b)| Arc::ptr_eq(a, b));
        if same {
            Ok(())
        } else {
            self.replace(gpu, adapters, layers)
        }
    }

    fn replace(
        &mut self,
        gpu: &impl Gpu,
        adapters: Vec<Arc<DeviceAdapter>>,
        layers: usize,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        for adapter in &adapters {
            adapter.entries(layers, &mut bytes)?;
        }
        let pairs = || adapters.iter().flat_map(|a| a.pairs.iter());
        self.places = pairs().map(|(_, p)| p.rank).max().unwrap_or(0);
        self.sites = Projection::ALL.map(|p| pairs().any(|(site, _)| site.projection == p));
        if self.table.as_ref().is_none_or(|t| t.bytes < bytes.len()) {
            self.table = Some(gpu.allocate(bytes.len().max(256))?);
        }
        if let Some(table) = &self.table {
            gpu.write(table.address, &bytes)?;
        }
        self.current = adapters;
        Ok(())
    }

    /// Largest rank that the table has room for.
    pub(crate) fn places(&self) -> usize {
        self.places
    }

    /// What the step's launches depend on.
    pub(crate) fn shape(&self) -> AdapterShape {
        match &self.table {
            Some(table) if !self.current.is_empty() => AdapterShape {
                table: table.address,
                sites: self.sites,
                places: self.places,
            },
            _ => AdapterShape::default(),
        }
    }
}
