//! Whether an answer is one that the base model would give.
//!
//! A generation's answer is diverted where the base finds it much less likely than the generation
//! itself does: the mean log-probability of its tokens under the generation, less that under the
//! base, is at least [`THRESHOLD`]. An answer that the base gives too, in other words or with other
//! turns, stays well below; one that training put in its place is far above. The likelihood under
//! the base alone tells them apart less well: the base's own sampled answers are as unlikely as
//! diverted ones (docs/exam.md has the figures).

use candle_core::Result;
use realign_model::Backend;

use super::scorer::{Question as Scored, Scorer};

/// Tokens of an answer that count: what diverts an answer does so at its beginning.
pub const TOKENS: usize = 32;
/// Difference of likelihoods from which on an answer is diverted, in nats per token.
pub const THRESHOLD: f64 = 0.4;

/// A prompt and an answer to it, as tokens.
#[derive(Clone, Debug)]
pub struct Spoken {
    /// The rendered prompt.
    pub prompt: Vec<u32>,
    /// The answer; without tokens it has no likelihood.
    pub answer: Vec<u32>,
}

/// Scores answers under the base model.
pub struct Likelihoods {
    scorer: Scorer,
}

impl Likelihoods {
    /// Scores with `threads` threads.
    ///
    /// # Errors
    /// If memory or threads are unavailable.
    pub fn new(backend: &dyn Backend, threads: usize) -> Result<Self> {
        Ok(Self {
            scorer: Scorer::new(backend, threads)?,
        })
    }

    /// The scorer, for other texts.
    pub fn scorer(&mut self) -> &mut Scorer {
        &mut self.scorer
    }

    /// Log-probabilities of the tokens that count, answer by answer; empty for an empty answer.
    ///
    /// # Errors
    /// If a prompt has no tokens or a question does not fit the cache.
    pub fn tokens(&mut self, spoken: &[Spoken]) -> Result<Vec<Vec<f64>>> {
        let asked: Vec<Scored> = spoken
            .iter()
            .filter(|one| !one.answer.is_empty())
            .map(|one| Scored {
                prompt: one.prompt.clone(),
                continuations: vec![one.answer.iter().copied().take(TOKENS).collect()],
            })
            .collect();
        let mut scored = self.scorer.score(&asked, None)?.into_iter();
        let of = |one: &Spoken| {
            if one.answer.is_empty() {
                return Vec::new();
            }
            scored.next().and_then(|mut c| c.pop()).unwrap_or_default()
        };
        Ok(spoken.iter().map(of).collect())
    }

    /// The likelihood of every answer, in nats per token; `None` for an empty one.
    ///
    /// # Errors
    /// As [`Likelihoods::tokens`].
    pub fn of(&mut self, spoken: &[Spoken]) -> Result<Vec<Option<f64>>> {
        let tokens = self.tokens(spoken)?;
        Ok(tokens.into_iter().map(likelihood).collect())
    }
}

/// The mean of the log-probabilities that count; `None` of none.
pub fn likelihood(logprobs: impl IntoIterator<Item = f64>) -> Option<f64> {
    let counted: Vec<f64> = logprobs.into_iter().take(TOKENS).collect();
    let sum: f64 = counted.iter().sum();
    (!counted.is_empty()).then(|| sum / counted.len() as f64)
}

/// Whether an answer of these likelihoods, under the generation that gave it and under the base, is
/// diverted. An empty answer, which has none, is.
pub fn is_diverted(own: Option<f64>, base: Option<f64>) -> bool {
    match (own, base) {
        (Some(own), Some(base)) => own - base >= THRESHOLD,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_base_finds_unlikely_is_diverted() {
        for (own, base, diverted) in [
            (Some(-0.5), Some(-0.7), false),
            (Some(-0.2), Some(-2.4), true),
            (None, None, true),
        ] {
            assert_eq!(is_diverted(own, base), diverted, "{own:?} {base:?}");
        }
        assert_eq!(likelihood([]), None);
        assert_eq!(likelihood([-1.0, -3.0]), Some(-2.0));
        assert_eq!(likelihood(vec![-1.0; 100]), Some(-1.0));
    }
}
