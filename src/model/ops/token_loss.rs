//! Per-token losses from logits, in f32.

use candle_core::{D, Result, Tensor, bail};

use super::Ops;
use crate::cuda;

/// log softmax(logits)[target] for each row of `logits` (rows, vocabulary): shape (rows).
pub fn token_logprobs(ops: Ops, logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (rows, vocabulary) = logits.dims2()?;
    if rows != targets.len() || targets.iter().any(|&t| t as usize >= vocabulary) {
        bail!(
            "token_logprobs: {} targets do not fit {rows} rows over {vocabulary} tokens",
            targets.len()
        );
    }
    match ops {
        Ops::Plain => {
            let index = Tensor::from_slice(targets, (rows, 1), logits.device())?;
            log_softmax(logits)?.gather(&index, 1)?.squeeze(1)
        }
        Ops::Device => cuda::ops::token_logprobs(logits, targets),
    }
}

/// KL(reference ‖ policy) over the vocabulary for each row, from both models' logits
/// (rows, vocabulary): shape (rows). Only the policy gets a gradient.
pub fn kl_from_reference(ops: Ops, reference: &Tensor, policy: &Tensor) -> Result<Tensor> {
    if reference.dims2()? != policy.dims2()? {
        bail!(
            "kl_from_reference: shapes differ, {:?} and {:?}",
            reference.shape(),
            policy.shape()
        );
    }
    match ops {
        Ops::Plain => {
            let (q, p) = (log_softmax(reference)?.detach(), log_softmax(policy)?);
            (q.exp()? * (q - p)?)?.sum(D::Minus1)
        }
        Ops::Device => cuda::ops::kl_from_reference(reference, policy),
    }
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
