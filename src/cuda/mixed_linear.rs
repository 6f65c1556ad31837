//! x Wᵀ for a frozen weight of fewer bits than x: x is rounded to the weight's type for the product,
//! and so is the gradient on its way back. A weight of floats is never copied; one of integers is
//! unpacked for a product and again for its gradient, and the copy goes with the product.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail,
};

use crate::integer::IntegerWeight;

/// `x` (rows, in) times `weight` (out, in) transposed, in x's type: (rows, out).
pub(crate) fn mixed_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    linear(x, Frozen::Floats(weight.clone()))
}

/// As [`mixed_linear`], for a device's integers.
pub(crate) fn integer_linear(x: &Tensor, weight: &IntegerWeight) -> Result<Tensor> {
    linear(x, Frozen::Integers(weight.clone()))
}

fn linear(x: &Tensor, weight: Frozen) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Mixed {
        weight,
        transposed: true,
    })
}

/// A weight of shape (out, in).
#[derive(Clone)]
enum Frozen {
    Floats(Tensor),
    Integers(IntegerWeight),
}

impl Frozen {
    fn floats(&self) -> Result<Tensor> {
        match self {
            Frozen::Floats(weight) => Ok(weight.clone()),
            Frozen::Integers(weight) => weight.dense(),
        }
    }
}

struct Mixed {
    weight: Frozen,
    /// x Wᵀ, or x W on the way back.
    transposed: bool,
}

impl Mixed {
    fn product<S: BackendStorage>(
        &self,
        (x, layout): (&S, &Layout),
        (weight, weight_layout): (&S, &Layout),
    ) -> Result<(S, Shape)> {
        let (rows, columns) = layout.shape().dims2()?;
        let weight_layout = match self.transposed {
            true => weight_layout.transpose(0, 1)?,
            false => weight_layout.clone(),
        };
        let (inner, out) = weight_layout.shape().dims2()?;
        if columns != inner {
            bail!("mixed-linear: x has {columns} columns, the weight takes {inner}");
        }
        let rounded = x.to_dtype(layout, weight.dtype())?;
        let whole = Layout::contiguous((rows, columns));
        let y = rounded.matmul(weight, (1, rows, out, inner), &whole, &weight_layout)?;
        let shape = Shape::from((rows, out));
        Ok((
            y.to_dtype(&Layout::contiguous(shape.clone()), x.dtype())?,
            shape,
        ))
    }
}

impl CustomOp1 for Mixed {
    fn name(&self) -> &'static str {
        "mixed-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let weight = self.weight.floats()?;
        let (guard, weight_layout) = weight.storage_and_layout();
        match &*guard {
            Storage::Cpu(weight) => self.product((storage, layout), (weight, weight_layout)),
            _ => bail!("mixed-linear: x is on the CPU, the weight is not"),
        }
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let weight = self.weight.floats()?;
        let (guard, weight_layout) = weight.storage_and_layout();
        match &*guard {
            Storage::Cuda(weight) => self.product((storage, layout), (weight, weight_layout)),
            _ => bail!("mixed-linear: x is on a CUDA device, the weight is not"),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Mixed {
            weight: self.weight.clone(),
            transposed: false,
        };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    #[test]
    fn values_and_gradients_are_those_of_the_rounded_weight() -> Result<()> {
        // Candle's CPU product has f16; a CUDA device takes bf16 on the same path.
        let weight = Tensor::randn(0f32, 1.0, (7, 24), &Device::Cpu)?.to_dtype(DType::F16)?;
        let exact = weight.to_dtype(DType::F32)?;
        let x = Var::randn(0f32, 1.0, (5, 24), &Device::Cpu)?;
        let g = Tensor::randn(0f32, 1.0, (5, 7), &Device::Cpu)?;
        let run = |y: Tensor| -> Result<(Tensor, Tensor)> {
            let store = (&y * &g)?.sum_all()?.backward()?;
            Ok((y.detach(), store.get(&x).expect("a gradient").clone()))
        };
        let (y, dx) = run(mixed_linear(&x, &weight)?)?;
        let (expected, expected_dx) = run(x.matmul(&exact.t()?)?)?;
        for (got, expected) in [(y, expected), (dx, expected_dx)] {
            let furthest = (got - expected)?
                .abs()?
                .flatten_all()?
                .max(0)?
                .to_scalar::<f32>()?;
            assert!(furthest < 0.05, "{furthest}");
        }
        assert!(mixed_linear(&g, &weight).is_err());
        Ok(())
    }

    #[test]
    fn integers_give_the_values_and_gradients_of_what_they_unpack_to() -> Result<()> {
        use candle_core::quantized::{GgmlDType, QTensor};
        let values = Tensor::randn(0f32, 1.0, (7, 64), &Device::Cpu)?;
        let x = Var::randn(0f32, 1.0, (5, 64), &Device::Cpu)?;
        let g = Tensor::randn(0f32, 1.0, (5, 7), &Device::Cpu)?;
        for dtype in [GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q8_0] {
            let stored = QTensor::quantize(&values, dtype)?;
            let exact = stored.dequantize(&Device::Cpu)?;
            let weight = IntegerWeight::new(&stored, &Device::Cpu, DType::F32)?.unwrap();
            let run = |y: Tensor| -> Result<(Tensor, Tensor)> {
                let store = (&y * &g)?.sum_all()?.backward()?;
                Ok((y.detach(), store.get(&x).expect("a gradient").clone()))
            };
            let (y, dx) = run(integer_linear(&x, &weight)?)?;
            let (expected, expected_dx) = run(x.matmul(&exact.t()?)?)?;
            for (got, expected) in [(y, expected), (dx, expected_dx)] {
                let furthest = (got - expected)?.abs()?.flatten_all()?.max(0)?;
                assert!(furthest.to_scalar::<f32>()? < 1e-4, "{dtype:?}");
            }
        }
        Ok(())
    }
}
