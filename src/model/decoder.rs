//! The decoder's structure: one definition for every backend, which keeps the weights in a form of
//! its own. Families differ by [`ModelSpec`] alone.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result, Tensor};

use super::linear::Linear;
use super::spec::ModelSpec;

/// A matrix of shape (out, in) as a file stores it, on the host.
#[derive(Clone, Debug)]
pub enum StoredMatrix {
    /// Of a GGUF file.
    Quantized(Arc<QTensor>),
    /// Of a safetensors file: f32, f16 or bf16.
    Floats(Tensor),
}

impl StoredMatrix {
    /// (out, in).
    ///
    /// # Errors
    /// If it is no matrix.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            StoredMatrix::Quantized(q) => q.shape().dims2(),
            StoredMatrix::Floats(t) => t.dims2(),
        }
    }

    /// Its values in f32, on the host.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn dense(&self) -> Result<Tensor> {
        match self {
            StoredMatrix::Quantized(q) => q.dequantize(&Device::Cpu),
            StoredMatrix::Floats(t) => t.to_dtype(DType::F32),
        }
    }
}

/// One decoder layer: pre-norm attention and pre-norm gated MLP, each with a residual.
#[derive(Clone, Debug)]
pub struct Layer<W> {
    /// Scale of the norm before attention, (hidden).
    pub attention_norm: Tensor,
    /// Query, key, value and output projections.
    pub attention: [Linear<W>; 4],
    /// Scales of the norms of every head of q and of k, (head_dim), in families that have them.
    pub qk_norms: Option<[Tensor; 2]>,
    /// Scale of the norm before the MLP, (hidden).
    pub mlp_norm: Tensor,
    /// Gate, up and down projections.
    pub mlp: [Linear<W>; 3],
    /// Scales of the norms of what attention and MLP add to the residual stream, (hidden), in
    /// families that have them.
    pub output_norms: Option<[Tensor; 2]>,
}

impl<W> Layer<W> {
    /// All seven maps, in the order in which the layer applies them.
    pub fn maps(&self) -> impl Iterator<Item = &Linear<W>> {
        self.attention.iter().chain(&self.mlp)
    }

    /// The same layer with its weights in another form.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map<V>(self, mut f: impl FnMut(W) -> Result<V>) -> Result<Layer<V>> {
        let [q, k, v, o] = self.attention;
        let [gate, up, down] = self.mlp;
        let mut each = |map: Linear<W>| map.map(&mut f);
        Ok(Layer {
            attention: [each(q)?, each(k)?, each(v)?, each(o)?],
            mlp: [each(gate)?, each(up)?, each(down)?],
            attention_norm: self.attention_norm,
            qk_norms: self.qk_norms,
            mlp_norm: self.mlp_norm,
            output_norms: self.output_norms,
        })
    }
}

/// Shapes and weights of a model, the matrices in the form `W`; immutable once loaded. Norms and
/// biases are f32 tensors where the backend computes.
#[derive(Clone, Debug)]
pub struct Decoder<W> {
    /// Shapes and constants.
    pub spec: ModelSpec,
    /// Token embedding, (vocabulary, hidden).
    pub embedding: W,
    /// Layers from the bottom up.
    pub layers: Vec<Layer<W>>,
    /// Scale of the last norm, (hidden).
    pub final_norm: Tensor,
    /// LM head, (vocabulary, hidden); the embedding itself when tied.
    pub head: W,
}

impl<W> Decoder<W> {
    /// All maps of all layers.
    pub fn maps(&self) -> impl Iterator<Item = &Linear<W>> {
        self.layers.iter().flat_map(Layer::maps)
    }

    /// The same model with its weights in another form. Every weight is dropped as soon as it is
    /// converted; a head that is the embedding stays so.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map<V: Clone>(self, mut f: impl FnMut(W) -> Result<V>) -> Result<Decoder<V>> {
        let embedding = f(self.embedding)?;
        let head = if self.spec.tied_embeddings {
            embedding.clone()
        } else {
            f(self.head)?
        };
        let layers = self.layers.into_iter().map(|layer| layer.map(&mut f));
        Ok(Decoder {
            layers: layers.collect::<Result<_>>()?,
            embedding,
            head,
            final_norm: self.final_norm,
            spec: self.spec,
        })
    }
}
