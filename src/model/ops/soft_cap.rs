//! The soft cap of Gemma 2 (arXiv 2408.00118, section 2): y = c · tanh(x / c).

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::kernels::{soft_cap_backward, soft_cap_in_place};
use super::{Ops, f32_slice};

/// Elements that one task takes.
const CHUNK: usize = 8192;

/// Keeps every element of `x` within ±`cap`, smoothly; the shape stays.
pub fn soft_cap(ops: Ops, x: &Tensor, cap: f32) -> Result<Tensor> {
    match ops {
        Ops::Plain | Ops::Device => plain(x, cap),
        Ops::Fused => x.contiguous()?.apply_op1(SoftCap { cap }),
    }
}

/// The differentiable form, which plain attention uses too.
pub(super) fn plain(x: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    (x / cap)?.tanh()? * cap
}

struct SoftCap {
    cap: f32,
}

impl CustomOp1 for SoftCap {
    fn name(&self) -> &'static str {
        "soft-cap"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = f32_slice(storage, layout, self.name())?.to_vec();
        y.par_chunks_mut(CHUNK)
            .for_each(|y| soft_cap_in_place(y, self.cap));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let backward = SoftCapBackward { cap: self.cap };
        let dx = y.apply_op2_no_bwd(&grad.contiguous()?, &backward)?;
        Ok(Some(dx))
    }
}

/// dx = g · (1 − (y / c)²): the output alone says how steep the cap is.
struct SoftCapBackward {
    cap: f32,
}

impl CustomOp2 for SoftCapBackward {
    fn name(&self) -> &'static str {
        "soft-cap-backward"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = f32_slice(s1, l1, self.name())?;
        let mut dx = f32_slice(s2, l2, self.name())?.to_vec();
        dx.par_chunks_mut(CHUNK)
            .zip(y.par_chunks(CHUNK))
            .for_each(|(dx, y)| soft_cap_backward(y, self.cap, dx));
        Ok((CpuStorage::F32(dx), l1.shape().clone()))
    }
}
