//! Gated activations (arXiv 2002.05202): SwiGLU, silu(gate) · up, and GeGLU, gelu(gate) · up.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels::{geglu_backward, geglu_forward, swiglu_backward, swiglu_forward};
use super::{Ops, f32_slice};
#[cfg(feature = "cuda")]
use crate::cuda::{
    learning::{Input, run},
    training,
};

/// Elements that one task takes: large enough to pay for the hand-over, small enough for a cache.
const CHUNK: usize = 8192;

/// What gates an MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    #[default]
    Silu,
    /// GELU in its tanh form: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
}

impl Activation {
    /// out ← activation(gate) · up.
    pub fn apply(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match self {
            Activation::Silu => swiglu_forward(gate, up, out),
            Activation::GeluTanh => geglu_forward(gate, up, out),
        }
    }

    /// d_gate, d_up ← the gradients in both of what has the gradient `g` in activation(gate) · up.
    pub fn gradient(
        self,
        gate: &[f32],
        up: &[f32],
        g: &[f32],
        d_gate: &mut [f32],
        d_up: &mut [f32],
    ) {
        match self {
            Activation::Silu => swiglu_backward(gate, up, g, d_gate, d_up),
            Activation::GeluTanh => geglu_backward(gate, up, g, d_gate, d_up),
        }
    }
}

/// activation(gate) · up, element by element; both of one shape.
pub fn gated(ops: Ops, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match (ops, activation) {
        (Ops::Plain, Activation::Silu) => gate.silu()? * up,
        (Ops::Plain, Activation::GeluTanh) => gate.gelu()? * up,
        (Ops::Fused | Ops::Device, _) if gate.shape() != up.shape() => bail!(
            "gated: the gate is {:?}, what it gates {:?}",
            gate.shape(),
            up.shape()
        ),
        (Ops::Fused | Ops::Device, _) => gate
            .contiguous()?
            .apply_op2(&up.contiguous()?, Gated(activation)),
    }
}

struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (
            f32_slice(s1, l1, self.name())?,
            f32_slice(s2, l2, self.name())?,
        );
        let mut y = vec![0f32; gate.len()];
        y.par_chunks_mut(CHUNK)
            .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
            .for_each(|(y, (gate, up))| self.0.apply(gate, up, y));
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        l1: &Layout,
        up: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (gelu, count) = (self.0 == Activation::GeluTanh, l1.shape().elem_count());
        let inputs = [Input::F32(gate, l1), Input::F32(up, l2)];
        let y = run(self.name(), inputs, count, |[gate, up], y| {
            training::gate_forward(gelu, count, [gate, up, y])
        })?;
        Ok((y, l1.shape().clone()))
    }

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

impl CustomOp3 for GatedBackward {
    fn name(&self) -> &'static str {
        "gated-backward"
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
        let (gate, up) = (
            f32_slice(s1, l1, self.name())?,
            f32_slice(s2, l2, self.name())?,
        );
        let g = f32_slice(s3, l3, self.name())?;
        let mut both = vec![0f32; 2 * g.len()];
        let (d_gate, d_up) = both.split_at_mut(g.len());
        d_gate
            .par_chunks_mut(CHUNK)
            .zip(d_up.par_chunks_mut(CHUNK))
            .zip(
                gate.par_chunks(CHUNK)
                    .zip(up.par_chunks(CHUNK))
                    .zip(g.par_chunks(CHUNK)),
            )
            .for_each(|((d_gate, d_up), ((gate, up), g))| {
                self.0.gradient(gate, up, g, d_gate, d_up);
            });
        Ok((CpuStorage::F32(both), two_of(l1)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        l1: &Layout,
        up: &CudaStorage,
        l2: &Layout,
        g: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (gelu, count) = (self.0 == Activation::GeluTanh, l1.shape().elem_count());
        let inputs = [Input::F32(gate, l1), Input::F32(up, l2), Input::F32(g, l3)];
        let both = run(self.name(), inputs, 2 * count, |[gate, up, g], d_gate| {
            let d_up = d_gate + (count * size_of::<f32>()) as u64;
            training::gate_backward(gelu, count, [gate, up, g, d_gate, d_up])
        })?;
        Ok((both, two_of(l1)))
    }
}

/// The shape of two tensors like one, stacked.
fn two_of(layout: &Layout) -> Shape {
    let dims = layout.shape().dims().iter().copied();
    Shape::from(std::iter::once(2).chain(dims).collect::<Vec<usize>>())
}
