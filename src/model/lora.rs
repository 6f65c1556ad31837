//! LoRA weights in memory, in Hugging Face's layout, independent of any file format.
//!
//! `y = W x + scale · B (A x)` with A of shape (rank, in) and B of shape (out, rank),
//! from *LoRA: Low-Rank Adaptation of Large Language Models* (arXiv 2106.09685).

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

/// The seven linear maps of a decoder layer that can carry an adapter, by their PEFT names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// `self_attn.q_proj`
    Q,
    /// `self_attn.k_proj`
    K,
    /// `self_attn.v_proj`
    V,
    /// `self_attn.o_proj`
    O,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

impl Projection {
    /// All projections, in the order in which a layer applies them.
    pub const ALL: [Projection; 7] = [
        Projection::Q,
        Projection::K,
        Projection::V,
        Projection::O,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
    ];

    /// The name PEFT uses in `target_modules`, e.g. `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Projection::Q => "q_proj",
            Projection::K => "k_proj",
            Projection::V => "v_proj",
            Projection::O => "o_proj",
            Projection::Gate => "gate_proj",
            Projection::Up => "up_proj",
            Projection::Down => "down_proj",
        }
    }

    /// The submodule of a decoder layer that owns the projection: `self_attn` or `mlp`.
    pub fn parent(self) -> &'static str {
        match self {
            Projection::Q | Projection::K | Projection::V | Projection::O => "self_attn",
            Projection::Gate | Projection::Up | Projection::Down => "mlp",
        }
    }

    /// Reads a PEFT module name such as `q_proj`; `None` for a module this decoder has not.
    pub fn from_name(name: &str) -> Option<Projection> {
        Projection::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// Where an adapter pair sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoraSite {
    /// Decoder layer, from 0.
    pub layer: usize,
    /// Linear map inside the layer.
    pub projection: Projection,
}

/// The two factors of one site.
#[derive(Clone, Debug)]
pub struct LoraPair {
    /// Down-projection, shape (rank, in), f32.
    pub a: Tensor,
    /// Up-projection, shape (out, rank), f32.
    pub b: Tensor,
    /// `alpha / rank` (or `alpha / sqrt(rank)` for rsLoRA), applied to `B (A x)`.
    pub scale: f64,
}

/// A whole adapter: one pair per adapted site, ordered by (layer, projection).
#[derive(Clone, Debug, Default)]
pub struct LoraWeights {
    /// The adapted sites.
    pub sites: BTreeMap<LoraSite, LoraPair>,
}

impl From<BTreeMap<LoraSite, LoraPair>> for LoraWeights {
    fn from(sites: BTreeMap<LoraSite, LoraPair>) -> Self {
        Self { sites }
    }
}

impl LoraWeights {
    /// The same values without a way for gradients to reach them. Nothing is copied.
    pub fn detached(&self) -> LoraWeights {
        let pair = |(site, pair): (&LoraSite, &LoraPair)| {
            let detached = LoraPair {
                a: pair.a.detach(),
                b: pair.b.detach(),
                scale: pair.scale,
            };
            (*site, detached)
        };
        self.sites
            .iter()
            .map(pair)
            .collect::<BTreeMap<_, _>>()
            .into()
    }

    /// The mean of two adapters of the same sites and shapes, factor by factor. It is near the mean
    /// of their effects where the two are near each other, as rounds of one training are.
    ///
    /// # Errors
    /// If a site is missing in `other`, or shapes differ.
    pub fn mean(&self, other: &LoraWeights) -> Result<LoraWeights> {
        let half = |a: &Tensor, b: &Tensor| (a + b)? * 0.5;
        let pair = |(site, own): (&LoraSite, &LoraPair)| {
            let theirs = other.sites.get(site);
            let theirs = theirs.ok_or_else(|| {
                let (layer, name) = (site.layer, site.projection.name());
                candle_core::Error::msg(format!("layer {layer} {name} is adapted in one of two"))
            })?;
            let mean = LoraPair {
                a: half(&own.a, &theirs.a)?,
                b: half(&own.b, &theirs.b)?,
                scale: own.scale,
            };
            Ok((*site, mean))
        };
        let sites: BTreeMap<_, _> = self.sites.iter().map(pair).collect::<Result<_>>()?;
        Ok(sites.into())
    }

    /// The lowest layer that is adapted.
    pub fn lowest_layer(&self) -> Option<usize> {
        self.sites.keys().map(|site| site.layer).min()
    }

    /// The same adapter with its factors on a device.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn to_device(&self, device: &candle_core::Device) -> Result<LoraWeights> {
        let pair = |(site, pair): (&LoraSite, &LoraPair)| {
            let moved = LoraPair {
                a: pair.a.to_device(device)?,
                b: pair.b.to_device(device)?,
                scale: pair.scale,
            };
            Ok((*site, moved))
        };
        let sites: BTreeMap<_, _> = self.sites.iter().map(pair).collect::<Result<_>>()?;
        Ok(sites.into())
    }

    /// The pair at a site, if that site is adapted.
    pub fn get(&self, layer: usize, projection: Projection) -> Option<&LoraPair> {
        self.sites.get(&LoraSite { layer, projection })
    }
}
