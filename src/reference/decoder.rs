//! The decoder on candle's tensors: differentiable, on any device.
//!
//! A pass takes `&self`; the batch brings everything that varies: tokens, positions, adapters per row
//! range, and how sequences lie in it.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use realign_model::compute::{Compute, Ropes, run_layers};
use realign_model::packing::{Packed, States};
use realign_model::{
    Activation, AttentionShape, Decoder, Experts, Layer, Linear, LoraWeights, RopeTable, Segment,
};

use crate::experts::mixed;
use crate::linear::{AdapterRows, TensorWeight, project};
use crate::ops::{TensorOps, packed_attention, soft_cap};

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
}

impl<'a> Batch<'a> {
    /// A packed batch with adapters.
    pub(crate) fn packed(packed: &'a Packed, adapters: &'a [AdapterRows<'a>]) -> Self {
        Self {
            tokens: &packed.tokens,
            positions: &packed.positions,
            adapters,
            segments: packed.segments.clone(),
        }
    }
}

/// The rows of a batch that enter the layer of its examples' states.
pub(crate) fn entering(packed: &Packed, states: &[States]) -> Result<Tensor> {
    let rows = packed.pieces().iter().filter(|(_, rows)| !rows.is_empty());
    let rows: Result<Vec<Tensor>> = rows
        .map(|(example, rows)| states[*example].hidden.narrow(0, rows.start, rows.len()))
        .collect();
    Tensor::cat(&rows?, 0)
}

/// An adapter, if there is one, on all rows of a packed batch.
pub(crate) fn on_all_rows<'a>(
    batch: &Packed,
    adapter: Option<&'a LoraWeights>,
) -> Vec<AdapterRows<'a>> {
    let rows = 0..batch.token_count();
    adapter
        .map(|adapter| AdapterRows { rows, adapter })
        .into_iter()
        .collect()
}

/// A decoder on candle's tensors, and the form of the operations.
#[derive(Clone, Debug)]
pub struct TensorModel<W> {
    /// Shapes and weights.
    pub decoder: Decoder<W>,
    /// Which operations run.
    pub ops: &'static dyn TensorOps,
}

impl<W: TensorWeight> TensorModel<W> {
    /// Where the weights are.
    pub(crate) fn device(&self) -> &Device {
        self.decoder.final_norm.device()
    }

    /// Final hidden states of every row of the batch, after the last norm: (rows, hidden).
    ///
    /// # Errors
    /// If a token is not in the vocabulary, an adapter does not fit, or the device refuses.
    pub fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        let states = self.states_below(batch, 0)?;
        self.hidden_from(batch, &states, 0)
    }

    /// The residual stream that enters layer `layer`: (rows, hidden). Layer 0's is the embedding.
    ///
    /// # Errors
    /// As [`TensorModel::hidden`].
    pub(crate) fn states_below(&self, batch: &Batch, layer: usize) -> Result<Tensor> {
        let ids = Tensor::new(batch.tokens, self.device())?;
        // The residual stream is f32 whatever the weights are.
        let mut embedded = self.decoder.embedding.rows(&ids)?.to_dtype(DType::F32)?;
        if let Some(scale) = self.decoder.spec.variant.embedding_scale {
            embedded = (embedded * scale)?;
        }
        self.run_layers(batch, embedded, 0..layer)
    }

    /// Hands the residual stream that enters each of `layers` (ascending; one beyond the last is
    /// what leaves it), (rows, hidden), to `take`.
    ///
    /// # Errors
    /// As [`TensorModel::hidden`]; those of `take`.
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

    /// [`TensorModel::hidden`], continued from the residual stream that enters layer `layer`. Training
    /// computes the layers below its lowest adapter once and starts here ever after.
    ///
    /// # Errors
    /// As [`TensorModel::hidden`].
    pub(crate) fn hidden_from(
        &self,
        batch: &Batch,
        states: &Tensor,
        layer: usize,
    ) -> Result<Tensor> {
        let x = self.run_layers(batch, states.clone(), layer..self.decoder.layers.len())?;
        self.normalised(&x)
    }

    /// The last norm of rows of the residual stream.
    pub(crate) fn normalised(&self, x: &Tensor) -> Result<Tensor> {
        let eps = self.decoder.spec.rms_norm_eps;
        self.ops.rms_norm(x, &self.decoder.final_norm, eps)
    }

    fn run_layers(&self, batch: &Batch, x: Tensor, range: Range<usize>) -> Result<Tensor> {
        let ropes = Ropes::new(&self.decoder.spec, batch.positions);
        self.run_layers_with(batch, &ropes, x, range)
    }

    /// Runs layers from the residual stream that enters the first of them, with rotations that
    /// were made for the batch before.
    pub(crate) fn run_layers_with(
        &self,
        batch: &Batch,
        ropes: &Ropes,
        x: Tensor,
        range: Range<usize>,
    ) -> Result<Tensor> {
        let mut machine = TensorMachine::new(self, batch, x);
        run_layers(&mut machine, &self.decoder, ropes, range)?;
        Ok(machine.x)
    }

    /// Logits of some rows of `hidden` (rows, hidden): (rows, vocabulary).
    ///
    /// # Errors
    /// If the shapes do not fit, or the device refuses.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.decoder.head.product(hidden)?;
        match self.decoder.spec.variant.logit_cap {
            Some(cap) => soft_cap(&logits, cap as f32),
            None => Ok(logits),
        }
    }

    /// Final hidden states that predict the response tokens: (response tokens, hidden). The LM
    /// head never sees any other row.
    ///
    /// # Errors
    /// As [`TensorModel::hidden`].
    pub fn response_hidden(
        &self,
        packed: &Packed,
        adapter: Option<&LoraWeights>,
    ) -> Result<Tensor> {
        let adapters = on_all_rows(packed, adapter);
        let batch = Batch::packed(packed, &adapters);
        let hidden = match &packed.states {
            Some(states) => {
                self.hidden_from(&batch, &entering(packed, states)?, states[0].layer)?
            }
            None => self.hidden(&batch)?,
        };
        let rows = Tensor::new(packed.rows.as_slice(), self.device())?;
        hidden.index_select(&rows, 0)
    }

    /// The base model's residual stream entering `layer`, per example.
    ///
    /// # Errors
    /// As [`TensorModel::hidden`].
    pub(crate) fn states(&self, packed: &Packed, layer: usize) -> Result<Vec<States>> {
        let hidden = self.states_below(&Batch::packed(packed, &[]), layer)?;
        let of = |example: usize| {
            let runs = packed.lies(example).iter().filter(|r| !r.is_empty());
            let runs: Result<Vec<Tensor>> =
                runs.map(|r| hidden.narrow(0, r.start, r.len())).collect();
            let hidden = Tensor::cat(&runs?, 0)?.copy()?.detach();
            Ok(States { layer, hidden })
        };
        (0..packed.spans().len()).map(of).collect()
    }

    /// log p(token | prefix) of every response token: (response tokens).
    ///
    /// # Errors
    /// As [`TensorModel::hidden`].
    pub fn token_logprobs(&self, packed: &Packed, adapter: Option<&LoraWeights>) -> Result<Tensor> {
        let hidden = self.response_hidden(packed, adapter)?;
        self.ops
            .token_logprobs(&self.logits(&hidden)?, packed.targets())
    }

    /// log p(response | prompt) per example and response, summed over tokens in f64; no gradient.
    ///
    /// # Errors
    /// As [`TensorModel::hidden`].
    pub fn response_logprobs(
        &self,
        packed: &Packed,
        adapter: Option<&LoraWeights>,
    ) -> Result<Vec<Vec<f64>>> {
        let tokens = self.token_logprobs(packed, adapter)?.to_vec1::<f32>()?;
        let sum = |span: &Range<usize>| tokens[span.clone()].iter().map(|&v| f64::from(v)).sum();
        let spans = packed.spans().iter();
        Ok(spans.map(|spans| spans.iter().map(sum).collect()).collect())
    }
}

/// Steps on candle tensors: differentiable, on any device.
struct TensorMachine<'a, W> {
    model: &'a TensorModel<W>,
    batch: &'a Batch<'a>,
    x: Tensor,
    h: Tensor,
    heads: [Tensor; 3],
    m: Tensor,
}

impl<'a, W: TensorWeight> TensorMachine<'a, W> {
    /// All registers start as x; each is written before it is read.
    fn new(model: &'a TensorModel<W>, batch: &'a Batch<'a>, x: Tensor) -> Self {
        Self {
            model,
            batch,
            h: x.clone(),
            heads: [x.clone(), x.clone(), x.clone()],
            m: x.clone(),
            x,
        }
    }

    fn project(&self, map: &Linear<W>, x: &Tensor) -> Result<Tensor> {
        project(map, x, self.batch.adapters)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        self.model
            .ops
            .rms_norm(x, weight, self.model.decoder.spec.rms_norm_eps)
    }

    /// Normalises every head of `x` (rows, heads · head_dim) by itself.
    fn norm_heads(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let d = self.model.decoder.spec.head_dim;
        let heads = x.reshape((rows * width / d, d))?;
        self.norm(&heads, weight)?.reshape((rows, width))
    }
}

impl<W: TensorWeight> Compute for TensorMachine<'_, W> {
    type Weight = W;

    fn normalise(&mut self, weight: &Tensor) -> Result<()> {
        self.h = self.norm(&self.x, weight)?;
        Ok(())
    }

    fn heads(&mut self, _index: usize, layer: &Layer<W>, rope: &RopeTable) -> Result<()> {
        let [q, k, v, _] = &layer.attention;
        let rotated = |map: &Linear<W>, which: usize| {
            let x = self.project(map, &self.h)?;
            let x = match &layer.qk_norms {
                Some(norms) => self.norm_heads(&x, &norms[which])?,
                None => x,
            };
            self.model.ops.rope(&x, rope)
        };
        self.heads = [rotated(q, 0)?, rotated(k, 1)?, self.project(v, &self.h)?];
        Ok(())
    }

    fn attend(&mut self, _index: usize, shape: &AttentionShape) -> Result<()> {
        let [q, k, v] = &self.heads;
        self.m = packed_attention((q, k, v), *shape, &self.batch.segments)?;
        Ok(())
    }

    fn gate(&mut self, gate: &Linear<W>, up: &Linear<W>, activation: Activation) -> Result<()> {
        let (gate, up) = (self.project(gate, &self.h)?, self.project(up, &self.h)?);
        self.m = self.model.ops.gated(activation, &gate, &up)?;
        Ok(())
    }

    fn mix(&mut self, experts: &Experts<W>, activation: Activation) -> Result<()> {
        let y = mixed(experts, &self.h, activation, self.model.ops)?;
        self.x = (&self.x + y)?;
        Ok(())
    }

    fn add_projected(&mut self, map: &Linear<W>, norm: Option<&Tensor>) -> Result<()> {
        let mut y = self.project(map, &self.m)?;
        if let Some(weight) = norm {
            y = self.norm(&y, weight)?;
        }
        self.x = (&self.x + y)?;
        Ok(())
    }
}
