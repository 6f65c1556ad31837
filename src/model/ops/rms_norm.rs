//! RMSNorm (arXiv 1910.07467): y = x / √(mean(x²) + ε) · w.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels::dot;
use super::{Ops, f32_slice, rows_columns, with_f32};
#[cfg(feature = "cuda")]
use crate::cuda::{
    learning::{Input, run},
    training,
};

/// Normalises each row of `x` (rows, width) and scales it by `weight` (width). The weight is
/// frozen: only x gets a gradient.
pub fn rms_norm(ops: Ops, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    match ops {
        Ops::Plain => {
            let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
            x.broadcast_div(&(mean_square + eps)?.sqrt()?)?
                .broadcast_mul(weight)
        }
        Ops::Fused | Ops::Device => {
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
    }
}

#[derive(Clone)]
struct RmsNorm {
    /// Shape (width).
    weight: Tensor,
    eps: f32,
}

/// 1 / √(mean(x²) + ε).
pub fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

impl RmsNorm {
    fn inverse_rms(&self, x: &[f32]) -> f32 {
        inverse_rms(x, self.eps)
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout, "rms-norm")?;
        let (_, width) = rows_columns(layout)?;
        let mut y = vec![0f32; x.len()];
        with_f32(&self.weight, self.name(), |weight| {
            y.par_chunks_mut(width)
                .zip(x.par_chunks(width))
                .with_min_len(16)
                .for_each(|(y, x)| {
                    let r = self.inverse_rms(x);
                    for i in 0..width {
                        y[i] = x[i] * r * weight[i];
                    }
                });
        })?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, width) = rows_columns(layout)?;
        let (guard, weight_layout) = self.weight.storage_and_layout();
        let inputs = [Input::F32(x, layout), Input::beside(&guard, weight_layout)?];
        let y = run(self.name(), inputs, rows * width, |[x, weight], y| {
            training::norm_forward([rows, width], self.eps, [x, weight, y])
        })?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = x
            .contiguous()?
            .apply_op2_no_bwd(&grad.contiguous()?, &RmsNormBackward(self.clone()))?;
        Ok(Some(dx))
    }
}

/// dx = r · (g w − x · r² · mean(g w x)), with r = 1/rms(x).
struct RmsNormBackward(RmsNorm);

impl CustomOp2 for RmsNormBackward {
    fn name(&self) -> &'static str {
        "rms-norm-backward"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(s1, l1, self.name())?;
        let g = f32_slice(s2, l2, self.name())?;
        let (_, width) = rows_columns(l1)?;
        let mut dx = vec![0f32; x.len()];
        with_f32(&self.0.weight, self.name(), |weight| {
            dx.par_chunks_mut(width)
                .zip(x.par_chunks(width).zip(g.par_chunks(width)))
                .with_min_len(16)
                .for_each(|(dx, (x, g))| {
                    let r = self.0.inverse_rms(x);
                    for i in 0..width {
                        dx[i] = g[i] * weight[i];
                    }
                    let projection = dot(dx, x) * r * r / width as f32;
                    for i in 0..width {
                        dx[i] = r * (dx[i] - x[i] * projection);
                    }
                });
        })?;
        Ok((CpuStorage::F32(dx), l1.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        l1: &Layout,
        g: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (rows, width) = rows_columns(l1)?;
        let (guard, weight_layout) = self.0.weight.storage_and_layout();
        let weight = Input::beside(&guard, weight_layout)?;
        let inputs = [Input::F32(x, l1), weight, Input::F32(g, l2)];
        let dx = run(self.name(), inputs, rows * width, |[x, weight, g], dx| {
            training::norm_backward([rows, width], self.0.eps, [x, weight, g, dx])
        })?;
        Ok((dx, l1.shape().clone()))
    }
}
