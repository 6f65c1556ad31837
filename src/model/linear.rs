//! A linear map with a frozen weight and, per range of rows, an adapter beside it.

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result, Tensor};

use super::cpu::PackedWeight;
use super::integer::IntegerWeight;
use super::lora::{LoraPair, LoraSite, LoraWeights, Projection};
use super::ops::{frozen_linear, integer_linear};

/// A frozen weight of shape (out, in).
#[derive(Clone, Debug)]
pub enum Weight {
    /// As its GGUF file stores it. Products unpack it, and have no gradient.
    Quantized(Arc<QTensor>),
    /// Laid out for the CPU executor, which is what multiplies with it.
    Packed(PackedWeight),
    /// The file's integers as a CUDA device keeps them. The product sends gradients to its input,
    /// and unpacks the weight for as long as it takes.
    Integer(IntegerWeight),
    /// Floats: f32 on the CPU, 16 bits on a CUDA device. The product sends gradients to its input.
    Dense(Tensor),
}

impl Weight {
    /// (out, in).
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Weight::Quantized(q) => q.shape().dims2(),
            Weight::Packed(p) => Ok((p.out, p.columns)),
            Weight::Integer(w) => w.shape(),
            Weight::Dense(t) => t.dims2(),
        }
    }

    /// The same weight in a form whose products carry gradients: floats, or a device's integers,
    /// which stay as they are.
    pub fn dequantized(&self, device: &Device) -> Result<Weight> {
        Ok(match self {
            Weight::Quantized(q) => Weight::Dense(q.dequantize(device)?),
            Weight::Packed(p) => Weight::Dense(p.dequantize()?),
            Weight::Integer(_) | Weight::Dense(_) => self.clone(),
        })
    }

    /// Element type of the activations that a device's product takes; `None` for weights that a
    /// device does not multiply with.
    pub fn product_dtype(&self) -> Option<DType> {
        match self {
            Weight::Quantized(_) | Weight::Packed(_) => None,
            Weight::Integer(w) => Some(w.dtype),
            Weight::Dense(t) => Some(t.dtype()),
        }
    }

    /// The same weight packed for the CPU executor.
    pub fn packed(&self) -> Result<Weight> {
        Ok(Weight::Packed(match self {
            Weight::Quantized(q) => PackedWeight::from_quantized(q)?,
            Weight::Packed(p) => p.clone(),
            Weight::Integer(w) => PackedWeight::from_dense(&w.dense()?)?,
            Weight::Dense(t) => PackedWeight::from_dense(t)?,
        }))
    }

    /// Bytes that one pass over the weight reads.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Quantized(q) => q.storage_size_in_bytes(),
            Weight::Packed(p) => p.bytes(),
            Weight::Integer(w) => w.bytes(),
            Weight::Dense(t) => t.elem_count() * t.dtype().size_in_bytes(),
        }
    }

    /// `x` (rows, in) times the transposed weight: (rows, out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Weight::Quantized(q) => x.matmul(&q.dequantize(x.device())?.t()?),
            Weight::Packed(p) => p.forward(x),
            Weight::Integer(w) => integer_linear(x, w),
            Weight::Dense(w) => frozen_linear(x, w),
        }
    }

    /// Rows of the weight, for an embedding look-up: (ids, in).
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Weight::Quantized(q) => q.dequantize(ids.device())?.index_select(ids, 0),
            Weight::Packed(p) => p.rows(ids),
            Weight::Integer(w) => w.rows(ids),
            Weight::Dense(w) => w.index_select(ids, 0),
        }
    }
}

/// Rows of a batch and the adapter they carry.
#[derive(Clone, Debug)]
pub struct AdapterRows<'a> {
    /// Consecutive rows of the batch.
    pub rows: Range<usize>,
    /// The adapter.
    pub adapter: &'a LoraWeights,
}

/// As [`AdapterRows`], for whoever keeps the adapter alive by itself.
#[derive(Clone, Debug)]
pub struct AdapterSpan {
    /// Consecutive rows of the batch.
    pub rows: Range<usize>,
    /// The adapter.
    pub adapter: Arc<LoraWeights>,
}

/// One projection of a decoder layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Where adapters attach.
    pub site: LoraSite,
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// A projection of one layer; the bias, if any, has `out` elements.
    pub fn new(layer: usize, projection: Projection, weight: Weight, bias: Option<Tensor>) -> Self {
        Self {
            site: LoraSite { layer, projection },
            weight,
            bias,
        }
    }

    /// The same map with a weight whose products carry gradients.
    pub fn dequantized(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            weight: self.weight.dequantized(device)?,
            ..self.clone()
        })
    }

    /// Packs the weight for the CPU executor.
    pub fn pack(&mut self) -> Result<()> {
        self.weight = self.weight.packed()?;
        Ok(())
    }

    /// Puts the same weight in another form or place.
    pub(super) fn set_weight(&mut self, weight: Weight) {
        self.weight = weight;
    }

    /// The frozen weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The bias, (out).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Bytes of the weight.
    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// `W x + b`, plus `scale · B (A x)` on the rows of each adapter that has this site.
    ///
    /// Adapters stay unmerged, so one batch holds sequences of different generations. The ranges
    /// must be ascending and disjoint.
    pub fn forward(&self, x: &Tensor, adapters: &[AdapterRows]) -> Result<Tensor> {
        let mut y = self.weight.forward(x)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        let pairs: Vec<(&Range<usize>, &LoraPair)> = adapters
            .iter()
            .filter_map(|a| a.adapter.sites.get(&self.site).map(|pair| (&a.rows, pair)))
            .collect();
        match pairs.as_slice() {
            [] => Ok(y),
            [(rows, pair)] if **rows == (0..x.dim(0)?) => y + lora_delta(x, pair)?,
            some => {
                let out = y.dim(1)?;
                y + ragged_delta(x, some, out)?
            }
        }
    }
}

/// `scale · B (A x)`, (rows, out). Factors under training take candle's product, which sends them
/// gradients; those of a finished adapter take the frozen one.
fn lora_delta(x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
    let product = |x: &Tensor, w: &Tensor| match w.track_op() {
        true => x.matmul(&w.t()?),
        false => frozen_linear(x, w),
    };
    product(&product(x, &pair.a)?, &pair.b)? * pair.scale
}

/// The deltas of several row ranges stitched together, zero between them.
fn ragged_delta(x: &Tensor, pairs: &[(&Range<usize>, &LoraPair)], out: usize) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let zeros = |n: usize| Tensor::zeros((n, out), x.dtype(), x.device());
    let mut parts = Vec::with_capacity(2 * pairs.len() + 1);
    let mut next = 0;
    for (range, pair) in pairs {
        if range.start > next {
            parts.push(zeros(range.start - next)?);
        }
        parts.push(lora_delta(&x.narrow(0, range.start, range.len())?, pair)?);
        next = range.end;
    }
    if next < rows {
        parts.push(zeros(rows - next)?);
    }
    Tensor::cat(&parts, 0)
}
