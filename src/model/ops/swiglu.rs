//! SwiGLU (arXiv 2002.05202): silu(gate) · up.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::kernels::{swiglu_backward, swiglu_forward};
use super::{Ops, f32_slice};

/// Elements that one task takes: large enough to pay for the hand-over, small enough for a cache.
const CHUNK: usize = 8192;

/// silu(gate) · up, element by element; both of one shape.
pub fn swiglu(ops: Ops, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match ops {
        Ops::Plain => gate.silu()? * up,
        Ops::Fused => gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu),
    }
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
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
            .for_each(|(y, (gate, up))| swiglu_forward(gate, up, y));
        Ok((CpuStorage::F32(y), l1.shape().clone()))
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
            &SwiGluBackward,
        )?;
        Ok((Some(both.get(0)?), Some(both.get(1)?)))
    }
}

/// Both gradients in one pass, stacked on a new first dimension.
struct SwiGluBackward;

impl CustomOp3 for SwiGluBackward {
    fn name(&self) -> &'static str {
        "swiglu-backward"
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
                swiglu_backward(gate, up, g, d_gate, d_up)
            });
        let shape: Vec<usize> = std::iter::once(2)
            .chain(l1.shape().dims().iter().copied())
            .collect();
        Ok((CpuStorage::F32(both), Shape::from(shape)))
    }
}
