//! x Wᵀ for a weight that is never trained.
//!
//! Candle's own matmul computes a gradient for both factors, which for a frozen weight is a third
//! of the training arithmetic and a second copy of the model. This one only sends a gradient to x.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{Ops, f32_slice, rows_columns};

/// `x` (rows, in) times `weight` (out, in) transposed: (rows, out).
pub fn frozen_linear(ops: Ops, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    match ops {
        Ops::Plain => x.matmul(&weight.t()?),
        Ops::Fused => x.contiguous()?.apply_op1(FrozenLinear { weight: weight.clone() }),
    }
}

struct FrozenLinear {
    /// Shape (out, in), contiguous.
    weight: Tensor,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout, self.name())?;
        let (rows, columns) = rows_columns(layout)?;
        let (out, inner) = self.weight.dims2()?;
        if columns != inner {
            bail!("{}: x has {columns} columns, the weight takes {inner}", self.name());
        }
        let (guard, weight_layout) = self.weight.storage_and_layout();
        let candle_core::Storage::Cpu(weight_storage) = &*guard else {
            bail!("{}: x is on the CPU, the weight is not", self.name());
        };
        let weight = f32_slice(weight_storage, weight_layout, self.name())?;
        let mut y = vec![0f32; rows * out];
        matmul_transposed(x, weight, &mut y, (rows, inner, out));
        Ok((CpuStorage::F32(y), Shape::from((rows, out))))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.matmul(&self.weight)?))
    }
}

/// y (m, n) = x (m, k) · w (n, k)ᵀ, all row-major.
fn matmul_transposed(x: &[f32], w: &[f32], y: &mut [f32], (m, k, n): (usize, usize, usize)) {
    assert!(x.len() == m * k && w.len() == n * k && y.len() == m * n, "slices match their shapes");
    let threads = gemm::Parallelism::Rayon(rayon::current_num_threads());
    // SAFETY: the assertion above bounds every access that the row and column strides can make,
    // and y does not overlap x or w because it is uniquely borrowed.
    unsafe {
        gemm::gemm(
            m, n, k,
            y.as_mut_ptr(), 1, n as isize,
            false,
            x.as_ptr(), 1, k as isize,
            w.as_ptr(), k as isize, 1,
            0.0, 1.0,
            false, false, false,
            threads,
        );
    }
}
