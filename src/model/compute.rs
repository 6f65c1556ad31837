//! The order of a decoder layer's steps, said once for everything that runs them.
//!
//! Every backend implements [`Compute`] for what runs its forward passes. Each has four registers: x, the residual stream; h, its normalised form; the
//! heads q, k and v; and m, what a sublayer's last projection reads.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::activation::Activation;
use super::attention::AttentionShape;
use super::decoder::{Decoder, Layer, Mlp};
use super::experts::Experts;
use super::linear::Linear;
use super::rope_table::RopeTable;
use super::spec::{ModelSpec, RopeSpec};

/// A machine that runs the steps of a layer.
pub trait Compute {
    /// The form of the weights that it multiplies with.
    type Weight;

    /// h ← norm(x), scaled by `weight`.
    fn normalise(&mut self, weight: &Tensor) -> Result<()>;

    /// q, k, v ← the layer's projections of h; q and k normalised per head where the family does
    /// that, and rotated. With a cache, k and v of layer `index` are written to it.
    fn heads(&mut self, index: usize, layer: &Layer<Self::Weight>, rope: &RopeTable) -> Result<()>;

    /// m ← attention of q over the keys and values of layer `index`.
    fn attend(&mut self, index: usize, shape: &AttentionShape) -> Result<()>;

    /// m ← activation(gate h) · up h.
    fn gate(
        &mut self,
        gate: &Linear<Self::Weight>,
        up: &Linear<Self::Weight>,
        activation: Activation,
    ) -> Result<()>;

    /// x ← x + Σ w · down (activation(gate h) · up h) over the experts that the router chooses for
    /// each row, w being their weights.
    fn mix(&mut self, experts: &Experts<Self::Weight>, activation: Activation) -> Result<()>;

    /// x ← x + map m, normalised first where the family does that.
    fn add_projected(&mut self, map: &Linear<Self::Weight>, norm: Option<&Tensor>) -> Result<()>;
}

/// Runs layers on a machine whose x holds what enters the first of them.
///
/// # Errors
/// Those of the machine.
pub fn run_layers<C: Compute>(
    machine: &mut C,
    model: &Decoder<C::Weight>,
    ropes: &Ropes,
    range: Range<usize>,
) -> Result<()> {
    for index in range {
        let layer = &model.layers[index];
        let shape = model.spec.attention(index);
        let [_, _, _, output] = &layer.attention;
        let [after_attention, after_mlp] = match &layer.output_norms {
            Some([a, b]) => [Some(a), Some(b)],
            None => [None, None],
        };
        machine.normalise(&layer.attention_norm)?;
        machine.heads(index, layer, ropes.of(&shape))?;
        machine.attend(index, &shape)?;
        machine.add_projected(output, after_attention)?;
        machine.normalise(&layer.mlp_norm)?;
        let activation = model.spec.variant.activation;
        match &layer.mlp {
            Mlp::Dense([gate, up, down]) => {
                machine.gate(gate, up, activation)?;
                machine.add_projected(down, after_mlp)?;
            }
            // No family with experts has norms on outputs; `ModelSpec` is refused with both.
            Mlp::Experts(experts) => machine.mix(experts, activation)?,
        }
    }
    Ok(())
}

/// The rotations of a batch's positions, made once for all layers.
pub struct Ropes {
    full: RopeTable,
    /// Of layers that have the second rotary embedding.
    local: Option<RopeTable>,
}

impl Ropes {
    /// Rotations for `positions`.
    pub fn new(spec: &ModelSpec, positions: &[u32]) -> Self {
        let table = |rope: &RopeSpec| {
            let frequencies = rope.frequencies(spec.rotary_width());
            RopeTable::scaled(positions, &frequencies, rope.amplitude()).of_heads(spec.head_dim)
        };
        Self {
            full: table(&spec.rope),
            local: spec.variant.local_rope.as_ref().map(table),
        }
    }

    /// Those of a layer that attends like this.
    pub fn of(&self, shape: &AttentionShape) -> &RopeTable {
        match &self.local {
            Some(local) if shape.local_rope => local,
            _ => &self.full,
        }
    }
}
