//! Embeddings: what the model has made of a text, as one vector.

use std::sync::Arc;

use candle_core::{Result, bail};
use realign_model::packing::{Example, Packed};
use realign_model::{Backend, PassOptions, Precision};

use crate::adapter::generation::Generation;
use crate::health::Health;

/// Computes embeddings alongside the engine, by the passes that learning takes: no cache, no batch,
/// exact arithmetic.
#[derive(Clone, Debug)]
pub struct Embedder {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) health: Arc<Health>,
    /// Threads that score prompts.
    pub(crate) threads: usize,
    /// The arithmetic in which it scores them: that of the engine beside it.
    pub(crate) precision: Precision,
}

impl Embedder {
    /// Embeds with this model; `health` is told of generations that compute no numbers.
    pub fn new(backend: Arc<dyn Backend>, health: Arc<Health>) -> Self {
        Self {
            backend,
            health,
            threads: 1,
            precision: Precision::Exact,
        }
    }

    /// Scores prompts with this many threads instead of one.
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Scores prompts in this arithmetic instead of the exact one. Embeddings stay exact.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The mean of the final hidden states (after the last norm) of all tokens, scaled to length 1:
    /// (hidden). Blocks for one forward pass.
    ///
    /// # Errors
    /// If there is no token, the pass could not be computed, or a value is not finite.
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
        // Finite only if every element is; squares of large ones overflow too.
        if !length.is_finite() {
            self.health.failed(generation);
            bail!(
                "generation {} computed values that are not finite numbers (NaN or infinity); the \
                 server's operator has to replace it",
                generation.id
            );
        }
        // A zero vector has no direction to scale.
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        Ok(mean.into_iter().map(|x| x * scale).collect())
    }
}

#[cfg(test)]
mod tests {
    use realign_cpu::CpuBackend;
    use realign_model::ModelSource;
    use realign_reference::ReferenceBackend;

    use super::*;
    use crate::adapter::generation::{GenerationId, StagedAdapter};
    use crate::adapter::peft;

    /// The CPU's against the reference's, with and without an adapter, for one token and many.
    #[test]
    fn embeddings_are_the_mean_of_the_final_hidden_states() -> Result<()> {
        let path = realign_model::test_support::path("tests/golden/families/gemma3");
        let files = ModelSource::parse(&path)
            .and_then(ModelSource::fetch)
            .unwrap();
        let adapter = peft::read_dir(&std::path::Path::new(&path).join("adapter"));
        let adapter = adapter.unwrap().weights;
        let slow = Arc::new(ReferenceBackend::new(
            realign_reference::load(&files).unwrap(),
        ));
        let fast = Arc::new(CpuBackend::new(realign_cpu::load(&files).unwrap()));
        for adapter in [None, Some(adapter)] {
            for length in [1, 2, 40] {
                let tokens: Vec<u32> = (0..length).map(|i| 3 + i * 7 % 50).collect();
                let embed = |backend: Arc<dyn Backend>| -> Result<Vec<f32>> {
                    let staged = |weights| StagedAdapter::new(&*backend, weights);
                    let generation = Generation {
                        id: GenerationId("0".repeat(12)),
                        base_hash: "0".repeat(64),
                        policy_revision: None,
                        adapter: adapter.clone().map(staged).transpose()?,
                    };
                    Embedder::new(backend, Arc::default()).embed(&generation, &tokens)
                };
                let (fast, slow) = (embed(fast.clone())?, embed(slow.clone())?);
                let length: f32 = fast.iter().map(|x| x * x).sum();
                assert!((length - 1.0).abs() < 1e-5);
                for (x, y) in fast.iter().zip(&slow) {
                    assert!((x - y).abs() < 1e-5, "{x} and {y}");
                }
            }
        }
        Ok(())
    }
}
