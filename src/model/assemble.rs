//! A decoder from its parts, in one order: what makes a model without the files that it came from.

use candle_core::{Result, Tensor};

use super::decoder::{Decoder, Layer, Mlp};
use super::experts::Experts;
use super::linear::Linear;
use super::lora::Projection;
use super::spec::{Mixture, ModelSpec};

/// What a vector of a decoder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorKind {
    /// The scale of a norm.
    Scale,
    /// The bias of a map.
    Bias,
}

/// Where the parts of a decoder come from, asked for in the order of [`assemble`].
pub trait Parts<W> {
    /// The next matrix, of shape (out, in).
    ///
    /// # Errors
    /// If there is none, or one of another shape.
    fn matrix(&mut self, shape: (usize, usize)) -> Result<W>;

    /// The next norm or bias, in f32, where the backend computes.
    ///
    /// # Errors
    /// If there is none, or one of another width.
    fn vector(&mut self, width: usize, kind: VectorKind) -> Result<Tensor>;
}

/// Asks for every part of a model of these shapes: matrices in the order of [`Decoder::map`], vectors
/// in that of [`vectors`].
///
/// # Errors
/// Those of `parts`.
pub fn assemble<W: Clone>(spec: ModelSpec, parts: &mut impl Parts<W>) -> Result<Decoder<W>> {
    let hidden = spec.hidden_size;
    let final_norm = parts.vector(hidden, VectorKind::Scale)?;
    let embedding = parts.matrix((spec.vocab_size, hidden))?;
    let head = match spec.tied_embeddings {
        true => embedding.clone(),
        false => parts.matrix((spec.vocab_size, hidden))?,
    };
    let layers = (0..spec.layers)
        .map(|index| layer(&spec, index, parts))
        .collect::<Result<_>>()?;
    Ok(Decoder {
        final_norm,
        embedding,
        layers,
        head,
        spec,
    })
}

/// A decoder's norms and biases.
pub fn vectors<W>(model: &Decoder<W>) -> Vec<&Tensor> {
    let mut all = vec![&model.final_norm];
    for layer in &model.layers {
        all.extend(layer.maps().filter_map(Linear::bias));
        all.push(&layer.attention_norm);
        all.extend(layer.qk_norms.iter().flatten());
        all.push(&layer.mlp_norm);
        all.extend(layer.output_norms.iter().flatten());
    }
    all
}

fn layer<W>(spec: &ModelSpec, index: usize, parts: &mut impl Parts<W>) -> Result<Layer<W>> {
    use Projection::{Down, Gate, K, O, Q, Up, V};
    let hidden = spec.hidden_size;
    let mut map = |projection: Projection| -> Result<Linear<W>> {
        let (inner, out) = spec.projection_shape(projection);
        let weight = parts.matrix((out, inner))?;
        let bias = match spec.has_bias(projection) {
            true => Some(parts.vector(out, VectorKind::Bias)?),
            false => None,
        };
        Ok(Linear::new(index, projection, weight, bias))
    };
    let attention = [map(Q)?, map(K)?, map(V)?, map(O)?];
    let mlp = match spec.mixture(index) {
        None => Mlp::Dense([map(Gate)?, map(Up)?, map(Down)?]),
        Some(mixture) => Mlp::Experts(experts(hidden, mixture, parts)?),
    };
    let mut scale = |width: usize| parts.vector(width, VectorKind::Scale);
    let attention_norm = scale(hidden)?;
    let qk_norms = match spec.variant.qk_norm {
        true => Some([scale(spec.head_dim)?, scale(spec.head_dim)?]),
        false => None,
    };
    let mlp_norm = scale(hidden)?;
    let output_norms = match spec.variant.output_norms {
        true => Some([scale(hidden)?, scale(hidden)?]),
        false => None,
    };
    Ok(Layer {
        attention_norm,
        attention,
        qk_norms,
        mlp_norm,
        mlp,
        output_norms,
    })
}

fn experts<W>(hidden: usize, mixture: &Mixture, parts: &mut impl Parts<W>) -> Result<Experts<W>> {
    let (width, count) = (mixture.inner, mixture.experts);
    let router = parts.matrix((count, hidden))?;
    let mut one = |_| {
        Ok([
            parts.matrix((width, hidden))?,
            parts.matrix((width, hidden))?,
            parts.matrix((hidden, width))?,
        ])
    };
    Ok(Experts {
        router,
        experts: (0..count).map(&mut one).collect::<Result<_>>()?,
        used: mixture.used,
        normalised: mixture.normalised,
    })
}
