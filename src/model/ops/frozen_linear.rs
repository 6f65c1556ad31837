//! x Wᵀ for a weight that is never trained.

use candle_core::{Result, Tensor};

use super::mixed_linear::mixed_linear;

/// `x` (rows, in) times `weight` (out, in) transposed: (rows, out).
pub fn frozen_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if weight.dtype() != x.dtype() {
        return mixed_linear(x, weight);
    }
    x.matmul(&weight.t()?)
}
