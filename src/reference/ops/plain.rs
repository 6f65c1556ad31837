//! The operations by candle's differentiable primitives.

use candle_core::{D, Result, Tensor};
use realign_model::{Activation, RopeTable};

use super::{TensorOps, check_shapes, check_targets};

/// Candle's primitives: on every device, differentiable, slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl TensorOps for Plain {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean_square + eps)?.sqrt()?)?
            .broadcast_mul(weight)
    }

    fn rope(&self, x: &Tensor, table: &RopeTable) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let [cos, sin] = table.on(x.device())?;
        let half = cos.dim(1)?;
        let head_dim = table.head_dim();
        let x = x.reshape((rows, width / head_dim, head_dim))?; // (rows, heads, head_dim)
        let (cos, sin) = (cos.reshape((rows, 1, half))?, sin.reshape((rows, 1, half))?);
        let (low, high) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let rotated_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
        let rotated_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
        let still = x.narrow(2, 2 * half, head_dim - 2 * half)?;
        let parts = [rotated_low, rotated_high, still];
        let parts = if head_dim == 2 * half {
            &parts[..2]
        } else {
            &parts[..]
        };
        Tensor::cat(parts, 2)?.reshape((rows, width))
    }

    fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match activation {
            Activation::Silu => gate.silu()? * up,
            Activation::GeluTanh => gate.gelu()? * up,
        }
    }

    fn token_logprobs(&self, logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
        check_targets(logits, targets)?;
        let index = Tensor::from_slice(targets, (targets.len(), 1), logits.device())?;
        log_softmax(logits)?.gather(&index, 1)?.squeeze(1)
    }

    fn kl_from_reference(&self, reference: &Tensor, policy: &Tensor) -> Result<Tensor> {
        check_shapes(reference, policy)?;
        let (q, p) = (log_softmax(reference)?.detach(), log_softmax(policy)?);
        (q.exp()? * (q - p)?)?.sum(D::Minus1)
    }
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
