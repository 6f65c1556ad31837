//! Per-token losses straight from logits, in f32 with a log-sum-exp: the (rows, vocabulary)
//! log-softmax is never stored.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, D, Layout, Result, Shape, Storage, Tensor, bail,
};
use rayon::prelude::*;

use super::kernels::{kl_gradient, kl_sum, logsumexp, scaled_exp};
use super::{Ops, f32_slice, rows_columns, with_f32};
#[cfg(feature = "cuda")]
use crate::cuda::{
    learning::{Input, run},
    training,
};

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
        Ops::Fused | Ops::Device => {
            let targets = Tensor::from_slice(targets, rows, logits.device())?;
            let both = logits.contiguous()?.apply_op1(TokenLogProbs { targets })?;
            both.narrow(0, 0, rows)
        }
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
        Ops::Fused | Ops::Device => {
            let reference = reference.contiguous()?.detach();
            let all = policy.contiguous()?.apply_op1(Kl { reference })?;
            all.narrow(0, 0, policy.dim(0)?)
        }
    }
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// The value of each row, then its log Σ exp, which the backward needs: (2 rows).
#[derive(Clone)]
struct TokenLogProbs {
    /// u32, (rows), on the logits' device.
    targets: Tensor,
}

impl TokenLogProbs {
    fn with_targets<R>(&self, f: impl FnOnce(&[u32]) -> R) -> Result<R> {
        let (guard, layout) = self.targets.storage_and_layout();
        match (&*guard, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::U32(targets)), Some((start, end))) => {
                Ok(f(&targets[start..end]))
            }
            _ => bail!("token-logprobs: the targets are not beside the logits"),
        }
    }
}

impl CustomOp1 for TokenLogProbs {
    fn name(&self) -> &'static str {
        "token-logprobs"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = f32_slice(storage, layout, self.name())?;
        let (rows, vocabulary) = rows_columns(layout)?;
        let mut sums: Vec<f32> = logits.par_chunks(vocabulary).map(logsumexp).collect();
        let mut both: Vec<f32> = self.with_targets(|targets| {
            let of = |(row, target): (usize, &u32)| logits[row * vocabulary + *target as usize];
            let values = targets.iter().enumerate().zip(&sums);
            values.map(|(at, sum)| of(at) - sum).collect()
        })?;
        both.append(&mut sums);
        Ok((CpuStorage::F32(both), Shape::from(2 * rows)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, vocabulary) = rows_columns(layout)?;
        let (guard, targets) = self.targets.storage_and_layout();
        let inputs = [Input::F32(logits, layout), Input::tokens(&guard, targets)?];
        let both = run(self.name(), inputs, 2 * rows, |[logits, targets], out| {
            let at = [logits, targets, out, after(out, rows)];
            training::logprob_forward([rows, vocabulary], at)
        })?;
        Ok((both, Shape::from(2 * rows)))
    }

    fn bwd(&self, logits: &Tensor, values: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let rows = logits.dim(0)?;
        let sums = values.narrow(0, rows, rows)?;
        let grad = grad.narrow(0, 0, rows)?.contiguous()?;
        let backward = TokenLogProbsBackward(self.clone());
        let logits = logits.contiguous()?;
        Ok(Some(logits.apply_op3_no_bwd(&sums, &grad, &backward)?))
    }
}

/// g · (onehot(target) − softmax(logits)), from the logits, their log Σ exp and g.
struct TokenLogProbsBackward(TokenLogProbs);

impl CustomOp3 for TokenLogProbsBackward {
    fn name(&self) -> &'static str {
        "token-logprobs-backward"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let logits = f32_slice(s1, l1, self.name())?;
        let sums = f32_slice(s2, l2, self.name())?;
        let grad = f32_slice(s3, l3, self.name())?;
        let (_, vocabulary) = rows_columns(l1)?;
        let mut d_logits = vec![0f32; logits.len()];
        self.0.with_targets(|targets| {
            d_logits
                .par_chunks_mut(vocabulary)
                .zip(logits.par_chunks(vocabulary).zip(sums))
                .zip(grad.par_iter().zip(targets))
                .for_each(|((d, (row, &sum)), (&g, &target))| {
                    if g != 0.0 {
                        scaled_exp(row, sum, -g, d);
                        d[target as usize] += g;
                    }
                });
        })?;
        Ok((CpuStorage::F32(d_logits), l1.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        logits: &CudaStorage,
        l1: &Layout,
        sums: &CudaStorage,
        l2: &Layout,
        grad: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (rows, vocabulary) = rows_columns(l1)?;
        let (guard, targets) = self.0.targets.storage_and_layout();
        let inputs = [
            Input::F32(logits, l1),
            Input::tokens(&guard, targets)?,
            Input::F32(sums, l2),
            Input::F32(grad, l3),
        ];
        let count = rows * vocabulary;
        let d = run(
            self.name(),
            inputs,
            count,
            |[logits, targets, sums, g], d| {
                training::logprob_backward([rows, vocabulary], [logits, targets, sums, g, d])
            },
        )?;
        Ok((d, l1.shape().clone()))
    }
}

/// The value of each row, then for each row the log Σ exp of the policy's logits and of the
/// reference's, which the backward needs: (3 rows).
#[derive(Clone)]
struct Kl {
    /// The reference model's logits, same shape as the policy's.
    reference: Tensor,
}

impl CustomOp1 for Kl {
    fn name(&self) -> &'static str {
        "kl"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let policy = f32_slice(storage, layout, self.name())?;
        let (rows, vocabulary) = rows_columns(layout)?;
        let each: Vec<[f32; 3]> = with_f32(&self.reference, self.name(), |reference| {
            policy
                .par_chunks(vocabulary)
                .zip(reference.par_chunks(vocabulary))
                .map(|(p, q)| {
                    let (of_p, of_q) = (logsumexp(p), logsumexp(q));
                    [kl_sum(q, of_q, p, of_p) as f32, of_p, of_q]
                })
                .collect()
        })?;
        let values = each.iter().map(|e| e[0]);
        let all = values.chain(each.iter().flat_map(|e| [e[1], e[2]]));
        Ok((CpuStorage::F32(all.collect()), Shape::from(3 * rows)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, policy: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, vocabulary) = rows_columns(layout)?;
        let (guard, reference) = self.reference.storage_and_layout();
        let inputs = [
            Input::F32(policy, layout),
            Input::beside(&guard, reference)?,
        ];
        let all = run(self.name(), inputs, 3 * rows, |[p, q], out| {
            training::kl_forward([rows, vocabulary], [p, q, out, after(out, rows)])
        })?;
        Ok((all, Shape::from(3 * rows)))
    }

    fn bwd(&self, policy: &Tensor, values: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let rows = policy.dim(0)?;
        let sums = values.narrow(0, rows, 2 * rows)?;
        let grad = grad.narrow(0, 0, rows)?.contiguous()?;
        let backward = KlBackward(self.clone());
        let policy = policy.contiguous()?;
        Ok(Some(policy.apply_op3_no_bwd(&sums, &grad, &backward)?))
    }
}

/// g · (softmax(policy) − softmax(reference)), from the policy's logits, the log Σ exp of both
/// and g.
struct KlBackward(Kl);

impl CustomOp3 for KlBackward {
    fn name(&self) -> &'static str {
        "kl-backward"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let policy = f32_slice(s1, l1, self.name())?;
        let sums = f32_slice(s2, l2, self.name())?;
        let grad = f32_slice(s3, l3, self.name())?;
        let (_, vocabulary) = rows_columns(l1)?;
        let mut d_policy = vec![0f32; policy.len()];
        with_f32(&self.0.reference, self.name(), |reference| {
            d_policy
                .par_chunks_mut(vocabulary)
                .zip(
                    policy
                        .par_chunks(vocabulary)
                        .zip(reference.par_chunks(vocabulary)),
                )
                .zip(grad.par_iter().zip(sums.par_chunks(2)))
                .for_each(|((d, (p, q)), (&g, sums))| {
                    if g != 0.0 {
                        kl_gradient(p, sums[0], q, sums[1], g, d);
                    }
                });
        })?;
        Ok((CpuStorage::F32(d_policy), l1.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        policy: &CudaStorage,
        l1: &Layout,
        sums: &CudaStorage,
        l2: &Layout,
        grad: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (rows, vocabulary) = rows_columns(l1)?;
        let (guard, reference) = self.0.reference.storage_and_layout();
        let inputs = [
            Input::F32(policy, l1),
            Input::beside(&guard, reference)?,
            Input::F32(sums, l2),
            Input::F32(grad, l3),
        ];
        let d = run(
            self.name(),
            inputs,
            rows * vocabulary,
            |[p, q, sums, g], d| training::kl_backward([rows, vocabulary], [p, q, sums, g, d]),
        )?;
        Ok((d, l1.shape().clone()))
    }
}

/// The address behind `count` floats.
#[cfg(feature = "cuda")]
fn after(address: u64, count: usize) -> u64 {
    address + (count * size_of::<f32>()) as u64
}
