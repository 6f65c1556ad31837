//! Models with random weights: what tests compare on, and what benchmarks of speed run, which does
//! not depend on the values.

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use super::assemble::{Parts, VectorKind, assemble};
use super::decoder::Decoder;
use super::spec::ModelSpec;

/// A random matrix that is to be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomMatrix {
    /// Rows.
    pub out: usize,
    /// Columns.
    pub(crate) inner: usize,
    /// Standard deviation of its elements.
    pub(crate) deviation: f64,
}

/// A model of these shapes, its norms and biases on a device, its matrices made by `matrix`.
/// Activations keep a healthy size.
///
/// # Errors
/// If it does not fit the device; those of `matrix`.
pub fn random_model<W: Clone>(
    spec: ModelSpec,
    device: &Device,
    matrix: impl FnMut(RandomMatrix) -> Result<W>,
) -> Result<Decoder<W>> {
    let mut parts = RandomParts {
        device,
        matrix,
        made: 0,
    };
    assemble(spec, &mut parts)
}

struct RandomParts<'a, F> {
    device: &'a Device,
    matrix: F,
    /// Matrices that were made.
    made: usize,
}

impl<W, F: FnMut(RandomMatrix) -> Result<W>> Parts<W> for RandomParts<'_, F> {
    fn matrix(&mut self, (out, inner): (usize, usize)) -> Result<W> {
        // The first one is the embedding.
        let deviation = match self.made {
            0 => 1.0,
            _ => 1.0 / (inner as f64).sqrt(),
        };
        self.made += 1;
        (self.matrix)(RandomMatrix {
            out,
            inner,
            deviation,
        })
    }

    fn vector(&mut self, width: usize, kind: VectorKind) -> Result<Tensor> {
        let (mean, deviation) = match kind {
            VectorKind::Scale => (1f32, 0.1),
            VectorKind::Bias => (0f32, 0.1),
        };
        Tensor::randn(mean, deviation, width, self.device)
    }
}

/// Rows at a time, as numbers are drawn in f32 and a whole table of those might not fit.
const ROWS: usize = 16_384;

impl RandomMatrix {
    /// Its elements on a device.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn floats(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let (rows, columns) = (self.out, self.inner);
        let part = |rows: usize| {
            let values = Tensor::randn(0f32, self.deviation as f32, (rows, columns), device)?;
            values.to_dtype(dtype)
        };
        if rows <= ROWS {
            return part(rows);
        }
        let whole = Tensor::zeros((rows, columns), dtype, device)?;
        for first in (0..rows).step_by(ROWS) {
            whole.slice_set(&part(ROWS.min(rows - first))?, 0, first)?;
        }
        Ok(whole)
    }

    /// A few of its rows on the host, in a GGUF type; the rest of the matrix repeats them.
    ///
    /// # Errors
    /// If the columns are no multiple of the type's blocks.
    pub fn few_rows(&self, kind: GgmlDType) -> Result<QTensor> {
        let few = RandomMatrix {
            out: DIFFERENT.min(self.out),
            ..*self
        };
        QTensor::quantize(&few.floats(DType::F32, &Device::Cpu)?, kind)
    }

    /// The matrix on the host, in a GGUF type.
    ///
    /// # Errors
    /// As [`RandomMatrix::few_rows`].
    pub fn quantized(&self, kind: GgmlDType) -> Result<QTensor> {
        let few = self.few_rows(kind)?;
        let data = few.data()?;
        let row = data.len() / few.shape().dims2()?.0;
        let bytes: Vec<u8> = data.iter().copied().cycle().take(row * self.out).collect();
        let storage = QStorage::from_data(bytes.into(), &Device::Cpu, kind)?;
        QTensor::new(storage, (self.out, self.inner))
    }
}

/// Different rows that a matrix of integers is made of.
const DIFFERENT: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_integers_repeat_their_first_rows() -> Result<()> {
        let matrix = RandomMatrix {
            out: 70,
            inner: 64,
            deviation: 1.0,
        };
        let stored = matrix.quantized(GgmlDType::Q4_0)?;
        let values = stored.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
        assert_eq!(values.len(), 70);
        assert_eq!(values[1], values[33]);
        assert_ne!(values[1], values[2]);
        assert!(matrix.quantized(GgmlDType::Q4K).is_err());
        Ok(())
    }
}
