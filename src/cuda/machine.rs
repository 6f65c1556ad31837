//! The steps of a layer as launches. They depend on the step's [`Shape`] alone.

use candle_core::{Result, Tensor, bail};

use super::adapters::SITES;
use super::gpu::{Buffer, Gpu, Integers, Matrix, Product};
use super::graphs::Shape;
use super::launches::{self, AddNorm, Attend, FEW_ROWS, Heads, Lora, RopeWrite};
use super::tables;
use super::weights::Weights;
use crate::{Layer, Model};
use crate::{Linear, Weight};
use realign_model::compute::Compute;
use realign_model::lora::Projection;
use realign_model::{Activation, AttentionShape, Experts, RopeTable};

/// What runs a step's layers. Its registers are x, h, the heads, m and y as [`Compute`] names them;
/// what a projection adds waits in y until the next norm, which adds it in the same pass.
pub(crate) struct Machine<'a, G> {
    /// The device.
    pub gpu: &'a G,
    /// Shapes.
    pub(crate) model: &'a Model,
    /// Where its tensors are; their type is that of the cache, h and m too.
    pub(crate) weights: &'a Weights,
    /// The step.
    pub(crate) shape: &'a Shape,
    /// Keys and values of each layer.
    pub(crate) cache: &'a [[Buffer; 2]],
    /// Where integers are unpacked for a large product, a stripe of a matrix at a time.
    pub(crate) scratch: Option<&'a Buffer>,
    /// Whether y waits to be added, and the scale of its norm (null for none).
    pub(crate) pending: Option<u64>,
}

/// Heads of a model.
pub(crate) fn heads_of(model: &Model) -> Heads {
    let spec = &model.spec;
    Heads {
        queries: spec.heads,
        kv: spec.kv_heads,
        dim: spec.head_dim,
    }
}

impl<G: Gpu> Machine<'_, G> {
    /// Runs one product in the form that its size wants.
    pub(crate) fn multiply(&self, product: &Product) -> Result<()> {
        // The own kernel reads eight elements at a time.
        if product.rows <= FEW_ROWS && product.inner.is_multiple_of(8) {
            return self.gpu.launch(&launches::few_rows(product));
        }
        match product.weight {
            Matrix::Floats(_) => self.gpu.product(product),
            Matrix::Integers(matrix) => self.multiply_unpacked(product, matrix),
        }
    }

    /// A large product with integers: stripes of the matrix are unpacked and multiplied one after
    /// the other in the same memory.
    fn multiply_unpacked(&self, product: &Product, matrix: Integers) -> Result<()> {
        let Some(scratch) = self.scratch else {
            bail!("there is no memory to unpack a matrix of integers in");
        };
        let row = product.inner * product.element.bytes();
        let stripe = (scratch.bytes / row.max(1)).max(1);
        for first in (0..product.out).step_by(stripe) {
            let out = stripe.min(product.out - first);
            self.gpu.launch(&launches::unpack(
                product.element,
                &matrix.skip_rows(first),
                [out, product.inner],
                scratch.address,
            ))?;
            self.gpu.product(&Product {
                weight: Matrix::Floats(scratch.address),
                y: product.y + (first * size_of::<f32>()) as u64,
                out,
                ..*product
            })?;
        }
        Ok(())
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
                rows: self.shape.rows,
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
        let Some(sites) = self.shape.adapters.table(&projections) else {
            return Ok(());
        };
        let lora = Lora {
            owners: self.shape.tables.owners,
            sites,
            site_count: self.model.layers.len() * SITES,
            first: maps[0].site.layer * SITES + projections[0] as usize,
            columns,
            rows: self.shape.rows,
            places: self.shape.adapters.places,
            shrunk: self.shape.at.shrunk,
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
    pub(crate) fn norm(&mut self, weight: &Tensor, rows: u64, count: usize) -> Result<()> {
        let pending = self.pending.take();
        self.gpu.launch(&launches::add_norm(
            self.weights.element,
            &AddNorm {
                x: self.shape.at.x,
                y: pending.map_or(0, |_| self.shape.at.y),
                y_weight: pending.unwrap_or(0),
                weight: self.weights.at(weight)?,
                rows,
                count,
                eps: self.model.spec.rms_norm_eps as f32,
                width: self.model.spec.hidden_size,
                h: self.shape.at.h,
            },
        ))
    }

    /// Adds what is pending, so that x is the residual stream. h is lost; the next norm makes it again.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let model = self.model;
        match self.pending {
            Some(_) => self.norm(&model.final_norm, 0, self.shape.rows),
            None => Ok(()),
        }
    }

    fn attend_with(&self, index: usize, shape: &AttentionShape) -> Result<()> {
        let (heads, step) = (heads_of(self.model), self.shape);
        let (_, part) = tables::attention_blocks(step.tiles, heads);
        let (splits, split_tokens) = step.splits[index];
        let partial = step.at.partial;
        let [keys, values] = &self.cache[index];
        // A factor on cosines and sines is on q and on k, and its square on their products.
        let amplitude = self.model.spec.rope_of(shape).amplitude() as f32;
        self.gpu.launch(&launches::attention(
            self.weights.element,
            heads,
            &Attend {
                qkv: step.at.wide,
                cache: [keys.address, values.address],
                tiles: step.tables.tiles,
                tile_count: step.tiles,
                blocks: step.tables.blocks,
                scale: shape.scale * amplitude * amplitude,
                cap: shape.cap.unwrap_or(0.0),
                window: shape.window.unwrap_or(0),
                part,
                splits,
                split_tokens,
                partial,
            },
        ))?;
        let sizes = [step.rows, splits];
        self.gpu.launch(&launches::attention_merge(
            self.weights.element,
            heads,
            sizes,
            [partial, step.at.m],
        ))
    }
}

impl<G: Gpu> Compute for Machine<'_, G> {
    type Weight = Weight;

    fn normalise(&mut self, weight: &Tensor) -> Result<()> {
        self.norm(weight, 0, self.shape.rows)
    }

    fn heads(&mut self, index: usize, layer: &Layer, _rope: &RopeTable) -> Result<()> {
        let [q, k, v, _] = &layer.attention;
        let at = &self.shape.at;
        self.project(&[q, k, v], at.h, at.wide)?;
        let spec = &self.model.spec;
        let local = spec.attention(index).local_rope;
        let [keys, values] = &self.cache[index];
        let norms = layer.qk_norms.as_ref();
        self.gpu.launch(&launches::rope_write(
            self.weights.element,
            heads_of(self.model),
            &RopeWrite {
                qkv: at.wide,
                biases: self.weights.biases(index)?,
                norms: [
                    self.weights.optional(norms.map(|n| &n[0]))?,
                    self.weights.optional(norms.map(|n| &n[1]))?,
                ],
                angles: at.angles[usize::from(local)],
                slots: self.shape.tables.slots,
                eps: spec.rms_norm_eps as f32,
                rows: self.shape.rows,
                cache: [keys.address, values.address],
            },
        ))
    }

    fn attend(&mut self, index: usize, shape: &AttentionShape) -> Result<()> {
        self.attend_with(index, shape)
    }

    fn gate(&mut self, gate: &Linear, up: &Linear, activation: Activation) -> Result<()> {
        let at = &self.shape.at;
        self.project(&[gate, up], at.h, at.wide)?;
        let gelu = activation == Activation::GeluTanh;
        let sizes = [self.shape.rows, self.model.spec.intermediate_size];
        self.gpu.launch(&launches::gated(
            self.weights.element,
            gelu,
            sizes,
            [at.wide, at.m],
        ))
    }

    /// [`supported`](crate::executor::supported) refuses such models before they are loaded.
    fn mix(&mut self, _: &Experts<Weight>, _: Activation) -> Result<()> {
        candle_core::bail!(
            "the CUDA backend does not compute mixtures of experts: use --device cpu"
        )
    }

    fn add_projected(&mut self, map: &Linear, norm: Option<&Tensor>) -> Result<()> {
        let at = &self.shape.at;
        self.project(&[map], at.m, at.y)?;
        if let Some(bias) = map.bias() {
            let sizes = [self.shape.rows, self.model.spec.hidden_size];
            let bias = self.weights.at(bias)?;
            self.gpu.launch(&launches::add_bias(sizes, [at.y, bias]))?;
        }
        self.pending = Some(self.weights.optional(norm)?);
        Ok(())
    }
}
