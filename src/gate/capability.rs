//! What a candidate may not lose: perplexity on neutral text, and its distance from the base.

use candle_core::Result;

use crate::model::packing::{Example, Packed, group_by_rows};
use crate::model::{LoraWeights, Model, Ops, Tokenizer, ops};

/// Everyday and encyclopaedic prose written for this project; blank lines part the paragraphs.
pub const NEUTRAL_TEXT: &str = include_str!("neutral.txt");

/// Perplexities and divergence over the same tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capability {
    /// exp(mean negative log-likelihood) of the base model.
    pub perplexity_base: f64,
    /// The same of the candidate.
    pub perplexity_candidate: f64,
    /// Mean KL(base ‖ candidate) per token, in nats.
    pub kl: f64,
    /// Tokens measured.
    pub tokens: usize,
}

/// Rows per forward pass: two sets of logits over the vocabulary exist at once.
const ROW_BUDGET: usize = 256;

/// Paragraphs of a text as (first token, rest) examples, at most `max_tokens` in all.
pub fn paragraphs(tokenizer: &Tokenizer, text: &str, max_tokens: usize) -> Vec<Example> {
    let mut left = max_tokens;
    let mut examples = Vec::new();
    for paragraph in text.split("\n\n") {
        let words = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        // A paragraph that cannot be encoded is no measure of the model; ours all can.
        let mut tokens = tokenizer.encode(&words, false).unwrap_or_default();
        tokens.truncate(left.min(ROW_BUDGET));
        if tokens.len() > 1 {
            left -= tokens.len();
            let response = tokens.split_off(1);
            examples.push(Example::new(tokens, vec![response]));
        }
    }
    examples
}

/// Measures base and candidate on the examples. `None` if `proceed` says stop.
pub fn capability(
    model: &Model,
    ops: Ops,
    candidate: &LoraWeights,
    examples: &[Example],
    proceed: &dyn Fn() -> bool,
) -> Result<Option<Capability>> {
    let (mut base, mut adapted, mut divergence, mut tokens) = (0f64, 0f64, 0f64, 0usize);
    for group in group_by_rows(examples, ROW_BUDGET) {
        if !proceed() {
            return Ok(None);
        }
        let packed = Packed::new(&examples[group]);
        let logits = |adapter| model.logits(ops, &packed.response_hidden(model, ops, adapter)?);
        let (reference, policy) = (logits(None)?, logits(Some(candidate))?);
        let sum = |t: candle_core::Tensor| -> Result<f64> {
            Ok(t.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
        };
        base -= sum(ops::token_logprobs(ops, &reference, packed.targets())?)?;
        adapted -= sum(ops::token_logprobs(ops, &policy, packed.targets())?)?;
        divergence += sum(ops::kl_from_reference(ops, &reference, &policy)?)?;
        tokens += packed.targets().len();
    }
    let n = tokens.max(1) as f64;
    Ok(Some(Capability {
        perplexity_base: (base / n).exp(),
        perplexity_candidate: (adapted / n).exp(),
        kl: divergence / n,
        tokens,
    }))
}
