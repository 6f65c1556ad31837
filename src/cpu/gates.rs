//! Gated activations on slices.

use realign_model::Activation;
use realign_model::vector::{geglu_backward, geglu_forward, swiglu_backward, swiglu_forward};

/// out ← activation(gate) · up.
pub(crate) fn gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match activation {
        Activation::Silu => swiglu_forward(gate, up, out),
        Activation::GeluTanh => geglu_forward(gate, up, out),
    }
}

/// d_gate, d_up ← the gradients in both of what has the gradient `g` in activation(gate) · up.
pub(crate) fn gated_gradient(
    activation: Activation,
    (gate, up): (&[f32], &[f32]),
    g: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    match activation {
        Activation::Silu => swiglu_backward(gate, up, g, d_gate, d_up),
        Activation::GeluTanh => geglu_backward(gate, up, g, d_gate, d_up),
    }
}
