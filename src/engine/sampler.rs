//! Drawing the next token from a row of logits.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::request::SamplingParams;
use crate::model::ops::logsumexp;

/// One sequence's sampler: its own random stream, so batch mates cannot change its text.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
}

/// A token's probability falls below 1e-13 of the best one's here: never drawn, not worth sorting.
const NEGLIGIBLE: f32 = -30.0;

impl Sampler {
    /// A sampler at the beginning of its stream.
    pub fn new(params: &SamplingParams) -> Self {
        Self {
            params: params.clone(),
            rng: ChaCha8Rng::seed_from_u64(params.seed),
        }
    }

    /// Draws a token id. Ties go to the lower id.
    pub fn draw(&mut self, logits: &[f32]) -> u32 {
        let best = argmax(logits);
        if self.params.temperature <= 0.0 {
            return best as u32;
        }
        let top = logits[best];
        let scaled = |l: f32| (l - top) / self.params.temperature;
        let mut candidates: Vec<(u32, f32)> = logits
            .iter()
            .enumerate()
            .filter(|(_, l)| scaled(**l) > NEGLIGIBLE)
            .map(|(id, l)| (id as u32, scaled(*l).exp()))
            .collect();
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.params.top_k > 0 {
            candidates.truncate(self.params.top_k);
        }
        keep_nucleus(&mut candidates, self.params.top_p);
        let total: f32 = candidates.iter().map(|c| c.1).sum();
        let mut rest = self.rng.random::<f32>() * total;
        for (id, weight) in &candidates {
            rest -= weight;
            if rest <= 0.0 {
                return *id;
            }
        }
        // Rounding can leave a sliver of `rest`: the last candidate owns it.
        candidates.last().map_or(best as u32, |c| c.0)
    }
}

/// Keeps the smallest set of best candidates whose share reaches `top_p`, at least one.
fn keep_nucleus(candidates: &mut Vec<(u32, f32)>, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let limit = top_p * candidates.iter().map(|c| c.1).sum::<f32>();
    let mut sum = 0.0;
    let keep = candidates.iter().position(|c| {
        sum += c.1;
        sum >= limit
    });
    candidates.truncate(keep.map_or(candidates.len(), |i| i + 1));
}

/// Index of the largest logit, the lowest of equals.
pub fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &l) in logits.iter().enumerate() {
        if l > logits[best] {
            best = i;
        }
    }
    best
}

/// log p of one token, and the `n` most probable ones with theirs, best first.
pub fn logprobs(logits: &[f32], token: u32, n: usize) -> (f32, Vec<(u32, f32)>) {
    let normaliser = logsumexp(logits);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    };
    let n = n.min(order.len());
    if n > 0 && n < order.len() {
        order.select_nth_unstable_by(n - 1, by_logit);
    }
    order.truncate(n);
    order.sort_by(by_logit);
    let top = order
        .into_iter()
        .map(|id| (id, logits[id as usize] - normaliser))
        .collect();
    (logits[token as usize] - normaliser, top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(params: SamplingParams, n: usize) -> Vec<u32> {
        let logits = [1.0f32, 3.0, 2.0, -50.0, 3.0];
        let mut sampler = Sampler::new(&params);
        (0..n).map(|_| sampler.draw(&logits)).collect()
    }

    #[test]
    fn temperature_zero_is_greedy_and_ties_go_to_the_lower_id() {
        assert_eq!(draws(SamplingParams::default(), 3), [1, 1, 1]);
    }

    #[test]
    fn the_same_seed_draws_the_same_and_limits_hold() {
        let params = SamplingParams {
            temperature: 1.0,
            seed: 5,
            ..Default::default()
        };
        let all = draws(params.clone(), 400);
        assert_eq!(all, draws(params.clone(), 400));
        assert_ne!(
            all,
            draws(
                SamplingParams {
                    seed: 6,
                    ..params.clone()
                },
                400
            )
        );
        assert!([0, 1, 2, 4].iter().all(|id| all.contains(id)) && !all.contains(&3));
        let two = draws(
            SamplingParams {
                top_k: 2,
                ..params.clone()
            },
            400,
        );
        assert!(two.iter().all(|id| [1, 4].contains(id)));
        let nucleus = draws(
            SamplingParams {
                top_p: 0.1,
                ..params
            },
            50,
        );
        assert!(nucleus.iter().all(|id| *id == 1));
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let params = SamplingParams {
            temperature: 2.0,
            seed: 1,
            ..Default::default()
        };
        let all = draws(params, 20_000);
        let expected: Vec<f64> = [1.0f64, 3.0, 2.0, -50.0, 3.0]
            .iter()
            .map(|l| (l / 2.0).exp())
            .collect();
        let sum: f64 = expected.iter().sum();
        for (id, weight) in expected.iter().enumerate() {
            let share = all.iter().filter(|d| **d == id as u32).count() as f64 / 20_000.0;
            assert!((share - weight / sum).abs() < 0.02, "token {id}: {share}");
        }
    }

    #[test]
    fn logprobs_are_normalised_and_sorted() {
        let (own, top) = logprobs(&[0.0, 1.0, 2.0], 0, 2);
        assert!((own + 2.407_606).abs() < 1e-4);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 1]);
        assert!((top[0].1 + 0.407_606).abs() < 1e-4);
        assert_eq!(logprobs(&[0.0, 1.0], 1, 9).1.len(), 2);
    }
}
