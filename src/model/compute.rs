//! The order of a decoder layer's steps, said once for everything that runs them.
//!
//! Two machines implement [`Compute`]: candle's tensors, which training differentiates and any
//! device runs ([`super::decoder`]), and the CPU executor's buffers, which serve
//! ([`super::cpu`]). Each has four registers: x, the residual stream; h, its normalised form; the
//! heads q, k and v; and m, what a sublayer's last projection reads.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::decoder::{Layer, Model};
use super::linear::Linear;
use super::ops::{Activation, AttentionShape, RopeTable};
use super::spec::{ModelSpec, RopeSpec};

/// A machine that runs the steps of a layer.
pub trait Compute {
    /// h ← norm(x), scaled by `weight`.
    fn normalise(&mut self, weight: &Tensor) -> Result<()>;

    /// q, k, v ← the layer's projections of h; q and k normalised per head where the family does
    /// that, and rotated. With a cache, k and v of layer `index` are written to it.
    fn heads(&mut self, index: usize, layer: &Layer, rope: &RopeTable) -> Result<()>;

    /// m ← attention of q over the keys and values of layer `index`.
    fn attend(&mut self, index: usize, shape: &AttentionShape) -> Result<()>;

    /// m ← activation(gate h) · up h.
    fn gate(&mut self, gate: &Linear, up: &Linear, activation: Activation) -> Result<()>;

    /// x ← x + map m, normalised first where the family does that.
    fn add_projected(&mut self, map: &Linear, norm: Option<&Tensor>) -> Result<()>;
}

/// Runs layers on a machine whose x holds what enters the first of them.
pub fn run_layers(
    machine: &mut impl Compute,
    model: &Model,
    ropes: &Ropes,
    range: Range<usize>,
) -> Result<()> {
    for index in range {
        let layer = &model.layers[index];
        let shape = model.spec.attention(index);
        let [_, _, _, output] = &layer.attention;
        let [gate, up, down] = &layer.mlp;
        let [after_attention, after_mlp] = match &layer.output_norms {
            Some([a, b]) => [Some(a), Some(b)],
            None => [None, None],
        };
        machine.normalise(&layer.attention_norm)?;
        machine.heads(index, layer, ropes.of(&shape))?;
        machine.attend(index, &shape)?;
        machine.add_projected(output, after_attention)?;
        machine.normalise(&layer.mlp_norm)?;
        machine.gate(gate, up, model.spec.variant.activation)?;
        machine.add_projected(down, after_mlp)?;
    }
    Ok(())
}

/// The rotations of a batch's positions, made once for all layers.
pub struct Ropes {
    full: RopeTable,
    /// Of layers with a window, where theirs differ.
    local: Option<RopeTable>,
}

impl Ropes {
    /// Rotations for `positions`.
    pub fn new(spec: &ModelSpec, positions: &[u32]) -> Self {
        let table = |rope: &RopeSpec| RopeTable::new(positions, &rope.frequencies(spec.head_dim));
        Self {
            full: table(&spec.rope),
            local: spec.variant.local_rope.as_ref().map(table),
        }
    }

    /// Those of a layer that attends like this.
    pub(super) fn of(&self, shape: &AttentionShape) -> &RopeTable {
        match &self.local {
            Some(local) if shape.window.is_some() => local,
            _ => &self.full,
        }
    }
}
