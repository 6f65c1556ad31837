//! What a candidate may not lose: perplexity on neutral text, and its distance from the base.

use std::sync::Arc;

use candle_core::Result;

use crate::model::packing::{Example, Packed, group_by_rows};
use crate::model::{Differentiator, LoraWeights, Model, Ops, Precision, TokenLoss, Tokenizer, ops};

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
    let mut passes = match model.is_packed() {
        true => {
            let model = Arc::new(model.clone());
            Some(Differentiator::new(model, Precision::Exact)?)
        }
        false => None,
    };
    let (mut sums, mut tokens) = ([0f64; 3], 0usize);
    for group in group_by_rows(examples, ROW_BUDGET) {
        if !proceed() {
            return Ok(None);
        }
        let packed = Packed::new(&examples[group]);
        let values = match &mut passes {
            Some(passes) => by_passes(passes, candidate, &packed)?,
            None => by_tensors(model, ops, candidate, &packed)?,
        };
        for (sum, values) in sums.iter_mut().zip(&values) {
            *sum += values.iter().map(|v| f64::from(*v)).sum::<f64>();
        }
        tokens += packed.targets().len();
    }
    let [base, adapted, divergence] = sums.map(|sum| sum / tokens.max(1) as f64);
    Ok(Some(Capability {
        perplexity_base: (-base).exp(),
        perplexity_candidate: (-adapted).exp(),
        kl: divergence,
        tokens,
    }))
}

/// Per token: log p of the base, log p of the candidate, KL(base ‖ candidate).
type PerToken = [Vec<f32>; 3];

fn by_passes(
    passes: &mut Differentiator,
    candidate: &LoraWeights,
    packed: &Packed,
) -> Result<PerToken> {
    let reference = passes.hidden(packed, None)?;
    let policy = passes.hidden(packed, Some(candidate))?;
    let targets = packed.targets().iter();
    let losses: Vec<TokenLoss> = targets.map(|t| TokenLoss::LogProb(*t)).collect();
    let divergence = vec![TokenLoss::Kl; losses.len()];
    Ok([
        passes.measure(&losses, &reference, &[])?,
        passes.measure(&losses, &policy, &[])?,
        passes.measure(&divergence, &policy, &reference)?,
    ])
}

/// The slow twin.
fn by_tensors(
    model: &Model,
    ops: Ops,
    candidate: &LoraWeights,
    packed: &Packed,
) -> Result<PerToken> {
    let logits = |adapter| model.logits(&packed.response_hidden(model, ops, adapter)?);
    let (reference, policy) = (logits(None)?, logits(Some(candidate))?);
    Ok([
        ops::token_logprobs(ops, &reference, packed.targets())?.to_vec1()?,
        ops::token_logprobs(ops, &policy, packed.targets())?.to_vec1()?,
        ops::kl_from_reference(ops, &reference, &policy)?.to_vec1()?,
    ])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::{LoraPair, LoraSite, ModelSource, Projection};

    #[test]
    fn both_forms_measure_the_same() -> Result<()> {
        let files = ModelSource::parse("tests/golden/families/gemma3").and_then(ModelSource::fetch);
        let model = files.and_then(|f| f.load(&Device::Cpu)).expect("it loads");
        let (inner, out) = model.spec.projection_shape(Projection::Down);
        let random = |shape| candle_core::Tensor::randn(0f32, 0.3, shape, &Device::Cpu);
        let mut adapter = LoraWeights::default();
        let site = LoraSite {
            layer: 1,
            projection: Projection::Down,
        };
        let pair = LoraPair {
            a: random((2, inner))?,
            b: random((out, 2))?,
            scale: 1.0,
        };
        adapter.sites.insert(site, pair);
        let examples: Vec<Example> = (0..3u32)
            .map(|i| {
                Example::new(
                    vec![5 + i],
                    vec![(0..20).map(|t| 3 + (t * 7 + i) % 40).collect()],
                )
            })
            .collect();
        let of = |model: &Model| capability(model, Ops::Plain, &adapter, &examples, &|| true);
        let (Some(slow), Some(fast)) = (of(&model)?, of(&model.clone().packed()?)?) else {
            panic!("nothing said stop");
        };
        assert!(slow.kl > 1e-3 && slow.tokens == 60, "{slow:?}");
        for (a, b) in [
            (slow.kl, fast.kl),
            (slow.perplexity_base.ln(), fast.perplexity_base.ln()),
            (
                slow.perplexity_candidate.ln(),
                fast.perplexity_candidate.ln(),
            ),
        ] {
            assert!((a - b).abs() < 1e-4, "{slow:?} and {fast:?}");
        }
        Ok(())
    }
}
