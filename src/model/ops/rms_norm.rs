//! RMSNorm (arXiv 1910.07467): y = x / √(mean(x²) + ε) · w.

use candle_core::{D, Result, Tensor};

use super::Ops;
use crate::cuda;

/// Normalises each row of `x` (rows, width) and scales it by `weight` (width). The weight is
/// frozen: only x gets a gradient.
pub fn rms_norm(ops: Ops, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    match ops {
        Ops::Plain => {
            let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
            x.broadcast_div(&(mean_square + eps)?.sqrt()?)?
                .broadcast_mul(weight)
        }
        Ops::Device => cuda::ops::rms_norm(x, weight, eps),
    }
}
