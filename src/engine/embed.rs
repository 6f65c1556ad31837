//! Embeddings: what the model has made of a text, as one vector.

use std::sync::Arc;

use candle_core::{Result, bail};
use realign_model::packing::{Example, Packed};
use realign_model::{Backend, PassOptions, Precision};

use crate::adapter::generation::Generation;

/// Computes embeddings alongside the engine, by the passes that learning takes: no cache, no batch,
/// exact arithmetic.
#[derive(Clone, Debug)]
pub struct Embedder {
    backend: Arc<dyn Backend>,
}

impl Embedder {
    /// Embeds with this model.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }

    /// The mean of the final hidden states (after the last norm) of all tokens, scaled to length 1:
    /// (hidden). Blocks for one forward pass.
    ///
    /// # Errors
    /// If there is no token, or the pass could not be computed.
    pub fn embed(&self, generation: &Generation, tokens: &[u32]) -> Result<Vec<f32>> {
        let [first, rest @ ..] = tokens else {
            bail!("a text without tokens has no embedding");
        };
        // A pass gives the states that predict a response. With the first token as the prompt these
        // are the states of all tokens, whatever the response ends with.
        let response = rest.iter().copied().chain([*first]).collect();
        let batch = Packed::new([&Example::new(vec![*first], vec![response])]);
        let mut passes = self.backend.passes(PassOptions {
            precision: Precision::Exact,
            answering: true,
            ..PassOptions::default()
        })?;
        let adapter = generation.adapter.as_ref().map(|a| &*a.weights);
        let hidden = passes.hidden(&batch, adapter)?;
        let mean = hidden.mean(0)?.to_vec1::<f32>()?;
        let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        // A zero vector has no direction to scale.
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        Ok(mean.into_iter().map(|x| x * scale).collect())
    }
}
