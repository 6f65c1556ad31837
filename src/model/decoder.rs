//! The decoder's structure: one definition for every backend, which keeps the weights in a form of
//! its own. Families differ by [`ModelSpec`] alone.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result, Tensor};

use super::experts::Experts;
use super::linear::Linear;
use super::mapped::Blocks;
use super::spec::ModelSpec;

/// A matrix of shape (out, in) as a file stores it, on the host.
#[derive(Clone, Debug)]
pub enum StoredMatrix {
    /// Of a GGUF file, in memory of its own.
    Quantized(Arc<QTensor>),
    /// Floats or blocks of a file where it is mapped.
    Mapped(Blocks),
    /// Of a file with f32, f16 or bf16, in memory of its own.
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
            StoredMatrix::Mapped(blocks) => Ok(blocks.shape()),
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
            StoredMatrix::Mapped(blocks) => blocks.in_memory()?.dense(),
            StoredMatrix::Floats(t) => t.to_dtype(DType::F32),
        }
    }

    /// The same in memory of its own, for what reads no mapped blocks.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn owned(self) -> Result<Self> {
        match self {
            StoredMatrix::Mapped(blocks) => blocks.in_memory(),
            other => Ok(other),
        }
    }
}

/// What follows the attention of a layer.
#[derive(Clone, Debug)]
pub enum Mlp<W> {
    /// Gate, up and down projections.
    Dense([Linear<W>; 3]),
    /// Experts, among which a router chooses.
    Experts(Experts<W>),
}

impl<W> Mlp<W> {
    /// The maps that adapters can be attached to.
    pub fn maps(&self) -> &[Linear<W>] {
        match self {
            Mlp::Dense(maps) => maps,
            Mlp::Experts(_) => &[],
        }
    }

    /// As [`Mlp::maps`].
    pub fn maps_mut(&mut self) -> &mut [Linear<W>] {
        match self {
            Mlp::Dense(maps) => maps,
            Mlp::Experts(_) => &mut [],
        }
    }

    /// All matrices.
    pub fn weights(&self) -> impl Iterator<Item = &W> {
        let experts = match self {
            Mlp::Dense(_) => None,
            Mlp::Experts(experts) => Some(experts),
        };
        let maps = self.maps().iter().map(Linear::weight);
        maps.chain(experts.into_iter().flat_map(Experts::weights))
    }

    fn map<V>(self, mut f: impl FnMut(W) -> Result<V>) -> Result<Mlp<V>> {
        Ok(match self {
            Mlp::Dense([gate, up, down]) => {
                Mlp::Dense([gate.map(&mut f)?, up.map(&mut f)?, down.map(&mut f)?])
            }
            Mlp::Experts(experts) => Mlp::Experts(experts.map(f)?),
        })
    }
}

/// One decoder layer: pre-norm attention, and pre-norm gated MLP or experts, each with a residual.
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
    /// What follows attention.
    pub mlp: Mlp<W>,
    /// Scales of the norms of what attention and MLP add to the residual stream, (hidden), in
    /// families that have them.
    pub output_norms: Option<[Tensor; 2]>,
}

impl<W> Layer<W> {
    /// The maps that adapters can be attached to, in the order in which the layer applies them: seven,
    /// or those of attention where experts follow it.
    pub fn maps(&self) -> impl Iterator<Item = &Linear<W>> {
        self.attention.iter().chain(self.mlp.maps())
    }

    /// All matrices, those of experts among them.
    pub fn weights(&self) -> impl Iterator<Item = &W> {
        let attention = self.attention.iter().map(Linear::weight);
        attention.chain(self.mlp.weights())
    }

    /// The same layer with its weights in another form.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map<V>(self, mut f: impl FnMut(W) -> Result<V>) -> Result<Layer<V>> {
        let [q, k, v, o] = self.attention;
        let mut each = |map: Linear<W>| map.map(&mut f);
        Ok(Layer {
            attention: [each(q)?, each(k)?, each(v)?, each(o)?],
            mlp: self.mlp.map(&mut f)?,
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
    /// All matrices of all layers.
    pub fn weights(&self) -> impl Iterator<Item = &W> {
        self.layers.iter().flat_map(Layer::weights)
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
