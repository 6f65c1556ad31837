//! The steps of a layer as launches.

use candle_core::{Result, Tensor};

use super::adapters::{SITES, StepAdapters};
use super::gpu::{Buffer, Gpu, Product};
use super::launches::{self, AddNorm, Attend, FEW_ROWS, Heads, Lora, RopeWrite};
use super::registers::Places;
use super::tables::{self, Tile};
use super::weights::Weights;
use crate::model::compute::Compute;
use crate::model::decoder::{Layer, Model};
use crate::model::linear::Linear;
use crate::model::lora::Projection;
use crate::model::ops::{Activation, AttentionShape, RopeTable};

/// What runs a step's layers. Its registers are x, h, the heads, m and y as [`Compute`] names them;
/// what a projection adds waits in y until the next norm, which adds it in the same pass.
pub struct Machine<'a, G> {
    /// The device.
    pub gpu: &'a G,
    /// Shapes.
    pub model: &'a Model,
    /// Where its tensors are; their type is that of the cache, h and m too.
    pub weights: &'a Weights,
    /// Rows of the step.
    pub rows: usize,
    /// Where the registers are.
    pub at: Places,
    /// Keys and values of each layer.
    pub cache: &'a [[Buffer; 2]],
    /// Adapters.
    pub adapters: &'a StepAdapters,
    /// Work of attention.
    pub tiles: &'a [Tile],
    /// Addresses of the step's tables.
    pub tables: StepTables,
    /// Whether y waits to be added, and the scale of its norm (null for none).
    pub pending: Option<u64>,
}

/// Addresses of a step's tables.
#[derive(Clone, Copy, Debug)]
pub struct StepTables {
    /// Slots of the rows.
    pub slots: u64,
    /// Owners of the rows.
    pub owners: u64,
    /// Tiles.
    pub tiles: u64,
    /// Block numbers.
    pub blocks: u64,
}

impl<G: Gpu> Machine<'_, G> {
    /// Heads of the model.
    pub fn heads_shape(&self) -> Heads {
        let spec = &self.model.spec;
        Heads {
            queries: spec.heads,
            kv: spec.kv_heads,
            dim: spec.head_dim,
        }
    }

    /// Runs one product in the form that its size wants.
    pub fn multiply(&self, product: &Product) -> Result<()> {
        // The own kernel reads eight elements at a time.
        if product.rows <= FEW_ROWS && product.inner.is_multiple_of(8) {
            return self.gpu.launch(&launches::few_rows(product));
        }
        self.gpu.product(product)
    }

    /// `maps` of `x` (rows, inner) side by side in `y`, with the rows' adapters.
    fn project(&self, maps: &[&Linear], x: u64, y: u64) -> Result<()> {
        let columns: Vec<(usize, usize)> = maps
            .iter()
            .scan(0, |next, map| {
                let shape = map.weight().shape();
                let first = *next;
                *next += shape.as_ref().map_or(0, |s| s.0);
                Some(shape.map(|(out, _)| (first, out)))
            })
            .collect::<Result<_>>()?;
        let stride = columns.iter().map(|c| c.1).sum();
        let (_, inner) = maps[0].weight().shape()?;
        let mut first = 0;
        for (weight, out) in self.weights.products(maps)? {
            self.multiply(&Product {
                element: self.weights.element,
                weight,
                x,
                y: y + (first * size_of::<f32>()) as u64,
                rows: self.rows,
                inner,
                out,
                stride,
            })?;
            first += out;
        }
        self.adapt(maps, &columns, (x, inner), (y, stride))
    }

    fn adapt(
        &self,
        maps: &[&Linear],
        columns: &[(usize, usize)],
        (x, inner): (u64, usize),
        (y, stride): (u64, usize),
    ) -> Result<()> {
        let projections: Vec<Projection> = maps.iter().map(|m| m.site.projection).collect();
        let Some(sites) = self.adapters.table(&projections) else {
            return Ok(());
        };
        let lora = Lora {
            owners: self.tables.owners,
            sites,
            site_count: self.model.layers.len() * SITES,
            first: maps[0].site.layer * SITES + projections[0] as usize,
            columns,
            rows: self.rows,
            places: self.adapters.places,
            shrunk: self.at.shrunk,
        };
        self.gpu.launch(&launches::lora_shrink(
            self.weights.element,
            &lora,
            x,
            inner,
        ))?;
        self.gpu.launch(&launches::lora_expand(
            self.weights.element,
            &lora,
            y,
            stride,
        ))
    }

    /// h ← norm of x after what is pending, for `count` rows: those in `rows`, or the first.
    pub fn norm(&mut self, weight: &Tensor, rows: u64, count: usize) -> Result<()> {
        let pending = self.pending.take();
        self.gpu.launch(&launches::add_norm(
            self.weights.element,
            &AddNorm {
                x: self.at.x,
                y: pending.map_or(0, |_| self.at.y),
                y_weight: pending.unwrap_or(0),
                weight: self.weights.at(weight)?,
                rows,
                count,
                eps: self.model.spec.rms_norm_eps as f32,
                width: self.model.spec.hidden_size,
                h: self.at.h,
            },
        ))
    }

    fn attend_with(&self, index: usize, shape: &AttentionShape) -> Result<()> {
        let heads = self.heads_shape();
        let (blocks, part) = tables::attention_blocks(self.tiles.len(), heads);
        let wanted = self.gpu.blocks_to_fill();
        let (splits, split_tokens) = tables::splits(self.tiles, shape.window, blocks, wanted);
        let partial = self.at.partial;
        let [keys, values] = &self.cache[index];
        self.gpu.launch(&launches::attention(
            self.weights.element,
            heads,
            &Attend {
                qkv: self.at.wide,
                cache: [keys.address, values.address],
                tiles: self.tables.tiles,
                tile_count: self.tiles.len(),
                blocks: self.tables.blocks,
                scale: shape.scale,
                cap: shape.cap.unwrap_or(0.0),
                window: shape.window.unwrap_or(0),
                part,
                splits,
                split_tokens,
                partial,
            },
        ))?;
        let sizes = [self.rows, splits];
        self.gpu.launch(&launches::attention_merge(
            self.weights.element,
            heads,
            sizes,
            [partial, self.at.m],
        ))
    }
}

impl<G: Gpu> Compute for Machine<'_, G> {
    fn normalise(&mut self, weight: &Tensor) -> Result<()> {
        self.norm(weight, 0, self.rows)
    }

    fn heads(&mut self, index: usize, layer: &Layer, _rope: &RopeTable) -> Result<()> {
        let [q, k, v, _] = &layer.attention;
        self.project(&[q, k, v], self.at.h, self.at.wide)?;
        let spec = &self.model.spec;
        let windowed = spec.attention(index).window.is_some();
        let local = windowed && spec.variant.local_rope.is_some();
        let [keys, values] = &self.cache[index];
        let norms = layer.qk_norms.as_ref();
        self.gpu.launch(&launches::rope_write(
            self.weights.element,
            self.heads_shape(),
            &RopeWrite {
                qkv: self.at.wide,
                biases: self.weights.biases(index)?,
                norms: [
                    self.weights.optional(norms.map(|n| &n[0]))?,
                    self.weights.optional(norms.map(|n| &n[1]))?,
                ],
                angles: self.at.angles[usize::from(local)],
                slots: self.tables.slots,
                eps: spec.rms_norm_eps as f32,
                rows: self.rows,
                cache: [keys.address, values.address],
            },
        ))
    }

    fn attend(&mut self, index: usize, shape: &AttentionShape) -> Result<()> {
        self.attend_with(index, shape)
    }

    fn gate(&mut self, gate: &Linear, up: &Linear, activation: Activation) -> Result<()> {
        self.project(&[gate, up], self.at.h, self.at.wide)?;
        let gelu = activation == Activation::GeluTanh;
        let sizes = [self.rows, self.model.spec.intermediate_size];
        self.gpu.launch(&launches::gated(
            self.weights.element,
            gelu,
            sizes,
            [self.at.wide, self.at.m],
        ))
    }

    fn add_projected(&mut self, map: &Linear, norm: Option<&Tensor>) -> Result<()> {
        self.project(&[map], self.at.m, self.at.y)?;
        if let Some(bias) = map.bias() {
            let sizes = [self.rows, self.model.spec.hidden_size];
            let bias = self.weights.at(bias)?;
            self.gpu
                .launch(&launches::add_bias(sizes, [self.at.y, bias]))?;
        }
        self.pending = Some(self.weights.optional(norm)?);
        Ok(())
    }
}
