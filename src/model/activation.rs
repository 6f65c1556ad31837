//! Gated activations (arXiv 2002.05202): SwiGLU, silu(gate) · up, and GeGLU, gelu(gate) · up.

/// What gates an MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    #[default]
    Silu,
    /// GELU in its tanh form: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
}
