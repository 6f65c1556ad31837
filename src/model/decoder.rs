//! The decoder: one definition for serving, scoring and training.
//!
//! `forward` takes `&self`; the batch brings everything that varies: tokens, positions, adapters
//! per row range, and how sequences lie in it. Families differ by [`ModelSpec`] alone.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::compute::{Compute, Ropes, run_layers};
use super::cpu::Encoding;
use super::linear::{AdapterRows, Linear, Weight};
use super::lora::LoraWeights;
use super::ops::{self, Activation, AttentionShape, Ops, RopeTable, Segment};
use super::spec::ModelSpec;

/// Everything that one forward pass needs besides the weights. Rows are tokens; there is no
/// padding, sequences follow each other.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// Token ids, one per row.
    pub tokens: &'a [u32],
    /// Position of each row in its sequence.
    pub positions: &'a [u32],
    /// Adapters by ascending row range; rows in no range run on the base model.
    pub adapters: &'a [AdapterRows<'a>],
    /// How the sequences lie.
    pub segments: Arc<[Segment]>,
    /// Which form of each operation runs.
    pub ops: Ops,
}

/// One decoder layer: pre-norm attention and pre-norm gated MLP, each with a residual.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Scale of the norm before attention, (hidden).
    pub attention_norm: Tensor,
    /// Query, key, value and output projections.
    pub attention: [Linear; 4],
    /// Scales of the norms of every head of q and of k, (head_dim), in families that have them.
    pub qk_norms: Option<[Tensor; 2]>,
    /// Scale of the norm before the MLP, (hidden).
    pub mlp_norm: Tensor,
    /// Gate, up and down projections.
    pub mlp: [Linear; 3],
    /// Scales of the norms of what attention and MLP add to the residual stream, (hidden), in
    /// families that have them.
    pub output_norms: Option<[Tensor; 2]>,
}

/// Weights and shapes of a model; immutable once loaded.
#[derive(Clone, Debug)]
pub struct Model {
    /// Shapes and constants.
    pub spec: ModelSpec,
    /// Token embedding, (vocabulary, hidden).
    pub embedding: Weight,
    /// Layers from the bottom up.
    pub layers: Vec<Layer>,
    /// Scale of the last norm, (hidden).
    pub final_norm: Tensor,
    /// LM head, (vocabulary, hidden); the embedding itself when tied.
    pub head: Weight,
    /// Where the weights are.
    pub device: Device,
}

impl Model {
    /// Final hidden states of every row of the batch, after the last norm: (rows, hidden).
    pub fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        let states = self.states_below(batch, 0)?;
        self.hidden_from(batch, &states, 0)
    }

    /// The residual stream that enters layer `layer`: (rows, hidden). Layer 0's is the embedding.
    pub fn states_below(&self, batch: &Batch, layer: usize) -> Result<Tensor> {
        let ids = Tensor::new(batch.tokens, &self.device)?;
        // The residual stream is f32 whatever the weights are.
        let mut embedded = self.embedding.rows(&ids)?.to_dtype(DType::F32)?;
        if let Some(scale) = self.spec.variant.embedding_scale {
            embedded = (embedded * scale)?;
        }
        self.run_layers(batch, embedded, 0..layer)
    }

    /// Hands the residual stream that enters each of `layers` (ascending; one beyond the last is
    /// what leaves it), (rows, hidden), to `take`.
    pub fn residuals(
        &self,
        batch: &Batch,
        layers: &[usize],
        mut take: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let (mut x, mut below) = (self.states_below(batch, 0)?, 0);
        for layer in layers {
            x = self.run_layers(batch, x, below..*layer)?;
            below = *layer;
            take(*layer, &x)?;
        }
        Ok(())
    }

    /// [`Model::hidden`], continued from the residual stream that enters layer `layer`. Training
    /// computes the layers below its lowest adapter once and starts here ever after.
    pub fn hidden_from(&self, batch: &Batch, states: &Tensor, layer: usize) -> Result<Tensor> {
        let x = self.run_layers(batch, states.clone(), layer..self.layers.len())?;
        ops::rms_norm(batch.ops, &x, &self.final_norm, self.spec.rms_norm_eps)
    }

    fn run_layers(&self, batch: &Batch, x: Tensor, range: Range<usize>) -> Result<Tensor> {
        let ropes = Ropes::new(&self.spec, batch.positions);
        self.run_layers_with(batch, &ropes, x, range)
    }

    /// Runs layers from the residual stream that enters the first of them, with rotations that
    /// were made for the batch before.
    pub(super) fn run_layers_with(
        &self,
        batch: &Batch,
        ropes: &Ropes,
        x: Tensor,
        range: Range<usize>,
    ) -> Result<Tensor> {
        let mut machine = TensorMachine::new(self, batch, x);
        run_layers(&mut machine, self, ropes, range)?;
        Ok(machine.x)
    }

    /// Logits of some rows of `hidden` (rows, hidden): (rows, vocabulary).
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.head.forward(hidden)?;
        match self.spec.variant.logit_cap {
            Some(cap) => ops::soft_cap(&logits, cap as f32),
            None => Ok(logits),
        }
    }

    /// The same model with weights whose products carry gradients. Norms are shared, and what a
    /// device multiplies with; quantised weights of the CPU are copied to f32, and `dense_bytes` says
    /// how much memory that takes.
    pub fn dequantized(&self) -> Result<Model> {
        let dense = |l: &Linear| l.dequantized(&self.device);
        let layers = self.layers.iter().map(|layer| {
            let [q, k, v, o] = &layer.attention;
            let [gate, up, down] = &layer.mlp;
            Ok(Layer {
                attention: [dense(q)?, dense(k)?, dense(v)?, dense(o)?],
                mlp: [dense(gate)?, dense(up)?, dense(down)?],
                ..layer.clone()
            })
        });
        let embedding = self.embedding.dequantized(&self.device)?;
        let head = if self.spec.tied_embeddings {
            embedding.clone()
        } else {
            self.head.dequantized(&self.device)?
        };
        Ok(Model {
            layers: layers.collect::<Result<_>>()?,
            embedding,
            head,
            ..self.clone()
        })
    }

    /// The form of the weights that training and scoring take: packed ones as they are, which
    /// costs nothing, all others as an f32 copy of [`Model::dense_bytes`].
    ///
    /// # Errors
    /// If a weight cannot be read.
    pub fn learnable(&self) -> Result<Model> {
        match self.is_packed() {
            true => Ok(self.clone()),
            false => self.dequantized(),
        }
    }

    /// Whether the weights are packed for the CPU executor.
    pub fn is_packed(&self) -> bool {
        matches!(self.head, Weight::Packed(_))
    }

    /// Element type of served adapters: f32 beside f32 weights, f16 beside all that is coarser.
    pub(super) fn adapter_dtype(&self) -> DType {
        let is_f32 = |linear: &Linear| match linear.weight() {
            Weight::Packed(packed) => packed.encoding == Encoding::F32,
            Weight::Quantized(_) | Weight::Integer(_) => false,
            Weight::Dense(_) => true,
        };
        let mut all = self.layers.iter().flat_map(|l| l.attention.iter());
        match all.any(is_f32) {
            true => DType::F32,
            false => DType::F16,
        }
    }

    /// Puts an adapter into the form in which steps read it. Call it while a generation is staged:
    /// otherwise the first step that meets the adapter does it, and its streams wait.
    ///
    /// # Errors
    /// If a factor is not a matrix on the model's device.
    pub fn stage(&self, adapter: &LoraWeights) -> Result<()> {
        if self.is_packed() {
            adapter.packed(self.adapter_dtype())?;
        }
        #[cfg(feature = "cuda")]
        if let (true, Some(dtype)) = (self.device.is_cuda(), self.embedding.product_dtype()) {
            let element = super::cuda::Element::of(dtype)?;
            adapter.on_device(&self.device, element)?;
        }
        Ok(())
    }

    /// The same model with weights packed for the CPU executor. Every tensor is dropped as soon as
    /// it is packed.
    pub fn packed(mut self) -> Result<Model> {
        for layer in &mut self.layers {
            for linear in layer.attention.iter_mut().chain(&mut layer.mlp) {
                linear.pack()?;
            }
        }
        self.head = match self.spec.tied_embeddings {
            true => {
                self.embedding = self.embedding.packed()?;
                self.embedding.clone()
            }
            false => {
                self.embedding = self.embedding.packed()?;
                self.head.packed()?
            }
        };
        Ok(self)
    }

    /// Bytes of an f32 copy of all weights.
    pub fn dense_bytes(&self) -> usize {
        let spec = &self.spec;
        let per_layer: usize = super::lora::Projection::ALL
            .iter()
            .map(|p| {
                let (i, o) = spec.projection_shape(*p);
                i * o
            })
            .sum();
        let tables = if spec.tied_embeddings { 1 } else { 2 };
        size_of::<f32>() * (per_layer * spec.layers + tables * spec.vocab_size * spec.hidden_size)
    }
}

/// Steps on candle tensors: differentiable, on any device.
struct TensorMachine<'a> {
    model: &'a Model,
    batch: &'a Batch<'a>,
    x: Tensor,
    h: Tensor,
    heads: [Tensor; 3],
    m: Tensor,
}

impl<'a> TensorMachine<'a> {
    /// All registers start as x; each is written before it is read.
    fn new(model: &'a Model, batch: &'a Batch<'a>, x: Tensor) -> Self {
        Self {
            model,
            batch,
            h: x.clone(),
            heads: [x.clone(), x.clone(), x.clone()],
            m: x.clone(),
            x,
        }
    }

    fn project(&self, map: &Linear, x: &Tensor) -> Result<Tensor> {
        map.forward(x, self.batch.adapters)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        ops::rms_norm(self.batch.ops, x, weight, self.model.spec.rms_norm_eps)
    }

    /// Normalises every head of `x` (rows, heads · head_dim) by itself.
    fn norm_heads(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let d = self.model.spec.head_dim;
        let heads = x.reshape((rows * width / d, d))?;
        self.norm(&heads, weight)?.reshape((rows, width))
    }
}

impl Compute for TensorMachine<'_> {
    fn normalise(&mut self, weight: &Tensor) -> Result<()> {
        self.h = self.norm(&self.x, weight)?;
        Ok(())
    }

    fn heads(&mut self, _index: usize, layer: &Layer, rope: &RopeTable) -> Result<()> {
        let [q, k, v, _] = &layer.attention;
        let rotated = |map: &Linear, which: usize| {
            let x = self.project(map, &self.h)?;
            let x = match &layer.qk_norms {
                Some(norms) => self.norm_heads(&x, &norms[which])?,
                None => x,
            };
            ops::rope(self.batch.ops, &x, rope)
        };
        self.heads = [rotated(q, 0)?, rotated(k, 1)?, self.project(v, &self.h)?];
        Ok(())
    }

    fn attend(&mut self, _index: usize, shape: &AttentionShape) -> Result<()> {
        let [q, k, v] = &self.heads;
        self.m = ops::packed_attention((q, k, v), *shape, &self.batch.segments)?;
        Ok(())
    }

    fn gate(&mut self, gate: &Linear, up: &Linear, activation: Activation) -> Result<()> {
        let (gate, up) = (self.project(gate, &self.h)?, self.project(up, &self.h)?);
        self.m = ops::gated(self.batch.ops, activation, &gate, &up)?;
        Ok(())
    }

    fn add_projected(&mut self, map: &Linear, norm: Option<&Tensor>) -> Result<()> {
        let mut y = self.project(map, &self.m)?;
        if let Some(weight) = norm {
            y = self.norm(&y, weight)?;
        }
        self.x = (&self.x + y)?;
        Ok(())
    }
}
