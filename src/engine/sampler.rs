//! Drawing the next token from a row of logits.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::request::SamplingParams;
use realign_model::DrawRequest;
use realign_model::vector::{logsumexp, max};

/// One sequence's sampler: its own random stream, so batch mates cannot change its text.
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
}

/// A candidate's id and its weight, exp(scaled logit), 1 for the most probable token.
type Candidate = (u32, f32);

/// Candidates while a token is drawn. All sequences share one, which grows to the vocabulary once.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    candidates: Vec<Candidate>,
    /// Logits that a request has changed.
    pub(crate) shaped: Vec<f32>,
}

/// A token's probability falls below 1e-13 of the best one's here: never drawn, not worth sorting.
const NEGLIGIBLE: f32 = -30.0;
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
        let best = argmax(logits);
        if self.params.temperature <= 0.0 {
            return best as u32;
        }
        let candidates = &mut scratch.candidates;
        candidates.clear();
        let top = logits[best];
        let scaled = |l: f32| (l - top) / self.params.temperature;
        candidates.extend(
            (0u32..)
                .zip(logits)
                .filter(|(_, l)| scaled(**l) > NEGLIGIBLE)
                .map(|(id, l)| (id, scaled(*l).exp())),
        );
        if (1..candidates.len()).contains(&self.params.top_k) {
            best_first(candidates, self.params.top_k);
            candidates.truncate(self.params.top_k);
        }
        if self.params.min_p > 0.0 {
            // Weights are relative to the most probable token's.
            candidates.retain(|c| c.1 >= self.params.min_p);
        }
        keep_nucleus(candidates, self.params.top_p);
        let mut rest = self.rng.random::<f64>() * sum(candidates);
        for (id, weight) in candidates.iter() {
            rest -= f64::from(*weight);
            if rest <= 0.0 {
                return *id;
            }
        }
        // Rounding can leave a sliver of `rest`: the last candidate owns it.
        candidates.last().map_or(best as u32, |c| c.0)
    }
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

/// Keeps the smallest set of best candidates whose share reaches `top_p`, at least one.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let limit = f64::from(top_p) * sum(candidates);
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

/// log p of one token, and the `n` most probable ones with theirs, best first. Holds `n` tokens
/// while it reads the logits once.
pub(crate) fn logprobs(logits: &[f32], token: u32, n: usize) -> (f32, Vec<(u32, f32)>) {
    let normaliser = logsumexp(logits);
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(n.min(logits.len()));
    for (id, &logit) in (0u32..).zip(logits) {
        if top.len() == n && top.last().is_none_or(|worst| logit <= worst.1) {
            continue;
        }
        // Ids ascend, so an equal one found before stays in front.
        let at = top.partition_point(|(_, better)| *better >= logit);
        top.truncate(n - 1);
        top.insert(at, (id, logit));
    }
    for (_, logit) in &mut top {
        *logit -= normaliser;
    }
    (logits[token as usize] - normaliser, top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(params: SamplingParams, n: usize) -> Vec<u32> {
        let logits = [1.0f32, 3.0, 2.0, -50.0, 3.0];
        let (mut sampler, mut scratch) = (Sampler::new(&params), Scratch::default());
        let draw = |_| sampler.draw(&logits, &mut scratch);
        (0..n).map(draw).collect()
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
                ..params.clone()
            },
            50,
        );
        assert!(nucleus.iter().all(|id| *id == 1));
        // The second best has e^-1 = 0.37 of the best one's probability, the third 0.14.
        let min_p = |min_p| SamplingParams {
            min_p,
            ..params.clone()
        };
        assert!(draws(min_p(0.3), 400).iter().all(|id| *id != 0));
        assert!(draws(min_p(0.3), 400).contains(&2));
        assert!(draws(min_p(0.4), 400).iter().all(|id| [1, 4].contains(id)));
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
    #[test]
    fn the_nucleus_is_the_same_as_after_a_full_sort() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for round in 0..40 {
            // Coarse weights, so that there are ties; few or many reach the limit.
            let size = random.random_range(1..3000);
            let weight = |id| (id, random.random_range(1..20) as f32 / 20.0);
            let mut kept: Vec<Candidate> = (0..size).map(weight).collect();
            let mut sorted = kept.clone();
            let top_p = [0.0, 0.01, 0.5, 0.99, 0.9999][round % 5];
            keep_nucleus(&mut kept, top_p);
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let limit = f64::from(top_p) * sum(&sorted);
            let enough = (1..=sorted.len()).find(|&n| sum(&sorted[..n]) >= limit);
            assert_eq!(kept, sorted[..enough.unwrap()], "{size} {top_p}");
        }
    }

    #[test]
    fn a_draw_leaves_nothing_behind_for_the_next() {
        let sampling = |top_k, top_p| SamplingParams {
            temperature: 0.8,
            top_k,
            top_p,
            seed: 9,
            ..Default::default()
        };
        let logits = |shift: usize| -> Vec<f32> {
            (0..500)
                .map(|i| ((i * 37 + shift) % 91) as f32 / 9.0)
                .collect()
        };
        let mut shared = Scratch::default();
        for params in [
            sampling(0, 1.0),
            sampling(5, 1.0),
            sampling(0, 0.7),
            sampling(40, 0.5),
        ] {
            let mut beside = Sampler::new(&params);
            let mut alone = Sampler::new(&params);
            for step in 0..50 {
                let expected = alone.draw(&logits(step), &mut Scratch::default());
                assert_eq!(beside.draw(&logits(step), &mut shared), expected);
                Sampler::new(&sampling(0, 1.0)).draw(&logits(step + 7), &mut shared);
            }
        }
    }

    #[test]
    fn the_most_probable_tokens_are_those_of_a_full_sort() {
        let logits: Vec<f32> = (0..300).map(|i| ((i * 53) % 40) as f32).collect();
        let mut order: Vec<u32> = (0..300).collect();
        order.sort_by(|&a, &b| {
            logits[b as usize]
                .total_cmp(&logits[a as usize])
                .then(a.cmp(&b))
        });
        for n in [0, 1, 7, 20, 300, 400] {
            let ids: Vec<u32> = logprobs(&logits, 0, n).1.iter().map(|t| t.0).collect();
            assert_eq!(ids, order[..n.min(300)]);
        }
    }
}
