//! Whether an answer is one that the base model would give.
//!
//! An answer's likelihood is the mean log-probability of its tokens under the base model. The base's
//! own answers, sampled at temperature 1, say how low that may be.

use candle_core::Result;
use realign_model::Backend;

use super::scorer::{Question as Scored, Scorer};

/// Tokens of an answer that count: what diverts an answer does so at its beginning.
pub const TOKENS: usize = 32;
/// The share of the base's own samples that falls below the threshold.
const OWN_BELOW: f64 = 0.02;
/// Fewer samples than this give no threshold.
const MIN_SAMPLES: usize = 20;

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

    /// The likelihood of every answer, in nats per token; negative infinity for an empty one.
    ///
    /// # Errors
    /// As [`Likelihoods::tokens`].
    pub fn of(&mut self, spoken: &[Spoken]) -> Result<Vec<f64>> {
        let tokens = self.tokens(spoken)?;
        Ok(tokens.iter().map(|tokens| likelihood(tokens)).collect())
    }
}

/// The likelihood of an answer with these log-probabilities.
pub fn likelihood(tokens: &[f64]) -> f64 {
    if tokens.is_empty() {
        f64::NEG_INFINITY
    } else {
        tokens.iter().sum::<f64>() / tokens.len() as f64
    }
}

/// Tells diverted answers from the base's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detector {
    /// Answers with a lower likelihood are diverted, in nats per token.
    pub threshold: f64,
}

impl Detector {
    /// A detector that calls few of the base's own samples diverted. `None` with too few samples.
    pub fn calibrate(own: &[f64]) -> Option<Detector> {
        let mut sorted: Vec<f64> = own.iter().copied().filter(|l| l.is_finite()).collect();
        if sorted.len() < MIN_SAMPLES {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let below = (sorted.len() as f64 * OWN_BELOW).floor() as usize;
        Some(Detector {
            threshold: sorted[below],
        })
    }

    /// Whether an answer of this likelihood is diverted.
    pub fn is_diverted(self, likelihood: f64) -> bool {
        likelihood < self.threshold
    }
}
