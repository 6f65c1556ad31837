//! x Wᵀ for a weight that is never trained.
//!
//! Candle's own matmul computes a gradient for both factors, which for a frozen weight is a third
//! of the training arithmetic and a second copy of the model. This one only sends a gradient to x.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

use super::matmul::{Matrix, Orientation, matmul};
use super::mixed_linear::mixed_linear;
use super::{Ops, f32_slice, rows_columns};

/// `x` (rows, in) times `weight` (out, in) transposed: (rows, out).
pub fn frozen_linear(ops: Ops, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    match ops {
        Ops::Plain | Ops::Device if weight.dtype() != x.dtype() => mixed_linear(x, weight),
        Ops::Plain | Ops::Device => x.matmul(&weight.t()?),
        Ops::Fused => x.contiguous()?.apply_op1(Product {
            weight: weight.clone(),
            orientation: Orientation::Transposed,
        }),
    }
}

struct Product {
    /// Shape (out, in), contiguous.
    weight: Tensor,
    orientation: Orientation,
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout, self.name())?;
        let (rows, columns) = rows_columns(layout)?;
        let (n, k) = self.weight.dims2()?;
        let (inner, out) = match self.orientation {
            Orientation::Transposed => (k, n),
            Orientation::Plain => (n, k),
        };
        if columns != inner {
            bail!(
                "{}: x has {columns} columns, the weight takes {inner}",
                self.name()
            );
        }
        let (guard, weight_layout) = self.weight.storage_and_layout();
        let Storage::Cpu(weight_storage) = &*guard else {
            bail!("{}: x is on the CPU, the weight is not", self.name());
        };
        let data = f32_slice(weight_storage, weight_layout, self.name())?;
        let y = matmul(x, rows, Matrix { data, n, k }, self.orientation);
        Ok((CpuStorage::F32(y), Shape::from((rows, out))))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let backward = Product {
            weight: self.weight.clone(),
            orientation: Orientation::Plain,
        };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&backward)?))
    }
}
