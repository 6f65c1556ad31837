//! A matrix as a CUDA device keeps it.

use candle_core::{DType, Device, Result, Tensor};
use realign_model::StoredMatrix;
use realign_reference::TensorWeight;

use super::integer::IntegerWeight;
use super::mixed_linear::{integer_linear, mixed_linear};

/// A frozen weight of shape (out, in). Its products send gradients to their inputs.
#[derive(Clone, Debug)]
pub enum Weight {
    /// The file's integers. A product unpacks them for as long as it takes.
    Integers(IntegerWeight),
    /// Floats of 16 bits; of 32 in tests.
    Floats(Tensor),
}

impl Weight {
    /// A matrix of a file as a device keeps it: the file's integers, or floats of 16 bits.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(stored: &StoredMatrix, device: &Device) -> Result<Self> {
        match stored {
            StoredMatrix::Mapped(_) => Self::new(&stored.clone().owned()?, device),
            StoredMatrix::Quantized(q) => {
                if let Some(integers) = IntegerWeight::new(q, device, DType::BF16)? {
                    return Ok(Weight::Integers(integers));
                }
                let floats = q.dequantize(&Device::Cpu)?.to_dtype(DType::BF16)?;
                Ok(Weight::Floats(floats.to_device(device)?))
            }
            StoredMatrix::Floats(floats) => {
                let dtype = match floats.dtype() {
                    DType::F16 => DType::F16,
                    _ => DType::BF16,
                };
                Ok(Weight::Floats(floats.to_dtype(dtype)?.to_device(device)?))
            }
        }
    }

    /// (out, in).
    ///
    /// # Errors
    /// If it is no matrix.
    pub(crate) fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Weight::Integers(w) => w.shape(),
            Weight::Floats(t) => t.dims2(),
        }
    }

    /// Element type of the activations that a product takes.
    pub(crate) fn product_dtype(&self) -> DType {
        match self {
            Weight::Integers(w) => w.dtype,
            Weight::Floats(t) => t.dtype(),
        }
    }

    /// Bytes that one pass over the weight reads.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Integers(w) => w.bytes(),
            Weight::Floats(t) => t.elem_count() * t.dtype().size_in_bytes(),
        }
    }

    /// Its values as floats of the type of [`Weight::product_dtype`].
    ///
    /// # Errors
    /// If the device has no room.
    pub fn dense(&self) -> Result<Tensor> {
        match self {
            Weight::Integers(w) => w.dense(),
            Weight::Floats(t) => Ok(t.clone()),
        }
    }

    /// The tensor that holds it.
    pub(crate) fn held(&self) -> &Tensor {
        match self {
            Weight::Integers(w) => w.data(),
            Weight::Floats(t) => t,
        }
    }
}

impl TensorWeight for Weight {
    fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Weight::Integers(w) => integer_linear(x, w),
            Weight::Floats(w) if w.dtype() != x.dtype() => mixed_linear(x, w),
            Weight::Floats(w) => x.matmul(&w.t()?),
        }
    }

    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Weight::Integers(w) => w.rows(ids),
            Weight::Floats(w) => w.index_select(ids, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;

    #[test]
    fn a_device_keeps_integers_as_such_and_floats_in_sixteen_bits() {
        let values = Tensor::randn(0f32, 1.0, (4, 256), &Device::Cpu).unwrap();
        for dtype in [
            GgmlDType::Q4K,
            GgmlDType::Q8_0,
            GgmlDType::F16,
            GgmlDType::F32,
        ] {
            let stored = QTensor::quantize(&values, dtype).unwrap();
            let stored = StoredMatrix::Quantized(Arc::new(stored));
            match Weight::new(&stored, &Device::Cpu).unwrap() {
                Weight::Integers(w) => {
                    assert!(matches!(dtype, GgmlDType::Q4K | GgmlDType::Q8_0));
                    assert_eq!(w.dtype, DType::BF16);
                }
                Weight::Floats(t) => {
                    assert!(matches!(dtype, GgmlDType::F16 | GgmlDType::F32));
                    assert_eq!(t.dtype(), DType::BF16);
                }
            }
        }
    }
}
