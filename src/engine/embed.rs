//! Embeddings: what the model has made of a text, as one vector.

use std::sync::Arc;

use candle_core::Result;

use crate::adapter::generation::Generation;
use crate::model::packing::{Example, Packed};
use crate::model::{Model, Ops, Precision};
use crate::train::passes::Passes;

/// Computes embeddings beside the engine, on the shared model definition: no cache, no batch.
#[derive(Clone, Debug)]
pub struct Embedder {
    model: Arc<Model>,
}

impl Embedder {
    /// Embeds with this model.
    pub fn new(model: Arc<Model>) -> Self {
        Self { model }
    }

    /// The mean of the final hidden states (after the last norm) of all tokens, scaled to length 1:
    /// (hidden). Blocks for one forward pass.
    ///
    /// # Errors
    /// If the pass could not be computed.
    pub fn embed(&self, generation: &Generation, tokens: &[u32]) -> Result<Vec<f32>> {
        let [first, rest @ ..] = tokens else {
            candle_core::bail!("a text without tokens has no embedding");
        };
        // A pass gives the states that predict a response: with the first token as the prompt these
        // are the states of all tokens, whatever the response ends with.
        let response = rest.iter().copied().chain([*first]).collect();
        let batch = Packed::new([&Example::new(vec![*first], vec![response])]);
        let mut passes = Passes::new(
            &self.model,
            Ops::for_device(&self.model.device),
            Precision::Exact,
        )?;
        let hidden = passes.hidden(&batch, generation.adapter.as_deref())?;
        let mean = hidden.mean(0)?.to_vec1::<f32>()?;
        let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        // A zero vector has no direction to scale.
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        Ok(mean.into_iter().map(|x| x * scale).collect())
    }
}
