//! Models with random weights: what tests compare on, and what benchmarks of speed run, which does
//! not depend on the values.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor, bail};

use super::integer::IntegerWeight;

use super::decoder::{Layer, Model};
use super::linear::{Linear, Weight};
use super::lora::Projection;
use super::spec::ModelSpec;

/// A model of these shapes on a device, its matrices in `dtype`, everything else in f32. The maps
/// that read one input lie one behind the other. Activations keep a healthy size.
///
/// # Errors
/// If it does not fit the device.
pub fn random_model(spec: ModelSpec, dtype: DType, device: &Device) -> Result<Model> {
    let hidden = spec.hidden_size;
    let table = |rows: usize, deviation: f64| matrix((rows, hidden), deviation, dtype, device);
    let embedding = Weight::Dense(table(spec.vocab_size, 1.0)?);
    let head = match spec.tied_embeddings {
        true => embedding.clone(),
        false => Weight::Dense(table(spec.vocab_size, 1.0 / (hidden as f64).sqrt())?),
    };
    let layers = (0..spec.layers)
        .map(|index| layer(&spec, index, dtype, device))
        .collect::<Result<_>>()?;
    Ok(Model {
        final_norm: scale(hidden, device)?,
        embedding,
        layers,
        head,
        device: device.clone(),
        time_slices: Arc::default(),
        spec,
    })
}

/// Different rows that a matrix of integers is made of: the rest repeats them.
const DIFFERENT: usize = 32;

/// The same model with its matrices in integers of a GGUF type, as a device keeps them. Only a few of
/// a matrix's rows are quantised and stand for all.
///
/// # Errors
/// If the type is no integers, or a matrix's columns are no multiple of its blocks.
pub fn with_integers(mut model: Model, kind: GgmlDType) -> Result<Model> {
    let device = model.device.clone();
    let integers = |weight: &Weight| match weight {
        Weight::Dense(floats) => repeated(floats, kind, &device).map(Weight::Integer),
        other => Ok(other.clone()),
    };
    for layer in &mut model.layers {
        for map in layer.attention.iter_mut().chain(&mut layer.mlp) {
            let weight = integers(map.weight())?;
            map.set_weight(weight);
        }
    }
    let embedding = integers(&model.embedding)?;
    model.head = match model.spec.tied_embeddings {
        true => embedding.clone(),
        false => integers(&model.head)?,
    };
    model.embedding = embedding;
    model.stacked()
}

fn repeated(floats: &Tensor, kind: GgmlDType, device: &Device) -> Result<IntegerWeight> {
    let (out, columns) = floats.dims2()?;
    let first = floats
        .narrow(0, 0, DIFFERENT.min(out))?
        .to_device(&Device::Cpu)?;
    let stored = QTensor::quantize(&first.to_dtype(DType::F32)?.force_contiguous()?, kind)?;
    match IntegerWeight::new(&stored, device, floats.dtype())? {
        Some(rows) => rows.repeated(out),
        None => bail!("({out}, {columns}) cannot be kept as integers of {kind:?}"),
    }
}

fn layer(spec: &ModelSpec, index: usize, dtype: DType, device: &Device) -> Result<Layer> {
    use Projection::{Down, Gate, K, O, Q, Up, V};
    let hidden = spec.hidden_size;
    let maps = |projections: &[Projection]| beside(spec, index, projections, (dtype, device));
    let one = |projections: &[Projection]| -> Result<Linear> { Ok(maps(projections)?.remove(0)) };
    let two = |width: usize| -> Result<[Tensor; 2]> {
        Ok([scale(width, device)?, scale(width, device)?])
    };
    let mut qkv = maps(&[Q, K, V])?.into_iter();
    let mut gates = maps(&[Gate, Up])?.into_iter();
    let (Some(q), Some(k), Some(v), Some(gate), Some(up)) = (
        qkv.next(),
        qkv.next(),
        qkv.next(),
        gates.next(),
        gates.next(),
    ) else {
        candle_core::bail!("a layer has five maps that read its norms");
    };
    let variant = &spec.variant;
    Ok(Layer {
        attention_norm: scale(hidden, device)?,
        attention: [q, k, v, one(&[O])?],
        qk_norms: variant.qk_norm.then(|| two(spec.head_dim)).transpose()?,
        mlp_norm: scale(hidden, device)?,
        mlp: [gate, up, one(&[Down])?],
        output_norms: variant.output_norms.then(|| two(hidden)).transpose()?,
    })
}

/// Maps that read one input, as rows of one tensor.
fn beside(
    spec: &ModelSpec,
    layer: usize,
    projections: &[Projection],
    (dtype, device): (DType, &Device),
) -> Result<Vec<Linear>> {
    let shapes: Vec<_> = projections
        .iter()
        .map(|p| spec.projection_shape(*p))
        .collect();
    let (inner, all) = (shapes[0].0, shapes.iter().map(|s| s.1).sum::<usize>());
    let weight = matrix((all, inner), 1.0 / (inner as f64).sqrt(), dtype, device)?;
    let mut first = 0;
    let mut map = |(projection, (_, out)): (&Projection, &(usize, usize))| {
        let part = weight.narrow(0, first, *out)?;
        first += out;
        let bias = match spec.has_bias(*projection) {
            true => Some(Tensor::randn(0f32, 0.1, *out, device)?),
            false => None,
        };
        Ok(Linear::new(layer, *projection, Weight::Dense(part), bias))
    };
    projections.iter().zip(&shapes).map(&mut map).collect()
}

/// Rows at a time, as numbers are drawn in f32 and a whole table of those might not fit.
const ROWS: usize = 16_384;

fn matrix(
    (rows, columns): (usize, usize),
    deviation: f64,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let part = |rows: usize| {
        Tensor::randn(0f32, deviation as f32, (rows, columns), device)?.to_dtype(dtype)
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

fn scale(width: usize, device: &Device) -> Result<Tensor> {
    Tensor::randn(1f32, 0.1, width, device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::shape;

    #[test]
    fn matrices_of_integers_keep_their_shapes_and_repeat_their_first_rows() -> Result<()> {
        let spec = shape("tiny").expect("a shape");
        let floats = random_model(spec, DType::F32, &Device::Cpu)?;
        let model = with_integers(floats.clone(), GgmlDType::Q4_0)?;
        let down = |m: &Model| m.layers[1].mlp[2].weight().clone();
        assert_eq!(down(&model).shape()?, down(&floats).shape()?);
        // 96 columns: 48 bytes of integers, three scales, a factor, padded to 64.
        assert_eq!(down(&model).bytes(), 64 * 64);
        let Weight::Integer(kept) = down(&model) else {
            panic!("still floats");
        };
        let values = kept.dense()?.to_vec2::<f32>()?;
        assert_eq!(values[1], values[33]);
        assert_ne!(values[1], values[2]);
        assert!(with_integers(floats.clone(), GgmlDType::Q4K).is_err());
        assert!(with_integers(floats, GgmlDType::F16).is_err());
        Ok(())
    }
}
