//! The operations that training differentiates, by our own kernels, each with its own backward.
//!
//! Each operation is written once for every kind of storage that kernels can be launched on
//! ([`Storage`]): a CUDA device's, and in tests the host's, where the emulator runs the same launches.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail,
};

use realign_model::{Activation, RopeTable};
use realign_reference::TensorOps;
use realign_reference::ops::{check_shapes, check_targets};

use super::storage::{Input, Storage};
use super::training;

/// The operations by our own kernels.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kernels;

impl TensorOps for Kernels {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        rms_norm(x, weight, eps)
    }

    fn rope(&self, x: &Tensor, table: &RopeTable) -> Result<Tensor> {
        rope(x, table)
    }

    fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gated(activation, gate, up)
    }

    fn token_logprobs(&self, logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
        check_targets(logits, targets)?;
        token_logprobs(logits, targets)
    }

    fn kl_from_reference(&self, reference: &Tensor, policy: &Tensor) -> Result<Tensor> {
        check_shapes(reference, policy)?;
        kl_from_reference(reference, policy)
    }
}

/// The `cpu_fwd` and `cuda_fwd` of an operation whose generic `forward` takes these arguments.
macro_rules! forward {
    ($($storage:ident $layout:ident),+) => {
        fn cpu_fwd(
            &self,
            $($storage: &CpuStorage, $layout: &Layout),+
        ) -> Result<(CpuStorage, Shape)> {
            self.forward($(($storage, $layout)),+)
        }

        #[cfg(feature = "cuda")]
        fn cuda_fwd(
            &self,
            $($storage: &candle_core::CudaStorage, $layout: &Layout),+
        ) -> Result<(candle_core::CudaStorage, Shape)> {
            self.forward($(($storage, $layout)),+)
        }
    };
}

/// A storage and how its elements lie.
type Stored<'a, S> = (&'a S, &'a Layout);

/// (rows, columns) of an argument seen as a matrix over its last dimension.
fn rows_columns(layout: &Layout) -> Result<(usize, usize)> {
    let columns = layout.shape().dims().last().copied().unwrap_or(0);
    if columns == 0 {
        bail!("expected a matrix with at least one column, got {layout:?}");
    }
    Ok((layout.shape().elem_count() / columns, columns))
}

/// The address behind `count` floats.
fn after(address: u64, count: usize) -> u64 {
    address + (count * size_of::<f32>()) as u64
}

/// Normalises each row of `x` (rows, width) and scales it by `weight` (width), which gets no
/// gradient.
///
/// # Errors
/// If the weight is of another width, or the device refuses.
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if weight.dims() != [x.dim(D::Minus1)?] {
        bail!(
            "rms-norm: a weight of {:?} does not scale rows of {}",
            weight.shape(),
            x.dim(D::Minus1)?
        );
    }
    x.contiguous()?.apply_op1(RmsNorm {
        weight: weight.contiguous()?.detach(),
        eps: eps as f32,
    })
}

#[derive(Clone)]
struct RmsNorm {
    /// Shape (width).
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    fn forward<S: Storage>(&self, (x, layout): Stored<S>) -> Result<(S, Shape)> {
        let (rows, width) = rows_columns(layout)?;
        let (guard, weight_layout) = self.weight.storage_and_layout();
        let weight = Input::F32(S::of(&guard)?, weight_layout);
        let inputs = [Input::F32(x, layout), weight];
        let y = S::run(self.name(), inputs, rows * width, |[x, weight], y| {
            training::norm_forward([rows, width], self.eps, [x, weight, y])
        })?;
        Ok((y, layout.shape().clone()))
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    forward!(s1 l1);

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = x
            .contiguous()?
            .apply_op2_no_bwd(&grad.contiguous()?, &RmsNormBackward(self.clone()))?;
        Ok(Some(dx))
    }
}

/// dx = r · (g w − x · r² · mean(g w x)), with r = 1/rms(x).
struct RmsNormBackward(RmsNorm);

impl RmsNormBackward {
    fn forward<S: Storage>(&self, (x, l1): Stored<S>, (g, l2): Stored<S>) -> Result<(S, Shape)> {
        let (rows, width) = rows_columns(l1)?;
        let (guard, weight_layout) = self.0.weight.storage_and_layout();
        let weight = Input::F32(S::of(&guard)?, weight_layout);
        let inputs = [Input::F32(x, l1), weight, Input::F32(g, l2)];
        let dx = S::run(self.name(), inputs, rows * width, |[x, weight, g], dx| {
            training::norm_backward([rows, width], self.0.eps, [x, weight, g, dx])
        })?;
        Ok((dx, l1.shape().clone()))
    }
}

impl CustomOp2 for RmsNormBackward {
    fn name(&self) -> &'static str {
        "rms-norm-backward"
    }

    forward!(s1 l1, s2 l2);
}

/// Rotates every head of `x` (rows, heads · head_dim) by its row's angles.
///
/// # Errors
/// If the table is for other rows or heads, or the device refuses.
fn rope(x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    let [cos, sin] = table.on(x.device())?;
    if table.head_dim() != 2 * cos.dim(1)? {
        bail!("rope: a part of every head is rotated, which the CUDA kernels do not do");
    }
    x.contiguous()?.apply_op1(Rope {
        cos,
        sin,
        direction: 1.0,
    })
}

#[derive(Clone)]
struct Rope {
    /// Cosines and sines, (rows, head_dim / 2), on the device of what is rotated.
    cos: Tensor,
    sin: Tensor,
    /// 1 rotates forward; −1 is the inverse rotation, which is also the gradient.
    direction: f32,
}

impl Rope {
    fn forward<S: Storage>(&self, (x, layout): Stored<S>) -> Result<(S, Shape)> {
        let (rows, width) = rows_columns(layout)?;
        let (angles, half) = self.cos.dims2()?;
        if rows != angles || !width.is_multiple_of(2 * half) {
            bail!(
                "rope: {rows} rows of {width} do not fit a table of {angles} rows, head_dim {}",
                2 * half
            );
        }
        let (cos, cos_layout) = self.cos.storage_and_layout();
        let (sin, sin_layout) = self.sin.storage_and_layout();
        let inputs = [
            Input::F32(x, layout),
            Input::F32(S::of(&cos)?, cos_layout),
            Input::F32(S::of(&sin)?, sin_layout),
        ];
        let y = S::run(self.name(), inputs, rows * width, |[x, cos, sin], y| {
            training::rotate([rows, width, half], self.direction, [x, cos, sin, y])
        })?;
        Ok((y, layout.shape().clone()))
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    forward!(s1 l1);

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let inverse = Rope {
            direction: -self.direction,
            ..self.clone()
        };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&inverse)?))
    }
}

/// activation(gate) · up, element by element.
///
/// # Errors
/// If the shapes differ, or the device refuses.
fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        bail!(
            "gated: the gate is {:?}, what it gates {:?}",
            gate.shape(),
            up.shape()
        );
    }
    gate.contiguous()?
        .apply_op2(&up.contiguous()?, Gated(activation))
}

struct Gated(Activation);

impl Gated {
    fn forward<S: Storage>(
        &self,
        (gate, l1): Stored<S>,
        (up, l2): Stored<S>,
    ) -> Result<(S, Shape)> {
        let (gelu, count) = (self.0 == Activation::GeluTanh, l1.shape().elem_count());
        let inputs = [Input::F32(gate, l1), Input::F32(up, l2)];
        let y = S::run(self.name(), inputs, count, |[gate, up], y| {
            training::gate_forward(gelu, count, [gate, up, y])
        })?;
        Ok((y, l1.shape().clone()))
    }
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    forward!(s1 l1, s2 l2);

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let both = gate.contiguous()?.apply_op3_no_bwd(
            &up.contiguous()?,
            &grad.contiguous()?,
            &GatedBackward(self.0),
        )?;
        Ok((Some(both.get(0)?), Some(both.get(1)?)))
    }
}

/// Both gradients in one pass, stacked on a new first dimension.
struct GatedBackward(Activation);

impl GatedBackward {
    fn forward<S: Storage>(
        &self,
        (gate, l1): Stored<S>,
        (up, l2): Stored<S>,
        (g, l3): Stored<S>,
    ) -> Result<(S, Shape)> {
        let (gelu, count) = (self.0 == Activation::GeluTanh, l1.shape().elem_count());
        let inputs = [Input::F32(gate, l1), Input::F32(up, l2), Input::F32(g, l3)];
        let both = S::run(self.name(), inputs, 2 * count, |[gate, up, g], d_gate| {
            let d_up = after(d_gate, count);
            training::gate_backward(gelu, count, [gate, up, g, d_gate, d_up])
        })?;
        let dims = l1.shape().dims().iter().copied();
        let stacked: Vec<usize> = std::iter::once(2).chain(dims).collect();
        Ok((both, Shape::from(stacked)))
    }
}

impl CustomOp3 for GatedBackward {
    fn name(&self) -> &'static str {
        "gated-backward"
    }

    forward!(s1 l1, s2 l2, s3 l3);
}

/// log softmax(logits)[target] for each row of `logits` (rows, vocabulary): shape (rows). There is
/// a target for each row, all in the vocabulary.
///
/// # Errors
/// If the device refuses.
fn token_logprobs(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::from_slice(targets, targets.len(), logits.device())?;
    let rows = targets.dim(0)?;
    let both = logits.contiguous()?.apply_op1(TokenLogProbs { targets })?;
    both.narrow(0, 0, rows)
}

/// The value of each row, then its log Σ exp, which the backward needs: (2 rows).
#[derive(Clone)]
struct TokenLogProbs {
    /// u32, (rows), on the logits' device.
    targets: Tensor,
}

impl TokenLogProbs {
    fn forward<S: Storage>(&self, (logits, layout): Stored<S>) -> Result<(S, Shape)> {
        let (rows, vocabulary) = rows_columns(layout)?;
        let (guard, targets) = self.targets.storage_and_layout();
        let targets = Input::U32(S::of(&guard)?, targets);
        let inputs = [Input::F32(logits, layout), targets];
        let both = S::run(self.name(), inputs, 2 * rows, |[logits, targets], out| {
            let at = [logits, targets, out, after(out, rows)];
            training::logprob_forward([rows, vocabulary], at)
        })?;
        Ok((both, Shape::from(2 * rows)))
    }
}

impl CustomOp1 for TokenLogProbs {
    fn name(&self) -> &'static str {
        "token-logprobs"
    }

    forward!(s1 l1);

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

impl TokenLogProbsBackward {
    fn forward<S: Storage>(
        &self,
        (logits, l1): Stored<S>,
        (sums, l2): Stored<S>,
        (grad, l3): Stored<S>,
    ) -> Result<(S, Shape)> {
        let (rows, vocabulary) = rows_columns(l1)?;
        let (guard, targets) = self.0.targets.storage_and_layout();
        let inputs = [
            Input::F32(logits, l1),
            Input::U32(S::of(&guard)?, targets),
            Input::F32(sums, l2),
            Input::F32(grad, l3),
        ];
        let launch = |[logits, targets, sums, g]: [u64; 4], d| {
            training::logprob_backward([rows, vocabulary], [logits, targets, sums, g, d])
        };
        let d = S::run(self.name(), inputs, rows * vocabulary, launch)?;
        Ok((d, l1.shape().clone()))
    }
}

impl CustomOp3 for TokenLogProbsBackward {
    fn name(&self) -> &'static str {
        "token-logprobs-backward"
    }

    forward!(s1 l1, s2 l2, s3 l3);
}

/// KL(reference ‖ policy) over the vocabulary for each row, from both models' logits
/// (rows, vocabulary) of one shape: shape (rows). Only the policy gets a gradient.
///
/// # Errors
/// If the device refuses.
fn kl_from_reference(reference: &Tensor, policy: &Tensor) -> Result<Tensor> {
    let reference = reference.contiguous()?.detach();
    let all = policy.contiguous()?.apply_op1(Kl { reference })?;
    all.narrow(0, 0, policy.dim(0)?)
}

/// The value of each row, then for each row the log Σ exp of the policy's logits and of the
/// reference's, which the backward needs: (3 rows).
#[derive(Clone)]
struct Kl {
    /// The reference model's logits, same shape as the policy's.
    reference: Tensor,
}

impl Kl {
    fn forward<S: Storage>(&self, (policy, layout): Stored<S>) -> Result<(S, Shape)> {
        let (rows, vocabulary) = rows_columns(layout)?;
        let (guard, reference) = self.reference.storage_and_layout();
        let inputs = [
            Input::F32(policy, layout),
            Input::F32(S::of(&guard)?, reference),
        ];
        let all = S::run(self.name(), inputs, 3 * rows, |[p, q], out| {
            training::kl_forward([rows, vocabulary], [p, q, out, after(out, rows)])
        })?;
        Ok((all, Shape::from(3 * rows)))
    }
}

impl CustomOp1 for Kl {
    fn name(&self) -> &'static str {
        "kl"
    }

    forward!(s1 l1);

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

impl KlBackward {
    fn forward<S: Storage>(
        &self,
        (policy, l1): Stored<S>,
        (sums, l2): Stored<S>,
        (grad, l3): Stored<S>,
    ) -> Result<(S, Shape)> {
        let (rows, vocabulary) = rows_columns(l1)?;
        let (guard, reference) = self.0.reference.storage_and_layout();
        let inputs = [
            Input::F32(policy, l1),
            Input::F32(S::of(&guard)?, reference),
            Input::F32(sums, l2),
            Input::F32(grad, l3),
        ];
        let launch = |[p, q, sums, g]: [u64; 4], d| {
            training::kl_backward([rows, vocabulary], [p, q, sums, g, d])
        };
        let d = S::run(self.name(), inputs, rows * vocabulary, launch)?;
        Ok((d, l1.shape().clone()))
    }
}

impl CustomOp3 for KlBackward {
    fn name(&self) -> &'static str {
        "kl-backward"
    }

    forward!(s1 l1, s2 l2, s3 l3);
}
