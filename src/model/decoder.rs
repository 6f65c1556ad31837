//! The decoder: one definition for serving, scoring and training.
//!
//! `forward` takes `&self`; the batch brings everything that varies: tokens, positions, adapters
//! per row range, and where attention finds its keys. Families differ by [`ModelSpec`] alone.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::linear::{AdapterRows, Linear, Weight};
use super::ops::{self, Ops, PagedKv, PagedSequence, RopeTable, Segment};
use super::spec::ModelSpec;

/// Where attention finds keys and values.
#[derive(Clone, Debug)]
pub enum Attention<'a> {
    /// Whole sequences in the batch itself, no cache (training, scoring).
    Packed(Arc<[Segment]>),
    /// A paged cache that the batch extends (serving).
    Paged {
        /// The cache; the forward pass writes the batch's keys and values into it.
        kv: &'a PagedKv,
        /// Which rows belong to which sequence.
        sequences: Arc<[PagedSequence]>,
    },
}

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
    /// Where keys and values are.
    pub attention: Attention<'a>,
    /// Which form of each operation runs.
    pub ops: Ops,
}

/// One decoder layer: pre-norm attention and pre-norm SwiGLU MLP, each with a residual.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Scale of the norm before attention, (hidden).
    pub input_norm: Tensor,
    /// Query, key, value and output projections.
    pub attention: [Linear; 4],
    /// Scale of the norm before the MLP, (hidden).
    pub post_attention_norm: Tensor,
    /// Gate, up and down projections.
    pub mlp: [Linear; 3],
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
        self.run_layers(batch, self.embedding.rows(&ids)?, 0..layer)
    }

    /// [`Model::hidden`], continued from the residual stream that enters layer `layer`. Training
    /// computes the layers below its lowest adapter once and starts here ever after.
    pub fn hidden_from(&self, batch: &Batch, states: &Tensor, layer: usize) -> Result<Tensor> {
        let x = self.run_layers(batch, states.clone(), layer..self.layers.len())?;
        ops::rms_norm(batch.ops, &x, &self.final_norm, self.spec.rms_norm_eps)
    }

    fn run_layers(&self, batch: &Batch, mut x: Tensor, range: Range<usize>) -> Result<Tensor> {
        let rope = RopeTable::new(batch.positions, self.spec.head_dim, self.spec.rope_theta);
        for index in range {
            x = self.layer(index, &self.layers[index], &x, &rope, batch)?;
        }
        Ok(x)
    }

    /// Logits of some rows of `hidden` (rows, hidden): (rows, vocabulary).
    pub fn logits(&self, ops: Ops, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(ops, hidden)
    }

    fn layer(
        &self,
        index: usize,
        layer: &Layer,
        x: &Tensor,
        rope: &RopeTable,
        batch: &Batch,
    ) -> Result<Tensor> {
        let eps = self.spec.rms_norm_eps;
        let h = ops::rms_norm(batch.ops, x, &layer.input_norm, eps)?;
        let x = (x + self.attention(index, layer, &h, rope, batch)?)?;
        let h = ops::rms_norm(batch.ops, &x, &layer.post_attention_norm, eps)?;
        let [gate, up, down] = &layer.mlp;
        let gate = gate.forward(batch.ops, &h, batch.adapters)?;
        let up = up.forward(batch.ops, &h, batch.adapters)?;
        &x + down.forward(
            batch.ops,
            &ops::swiglu(batch.ops, &gate, &up)?,
            batch.adapters,
        )?
    }

    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        h: &Tensor,
        rope: &RopeTable,
        batch: &Batch,
    ) -> Result<Tensor> {
        let [q, k, v, o] = &layer.attention;
        let q = ops::rope(batch.ops, &q.forward(batch.ops, h, batch.adapters)?, rope)?;
        let k = ops::rope(batch.ops, &k.forward(batch.ops, h, batch.adapters)?, rope)?;
        let v = v.forward(batch.ops, h, batch.adapters)?;
        let d = self.spec.head_dim;
        let mixed = match &batch.attention {
            Attention::Packed(segments) => {
                ops::packed_attention(batch.ops, (&q, &k, &v), d, segments)?
            }
            Attention::Paged { kv, sequences } => {
                kv.write(index, &k, &v, sequences)?;
                ops::paged_attention(batch.ops, &q, kv, index, sequences, d)?
            }
        };
        o.forward(batch.ops, &mixed, batch.adapters)
    }

    /// The same model with f32 weights: exact products that carry gradients. Norms are shared,
    /// quantised weights are copied; `dense_bytes` says how much memory that takes.
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
