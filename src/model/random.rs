//! Models with random weights: what tests compare on, and what benchmarks of speed run, which does
//! not depend on the values.

use candle_core::{DType, Device, Result, Tensor};

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
        spec,
    })
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
