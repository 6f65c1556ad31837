//! Embeddings: what the model has made of a text, as one vector.

use std::sync::Arc;

use candle_core::Result;

use crate::adapter::generation::Generation;
use realign_model::{AdapterRows, Attention, Batch, Model, Ops, Segment};

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
        let segment = Segment {
            start: 0,
            prompt: tokens.len(),
            branches: Vec::new(),
        };
        let positions: Vec<u32> = segment.positions().collect();
        let adapters: Vec<AdapterRows> = generation
            .adapter
            .iter()
            .map(|adapter| AdapterRows {
                rows: 0..tokens.len(),
                adapter,
            })
            .collect();
        let hidden = self.model.hidden(&Batch {
            tokens,
            positions: &positions,
            adapters: &adapters,
            attention: Attention::Packed([segment].into()),
            ops: Ops::for_device(&self.model.device),
        })?;
        let mean = hidden.mean(0)?.to_vec1::<f32>()?;
        let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        // A zero vector has no direction to scale.
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        Ok(mean.into_iter().map(|x| x * scale).collect())
    }
}
