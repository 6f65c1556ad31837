//! What a candidate may not lose: perplexity on neutral text, and its distance from the base.

use candle_core::Result;

use realign_model::packing::{Example, Packed, group_by_rows};
use realign_model::{Backend, LoraWeights, Measured, Precision, TokenLoss, Tokenizer};

use crate::train::passes::Passes;

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
pub(crate) const ROW_BUDGET: usize = 256;

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
///
/// # Errors
/// If the adapter does not fit the model.
pub fn capability(
    backend: &dyn Backend,
    candidate: &LoraWeights,
    examples: &[Example],
    proceed: &dyn Fn() -> bool,
) -> Result<Option<Capability>> {
    let mut passes = Passes::new(backend, Precision::Exact)?;
    let (mut sums, mut tokens) = ([0f64; 3], 0usize);
    for group in group_by_rows(examples, ROW_BUDGET) {
        if !proceed() {
            return Ok(None);
        }
        let packed = Packed::new(&examples[group]);
        let values = measure(&mut passes, candidate, &packed)?;
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

fn measure(passes: &mut Passes, candidate: &LoraWeights, packed: &Packed) -> Result<PerToken> {
    let (reference, of_base) = passes.reference(packed, None)?;
    let (policy, of_candidate) = passes.reference(packed, Some(candidate))?;
    let divergence = vec![TokenLoss::Kl; of_base.len()];
    let measured = Measured {
        losses: &divergence,
        reference: Some(&reference),
    };
    let divergence = passes.measure(measured, &policy)?;
    Ok([of_base, of_candidate, divergence])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use realign_cpu::CpuBackend;
    use realign_reference::ReferenceBackend;

    use super::*;
    use realign_model::{LoraPair, LoraSite, ModelSource, Projection};

    #[test]
    fn both_forms_measure_the_same() -> Result<()> {
        let files = ModelSource::parse(&realign_model::test_support::path(
            "tests/golden/families/gemma3",
        ))
        .and_then(ModelSource::fetch)
        .expect("it is there");
        let slow = ReferenceBackend::new(realign_reference::load(&files).expect("it loads"));
        let fast = CpuBackend::new(realign_cpu::load(&files).expect("it loads"));
        let (inner, out) = slow.spec().projection_shape(Projection::Down);
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
        let of = |backend: &dyn Backend| capability(backend, &adapter, &examples, &|| true);
        let (Some(slow), Some(fast)) = (of(&slow)?, of(&fast)?) else {
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
