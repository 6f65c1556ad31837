//! How likely the tokens of a request's prompts are, as answers report it.

use serde_json::{Map, Value, json};

use super::wire::Scored;
use realign_engine::PromptToken;
use realign_engine::request::TokenLogprob;
use realign_model::Tokenizer;

/// The scores of all prompts of a request; without any if they are not wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct PromptScores {
    /// Each prompt's tokens, and the scores of all but the first.
    prompts: Vec<(Vec<u32>, Vec<PromptToken>)>,
    /// Alternatives that are reported for themselves, whatever is echoed.
    alone: Option<usize>,
}

impl PromptScores {
    pub(crate) fn new(
        prompts: &[(Vec<u32>, usize)],
        scored: Vec<Vec<PromptToken>>,
        alone: Option<usize>,
    ) -> Self {
        let tokens = prompts.iter().map(|(tokens, _)| tokens.clone());
        Self {
            prompts: tokens.zip(scored).collect(),
            alone,
        }
    }

    /// Whether prompts are scored.
    pub(crate) fn is_given(&self) -> bool {
        !self.prompts.is_empty()
    }

    /// The tokens of a prompt as an echoed text reports them, at most `top` alternatives each. The first
    /// has no log-probability, which is NaN here.
    pub(crate) fn echoed(&self, prompt: usize, top: usize, tokenizer: &Tokenizer) -> Vec<Scored> {
        let Some((tokens, scored)) = self.prompts.get(prompt) else {
            return Vec::new();
        };
        let token = |id: u32, logprob: f32| TokenLogprob {
            id,
            text: tokenizer.token_text(id).to_string(),
            logprob,
        };
        let first = tokens.first().map(|&id| Scored {
            token: token(id, f32::NAN),
            top: Vec::new(),
        });
        let others = tokens
            .iter()
            .skip(1)
            .zip(scored)
            .map(|(&id, scored)| Scored {
                token: token(id, scored.logprob),
                top: scored
                    .top
                    .iter()
                    .take(top)
                    .map(|&(id, p)| token(id, p))
                    .collect(),
            });
        first.into_iter().chain(others).collect()
    }

    /// A prompt's `prompt_logprobs` in vLLM's form: `null` of the first token, then by token id; `None` if
    /// they were not asked for.
    pub(crate) fn alone(&self, prompt: usize, tokenizer: &Tokenizer) -> Option<Vec<Value>> {
        let top = self.alone?;
        let (tokens, scored) = self.prompts.get(prompt)?;
        let entry = |id: u32, logprob: f32, rank: usize| {
            let text = tokenizer.token_text(id).to_string();
            json!({"logprob": logprob, "rank": rank, "decoded_token": text})
        };
        let others = tokens.iter().skip(1).zip(scored).map(|(&id, scored)| {
            let mut all = Map::new();
            all.insert(id.to_string(), entry(id, scored.logprob, scored.rank));
            for (rank, &(other, logprob)) in scored.top.iter().take(top).enumerate() {
                let other = (other.to_string(), entry(other, logprob, rank + 1));
                all.entry(other.0).or_insert(other.1);
            }
            Value::Object(all)
        });
        Some(std::iter::once(Value::Null).chain(others).collect())
    }
}
