//! What is drawn, by count and beside the slow form.

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
        let limit = top_p * sum(&kept);
        keep_nucleus(&mut kept, limit);
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
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
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 53) % 40) as f32).collect();
    let mut order: Vec<u32> = (0..1000).collect();
    order.sort_by(|&a, &b| {
        logits[b as usize]
            .total_cmp(&logits[a as usize])
            .then(a.cmp(&b))
    });
    for n in [0, 1, 7, 20, 300, 1000, 1200] {
        let ids: Vec<u32> = logprobs(&logits, 0, n).1.iter().map(|t| t.0).collect();
        assert_eq!(ids, order[..n.min(1000)]);
    }
}

/// Where the running sum reaches a limit, the last place if it does not.
fn reaches(candidates: &[Candidate], limit: f64) -> usize {
    let mut sum = 0.0;
    let at = candidates.iter().position(|candidate| {
        sum += f64::from(candidate.1);
        sum >= limit
    });
    at.unwrap_or(candidates.len() - 1)
}

/// The slow form: every token's weight by itself, sorted as a whole.
fn plainly(params: &SamplingParams, uniform: f64, logits: &[f32]) -> u32 {
    let best = max(logits);
    let weight = |l: &f32| ((l - best) / params.temperature).exp();
    let all = (0u32..).zip(logits.iter().map(weight));
    let mut kept: Vec<Candidate> = all.filter(|c| c.1 > 1e-13).collect();
    let sort = |kept: &mut Vec<Candidate>| {
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    };
    if (1..kept.len()).contains(&params.top_k) {
        sort(&mut kept);
        kept.truncate(params.top_k);
    }
    kept.retain(|c| c.1 >= params.min_p);
    if params.top_p < 1.0 {
        sort(&mut kept);
        let last = reaches(&kept, f64::from(params.top_p) * sum(&kept));
        kept.truncate(last + 1);
    }
    kept[reaches(&kept, uniform * sum(&kept))].0
}

#[test]
fn blocks_of_weights_draw_what_the_slow_form_draws() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut scratch = Scratch::default();
    for size in [1, 2, 255, 257, 1000, 3000] {
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (0, 0.9, 0.0),
            (0, 0.0, 0.0),
            (0, 1.0, 0.05),
            (1, 1.0, 0.0),
            (7, 1.0, 0.0),
            (64, 0.8, 0.0),
            (300, 0.95, 0.01),
            (2999, 1.0, 0.0),
        ] {
            for seed in 0..12 {
                // Most tokens far below the best ones, as a model has them; some are masked, some tie.
                let logits: Vec<f32> = (0..size)
                    .map(|_| match random.random_range(0..10) {
                        0 => f32::NEG_INFINITY,
                        1 => 2.5,
                        _ => {
                            (0..6)
                                .map(|_| random.random_range(-3.0..3.0f32))
                                .sum::<f32>()
                                * 2.0
                        }
                    })
                    .collect();
                let params = SamplingParams {
                    temperature: [0.6, 1.0, 1.7][seed as usize % 3],
                    seed,
                    top_k,
                    top_p,
                    min_p,
                    ..SamplingParams::default()
                };
                if max(&logits) == f32::NEG_INFINITY {
                    continue;
                }
                let uniform = Sampler::new(&params).rng.random();
                assert_eq!(
                    Sampler::new(&params).draw(&logits, &mut scratch),
                    plainly(&params, uniform, &logits),
                    "{size} {params:?}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_number_is_never_drawn() {
    let params = SamplingParams {
        temperature: 1.0,
        ..Default::default()
    };
    let drawn = |logits: &[f32]| Sampler::new(&params).draw(logits, &mut Scratch::default());
    let mut logits = vec![f32::NAN; 700];
    logits[600] = 1.0;
    assert_eq!(drawn(&logits), 600);
    assert_eq!(drawn(&[f32::NEG_INFINITY; 300]), 0);
    assert_eq!(drawn(&[0.0, f32::INFINITY]), 1);
}
