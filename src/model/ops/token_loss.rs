//! Per-token losses straight from logits, in f32 with a log-sum-exp: the (rows, vocabulary)
//! log-softmax is never stored.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels::{kl_gradient, kl_sum, logsumexp, scaled_exp};
use super::{Ops, f32_slice, rows_columns};

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
        Ops::Fused => logits.contiguous()?.apply_op1(TokenLogProbs {
            targets: targets.into(),
        }),
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
        Ops::Fused => policy.contiguous()?.apply_op1(Kl {
            reference: reference.contiguous()?.detach(),
        }),
    }
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

#[derive(Clone)]
struct TokenLogProbs {
    targets: Arc<[u32]>,
}

impl CustomOp1 for TokenLogProbs {
    fn name(&self) -> &'static str {
        "token-logprobs"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = f32_slice(storage, layout, self.name())?;
        let (rows, vocabulary) = rows_columns(layout)?;
        let values: Vec<f32> = logits
            .par_chunks(vocabulary)
            .zip(self.targets.par_iter())
            .map(|(row, &target)| row[target as usize] - logsumexp(row))
            .collect();
        Ok((CpuStorage::F32(values), Shape::from(rows)))
    }

    fn bwd(&self, logits: &Tensor, _values: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let backward = TokenLogProbsBackward(self.clone());
        Ok(Some(
            logits
                .contiguous()?
                .apply_op2_no_bwd(&grad.contiguous()?, &backward)?,
        ))
    }
}

/// g · (onehot(target) − softmax(logits)).
struct TokenLogProbsBackward(TokenLogProbs);

impl CustomOp2 for TokenLogProbsBackward {
    fn name(&self) -> &'static str {
        "token-logprobs-backward"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (logits, grad) = (
            f32_slice(s1, l1, self.name())?,
            f32_slice(s2, l2, self.name())?,
        );
        let (_, vocabulary) = rows_columns(l1)?;
        let mut d_logits = vec![0f32; logits.len()];
        d_logits
            .par_chunks_mut(vocabulary)
            .zip(logits.par_chunks(vocabulary))
            .zip(grad.par_iter().zip(self.0.targets.par_iter()))
            .for_each(|((d, row), (&g, &target))| {
                if g != 0.0 {
                    scaled_exp(row, logsumexp(row), -g, d);
                    d[target as usize] += g;
                }
            });
        Ok((CpuStorage::F32(d_logits), l1.shape().clone()))
    }
}

#[derive(Clone)]
struct Kl {
    /// The reference model's logits, same shape as the policy's.
    reference: Tensor,
}

impl Kl {
    fn with_reference<R>(&self, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let (guard, layout) = self.reference.storage_and_layout();
        match &*guard {
            candle_core::Storage::Cpu(storage) => Ok(f(f32_slice(storage, layout, "kl")?)),
            _ => bail!("kl: the reference logits are not on the CPU"),
        }
    }
}

impl CustomOp1 for Kl {
    fn name(&self) -> &'static str {
        "kl"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let policy = f32_slice(storage, layout, self.name())?;
        let (rows, vocabulary) = rows_columns(layout)?;
        let values: Vec<f32> = self.with_reference(|reference| {
            policy
                .par_chunks(vocabulary)
                .zip(reference.par_chunks(vocabulary))
                .map(|(p, q)| kl_sum(q, logsumexp(q), p, logsumexp(p)) as f32)
                .collect()
        })?;
        Ok((CpuStorage::F32(values), Shape::from(rows)))
    }

    fn bwd(&self, policy: &Tensor, _values: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let backward = KlBackward(self.clone());
        Ok(Some(
            policy
                .contiguous()?
                .apply_op2_no_bwd(&grad.contiguous()?, &backward)?,
        ))
    }
}

/// g · (softmax(policy) − softmax(reference)).
struct KlBackward(Kl);

impl CustomOp2 for KlBackward {
    fn name(&self) -> &'static str {
        "kl-backward"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (policy, grad) = (
            f32_slice(s1, l1, self.name())?,
            f32_slice(s2, l2, self.name())?,
        );
        let (_, vocabulary) = rows_columns(l1)?;
        let mut d_policy = vec![0f32; policy.len()];
        self.0.with_reference(|reference| {
            d_policy
                .par_chunks_mut(vocabulary)
                .zip(
                    policy
                        .par_chunks(vocabulary)
                        .zip(reference.par_chunks(vocabulary)),
                )
                .zip(grad.par_iter())
                .for_each(|((d, (p, q)), &g)| {
                    if g != 0.0 {
                        kl_gradient(p, logsumexp(p), q, logsumexp(q), g, d);
                    }
                });
        })?;
        Ok((CpuStorage::F32(d_policy), l1.shape().clone()))
    }
}
