//! Log-probabilities of the tokens of a prompt, computed alongside the engine.

use candle_core::{Result, bail};
use realign_model::{
    AdapterSpan, BLOCK_TOKENS, ExecutorOptions, KvType, Outputs, PagedSequence, Step,
};

use crate::adapter::generation::Generation;
use crate::embed::Embedder;
use crate::sampler::logprobs;

/// Most rows of a pass.
const ROWS: usize = 128;
/// Most bytes of a pass's logits.
const LOGIT_BYTES: usize = 64 << 20;

/// How likely a token of a prompt is.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    /// log p(token | all before it), natural log.
    pub logprob: f32,
    /// How many tokens are more likely, plus 1.
    pub rank: usize,
    /// The most likely tokens with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

impl Embedder {
    /// Log-probabilities of all tokens but the first, each with the `top` most likely ones in its place.
    /// Blocks for a forward pass over all tokens, in parts; takes a cache for them and no more than
    /// 64 MiB of logits.
    ///
    /// # Errors
    /// If there is no token, the pass could not be computed, or a value is not finite.
    pub fn prompt_logprobs(
        &self,
        generation: &Generation,
        tokens: &[u32],
        top: usize,
    ) -> Result<Vec<PromptToken>> {
        if tokens.is_empty() {
            bail!("a text without tokens has no log-probabilities");
        }
        let blocks = tokens.len().div_ceil(BLOCK_TOKENS);
        let mut executor = self.backend.executor(ExecutorOptions {
            blocks,
            threads: self.threads,
            record: false,
            kv: KvType::F32,
        })?;
        let vocabulary = executor.vocab_size();
        let most = (LOGIT_BYTES / 4 / vocabulary.max(1)).clamp(1, ROWS);
        let mut logits = vec![0.0; most * vocabulary];
        let mut scored = Vec::with_capacity(tokens.len() - 1);
        // The last token predicts nothing of the prompt.
        let predicting = &tokens[..tokens.len() - 1];
        for (part, fed) in predicting.chunks(most).enumerate() {
            let first = part * most;
            let positions: Vec<u32> = (first..first + fed.len()).map(|p| p as u32).collect();
            let adapters: Vec<AdapterSpan> = generation
                .adapter
                .iter()
                .map(|adapter| AdapterSpan {
                    rows: 0..fed.len(),
                    adapter: adapter.staged.clone(),
                })
                .collect();
            let outputs: Vec<u32> = (0..fed.len() as u32).collect();
            let step = Step {
                tokens: fed,
                positions: &positions,
                sequences: &[PagedSequence {
                    start: 0,
                    rows: fed.len(),
                    cached: first,
                    blocks: (0..blocks as u32).collect::<Vec<u32>>().into(),
                }],
                adapters: &adapters,
                outputs: &outputs,
            };
            let logits = &mut logits[..fed.len() * vocabulary];
            executor.forward(
                &step,
                &mut Outputs {
                    draws: &vec![None; fed.len()],
                    logits,
                    tokens: &mut Vec::new(),
                },
            )?;
            for (row, &target) in logits.chunks(vocabulary).zip(&tokens[first + 1..]) {
                scored.push(self.prompt_token(generation, (row, target), top)?);
            }
        }
        Ok(scored)
    }

    fn prompt_token(
        &self,
        generation: &Generation,
        (row, target): (&[f32], u32),
        top: usize,
    ) -> Result<PromptToken> {
        let (logprob, top) = logprobs(row, target, top);
        if !logprob.is_finite() {
            self.health.failed(generation);
            bail!(
                "generation {} computed values that are not finite numbers",
                generation.id
            );
        }
        let own = row[target as usize];
        Ok(PromptToken {
            logprob,
            rank: 1 + row.iter().filter(|&&logit| logit > own).count(),
            top,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use realign_cpu::CpuBackend;
    use realign_model::ModelSource;
    use realign_model::packing::{Example, Packed};

    use super::*;
    use crate::adapter::generation::GenerationId;

    /// Against the model that training differentiates, over prompts shorter and longer than a pass.
    #[test]
    fn log_probabilities_are_those_of_the_training_model() {
        let path = realign_model::test_support::path("tests/golden/families/llama");
        let files = ModelSource::parse(&path)
            .and_then(ModelSource::fetch)
            .unwrap();
        let plain = realign_reference::load(&files).unwrap();
        let backend = Arc::new(CpuBackend::new(realign_cpu::load(&files).unwrap()));
        let embedder = Embedder::new(backend, Arc::default()).with_threads(2);
        let generation = Generation {
            id: GenerationId("0".repeat(12)),
            base_hash: "0".repeat(64),
            policy_revision: None,
            adapter: None,
        };
        for length in [2, 17, ROWS + 2] {
            let tokens: Vec<u32> = (0..length).map(|n| (n * 37 % 250) as u32).collect();
            let scored = embedder.prompt_logprobs(&generation, &tokens, 3).unwrap();
            assert_eq!(scored.len(), length - 1);
            let example = Example::new(vec![tokens[0]], vec![tokens[1..].to_vec()]);
            let expected = plain
                .response_logprobs(&Packed::new([&example]), None)
                .unwrap();
            let sum: f64 = scored.iter().map(|token| f64::from(token.logprob)).sum();
            assert!(
                (sum - expected[0][0]).abs() < 2e-2,
                "{sum} against {:?}",
                expected[0][0]
            );
            for token in &scored {
                assert_eq!(token.top.len(), 3);
                assert!(token.top[0].1 >= token.top[1].1 && token.rank >= 1);
                assert!((token.rank == 1) == (token.top[0].1 == token.logprob));
            }
        }
        assert!(embedder.prompt_logprobs(&generation, &[], 1).is_err());
        assert!(
            embedder
                .prompt_logprobs(&generation, &[3], 1)
                .unwrap()
                .is_empty()
        );
    }
}
