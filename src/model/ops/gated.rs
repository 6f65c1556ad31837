//! Gated activations (arXiv 2002.05202): SwiGLU, silu(gate) · up, and GeGLU, gelu(gate) · up.

use candle_core::{Result, Tensor};

use super::Ops;
use crate::cuda;

/// What gates an MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    #[default]
    Silu,
    /// GELU in its tanh form: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
}

/// activation(gate) · up, element by element; both of one shape.
pub fn gated(ops: Ops, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match (ops, activation) {
        (Ops::Plain, Activation::Silu) => gate.silu()? * up,
        (Ops::Plain, Activation::GeluTanh) => gate.gelu()? * up,
        (Ops::Device, _) => cuda::ops::gated(activation, gate, up),
    }
}
