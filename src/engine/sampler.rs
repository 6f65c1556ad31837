//! Drawing the next token from a row of logits.

mod weights;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::request::SamplingParams;
use realign_model::DrawRequest;
use realign_model::vector::{logsumexp, max};
use weights::{BLOCK, Weights};

/// One sequence's sampler: its own random stream, so batch mates cannot change its text.
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
}

/// A candidate's id and its weight, exp(scaled logit), 1 for the most probable token.
type Candidate = (u32, f32);

/// What a token is drawn from. All sequences share one, which grows to the vocabulary once.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    weights: Weights,
    candidates: Vec<Candidate>,
    /// Logits that a request has changed.
    pub(crate) shaped: Vec<f32>,
}

/// The nucleus is looked for among this many best candidates first; mostly it is there.
const FIRST_LOOK: usize = 64;

impl Sampler {
    /// A sampler at the beginning of its stream.
    pub(crate) fn new(params: &SamplingParams) -> Self {
        Self {
            params: params.clone(),
            rng: ChaCha8Rng::seed_from_u64(params.seed),
        }
    }

    #[cfg(test)]
    pub(crate) fn seed(&self) -> u64 {
        self.params.seed
    }

    /// How the next token is to be drawn, for the executor that holds its logits. Takes as much of the random
    /// stream as [`Sampler::draw`] does.
    pub(crate) fn request(&mut self) -> DrawRequest {
        let greedy = self.params.temperature <= 0.0;
        DrawRequest {
            uniform: if greedy { 0.0 } else { self.rng.random() },
            temperature: self.params.temperature,
            top_p: self.params.top_p,
            min_p: self.params.min_p,
            top_k: self.params.top_k,
        }
    }

    /// Draws a token id. Ties go to the lower id.
    pub(crate) fn draw(&mut self, logits: &[f32], scratch: &mut Scratch) -> u32 {
        if self.params.temperature <= 0.0 {
            return argmax(logits) as u32;
        }
        let Scratch {
            weights,
            candidates,
            ..
        } = scratch;
        weights.fill(logits, max(logits), self.params.temperature);
        let uniform = self.rng.random::<f64>();
        let drawn = if self.is_narrowed(weights) {
            self.narrow(weights, candidates);
            pick(candidates, uniform)
        } else {
            weights.at(uniform * weights.total())
        };
        drawn.unwrap_or_else(|| argmax(logits) as u32)
    }

    /// Whether only some tokens may be drawn.
    fn is_narrowed(&self, weights: &Weights) -> bool {
        self.has_most(weights) || self.params.min_p > 0.0 || self.params.top_p < 1.0
    }

    /// Whether so many tokens are kept, and not all.
    fn has_most(&self, weights: &Weights) -> bool {
        (1..weights.len()).contains(&self.params.top_k)
    }

    /// The tokens that may be drawn.
    fn narrow(&self, weights: &Weights, candidates: &mut Vec<Candidate>) {
        let SamplingParams {
            top_k,
            top_p,
            min_p,
            ..
        } = self.params;
        let (has_most, total) = (self.has_most(weights), weights.total());
        // No token below this is among those that stay: what is left out is not worth sorting.
        let least = if has_most {
            weights.reached_by(top_k)
        } else if min_p > 0.0 {
            min_p
        } else {
            weights.outside(f64::from(1.0 - top_p) * total)
        };
        weights.collect(least, candidates);
        if has_most && (candidates.len() > top_k || weights.count() > top_k) {
            best_first(candidates, top_k);
            candidates.truncate(top_k);
        }
        // Weights are relative to the most probable token's.
        candidates.retain(|c| c.1 >= min_p);
        let is_whole = !has_most && min_p <= 0.0;
        let mass = if is_whole { total } else { sum(candidates) };
        if top_p < 1.0 {
            keep_nucleus(candidates, f64::from(top_p) * mass);
        }
    }
}

/// The candidate at which the running sum reaches `uniform` of the whole.
fn pick(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let mut rest = uniform * sum(candidates);
    let reached = candidates.iter().find(|candidate| {
        rest -= f64::from(candidate.1);
        rest <= 0.0
    });
    // Rounding can leave a sliver of `rest`: the last candidate owns it.
    reached.or(candidates.last()).map(|c| c.0)
}

/// In f64, so that the rounding of a vocabulary's worth of small weights does not add up.
fn sum(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.1)).sum()
}

/// Brings the `n` best candidates to the front, the best first, the lower id of equals first.
fn best_first(candidates: &mut [Candidate], n: usize) {
    let order = |a: &Candidate, b: &Candidate| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if (1..candidates.len()).contains(&n) {
        candidates.select_nth_unstable_by(n - 1, order);
    }
    let n = n.min(candidates.len());
    candidates[..n].sort_unstable_by(order);
}

/// Keeps the smallest set of best candidates whose weights reach `limit`, at least one.
fn keep_nucleus(candidates: &mut Vec<Candidate>, limit: f64) {
    let mut look = FIRST_LOOK;
    loop {
        best_first(candidates, look);
        let mut reached = 0.0;
        let keep = candidates.iter().take(look).position(|c| {
            reached += f64::from(c.1);
            reached >= limit
        });
        if let Some(last) = keep {
            return candidates.truncate(last + 1);
        }
        if look >= candidates.len() {
            return;
        }
        look *= 8;
    }
}

/// Index of the largest logit, the lowest of equals.
pub(crate) fn argmax(logits: &[f32]) -> usize {
    // Two passes of vectors are several times as fast as one that carries the place along.
    let best = max(logits);
    logits.iter().position(|l| *l == best).unwrap_or_default()
}

/// log p of one token, and the `n` most probable ones with theirs, best first.
pub(crate) fn logprobs(logits: &[f32], token: u32, n: usize) -> (f32, Vec<(u32, f32)>) {
    let normaliser = logsumexp(logits);
    let mut top = if n > 0 {
        largest(logits, n)
    } else {
        Vec::new()
    };
    for (_, logit) in &mut top {
        *logit -= normaliser;
    }
    (logits[token as usize] - normaliser, top)
}

/// The `n` largest logits with their ids, the largest first. Holds `n` of them while it reads the row once.
fn largest(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(n.min(logits.len()));
    let belongs = |top: &[(u32, f32)], logit: f32| {
        top.len() < n || top.last().is_some_and(|worst| logit > worst.1)
    };
    for (first, block) in (0u32..).step_by(BLOCK).zip(logits.chunks(BLOCK)) {
        // Few blocks have one of the best, and vectors find which.
        if !belongs(&top, max(block)) {
            continue;
        }
        for (id, &logit) in (first..).zip(block) {
            if belongs(&top, logit) {
                // Ids ascend, so an equal one found before stays in front.
                let at = top.partition_point(|(_, better)| *better >= logit);
                top.truncate(n - 1);
                top.insert(at, (id, logit));
            }
        }
    }
    top
}

#[cfg(test)]
mod tests;
