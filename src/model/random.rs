//! Models with random weights: what tests compare on, and what benchmarks of speed run, which does
//! not depend on the values.

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use super::decoder::{Decoder, Layer, Mlp};
use super::experts::Experts;
use super::linear::Linear;
use super::lora::Projection;
use super::spec::{Mixture, ModelSpec};

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
    mut matrix: impl FnMut(RandomMatrix) -> Result<W>,
) -> Result<Decoder<W>> {
    let hidden = spec.hidden_size;
    let table = |deviation: f64| RandomMatrix {
        out: spec.vocab_size,
        inner: hidden,
        deviation,
    };
    let embedding = matrix(table(1.0))?;
    let head = match spec.tied_embeddings {
        true => embedding.clone(),
        false => matrix(table(1.0 / (hidden as f64).sqrt()))?,
    };
    let layers = (0..spec.layers)
        .map(|index| layer(&spec, index, device, &mut matrix))
        .collect::<Result<_>>()?;
    Ok(Decoder {
        final_norm: scale(hidden, device)?,
        embedding,
        layers,
        head,
        spec,
    })
}

fn layer<W>(
    spec: &ModelSpec,
    index: usize,
    device: &Device,
    matrix: &mut impl FnMut(RandomMatrix) -> Result<W>,
) -> Result<Layer<W>> {
    use Projection::{Down, Gate, K, O, Q, Up, V};
    let hidden = spec.hidden_size;
    let mut map = |projection: Projection| -> Result<Linear<W>> {
        let (inner, out) = spec.projection_shape(projection);
        let weight = matrix(RandomMatrix {
            out,
            inner,
            deviation: 1.0 / (inner as f64).sqrt(),
        })?;
        let bias = match spec.has_bias(projection) {
            true => Some(Tensor::randn(0f32, 0.1, out, device)?),
            false => None,
        };
        Ok(Linear::new(index, projection, weight, bias))
    };
    let two = |width: usize| -> Result<[Tensor; 2]> {
        Ok([scale(width, device)?, scale(width, device)?])
    };
    let variant = &spec.variant;
    let attention = [map(Q)?, map(K)?, map(V)?, map(O)?];
    let mlp = match spec.mixture(index) {
        None => Mlp::Dense([map(Gate)?, map(Up)?, map(Down)?]),
        Some(mixture) => Mlp::Experts(experts(hidden, mixture, matrix)?),
    };
    Ok(Layer {
        attention_norm: scale(hidden, device)?,
        attention,
        qk_norms: variant.qk_norm.then(|| two(spec.head_dim)).transpose()?,
        mlp_norm: scale(hidden, device)?,
        mlp,
        output_norms: variant.output_norms.then(|| two(hidden)).transpose()?,
    })
}

fn experts<W>(
    hidden: usize,
    mixture: &Mixture,
    matrix: &mut impl FnMut(RandomMatrix) -> Result<W>,
) -> Result<Experts<W>> {
    let mut random = |out: usize, inner: usize| {
        matrix(RandomMatrix {
            out,
            inner,
            deviation: 1.0 / (inner as f64).sqrt(),
        })
    };
    let (width, count) = (mixture.inner, mixture.experts);
    let router = random(count, hidden)?;
    let mut one = |_| {
        Ok([
            random(width, hidden)?,
            random(width, hidden)?,
            random(hidden, width)?,
        ])
    };
    Ok(Experts {
        router,
        experts: (0..count).map(&mut one).collect::<Result<_>>()?,
        used: mixture.used,
        normalised: mixture.normalised,
    })
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

fn scale(width: usize, device: &Device) -> Result<Tensor> {
    Tensor::randn(1f32, 0.1, width, device)
}

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
