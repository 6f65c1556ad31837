//! Memory that training takes where candle differentiates the decoder. Pure.

use realign_model::ModelSpec;
use realign_model::memory::Training;

use crate::stepwise::head_rows;

/// Bytes of an f32.
const FLOAT: usize = 4;
/// Full-size tensors of one width that a layer leaves for the backward pass, counted over candle's
/// primitives, of which our own kernels keep less: norms, residuals and projections.
const SAVED_HIDDEN: usize = 12;
/// As above, of q, k and v together: projections and rotations.
const SAVED_HEADS: usize = 7;
/// As above, of the MLP's inner width: gate, up, activation, product.
const SAVED_INNER: usize = 5;
/// As above, of the attention scores: scores, scale, cap, mask, shift, exponent, weights.
const SAVED_SCORES: usize = 7;
/// Tensors of the vocabulary's width per row of a loss, at most: logits of model and reference, their
/// roundings to 16 bits, the gradient before and after it was added to what was there.
const SAVED_LOGITS: usize = 6;
/// As above, where logits are capped: quotient, tangent, product.
const SAVED_CAPS: usize = 3;

fn product(factors: &[usize]) -> usize {
    factors
        .iter()
        .fold(1, |all: usize, n| all.saturating_mul(*n))
}

/// What one layer leaves for its gradients, where candle differentiates it.
pub fn layer_bytes(spec: &ModelSpec, rows: usize, longest: usize) -> usize {
    let queries = spec.heads * spec.head_dim;
    let heads = queries + 2 * spec.kv_heads * spec.head_dim;
    let saved =
        SAVED_HIDDEN * spec.hidden_size + SAVED_HEADS * heads + SAVED_INNER * spec.inner_width();
    let scores = product(&[SAVED_SCORES, spec.heads, rows, longest, FLOAT]);
    product(&[rows, saved, FLOAT]).saturating_add(scores)
}

/// What all adapted layers hold at once, if one leaves `layer` bytes.
pub fn activations(spec: &ModelSpec, layer: usize, t: &Training) -> usize {
    match t.recompute {
        // One layer's, and their gradients. What enters each layer, what leaves the last, and the
        // gradient in it.
        true => {
            let states = product(&[t.layers + 2, t.rows, spec.hidden_size, FLOAT]);
            product(&[layer, 2]).saturating_add(states)
        }
        // Every layer's until the backward pass, and one layer's gradients.
        false => product(&[layer, t.layers + 1]),
    }
}

/// What the losses of response tokens hold at once, on a device.
pub fn logits(spec: &ModelSpec, t: &Training) -> usize {
    let rows = if t.recompute {
        t.rows.min(head_rows(spec.vocab_size, true))
    } else {
        t.rows
    };
    let caps = spec.variant.logit_cap.map_or(0, |_| SAVED_CAPS);
    product(&[SAVED_LOGITS + caps, rows, spec.vocab_size, FLOAT])
}
