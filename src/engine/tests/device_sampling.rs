//! The kernel that draws tokens on a device, against the sampler that draws them on the host.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::request::SamplingParams;
use super::super::sampler::{Sampler, Scratch};
use realign_cuda::launches;
use realign_cuda::tables::Upload;
use realign_cuda::tests::{UnderTest, devices};
use realign_model::draw::NOT_FINITE;

const VOCAB: usize = 3000;

fn params(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> SamplingParams {
    SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        ..SamplingParams::default()
    }
}

fn cases() -> Vec<SamplingParams> {
    vec![
        params(0.0, 0, 1.0, 0.0),
        params(1.0, 0, 1.0, 0.0),
        params(0.7, 5, 1.0, 0.0),
        params(1.0, 1, 1.0, 0.0),
        params(1.3, 0, 0.8, 0.0),
        params(1.0, 40, 0.5, 0.0),
        params(1.0, 0, 0.0, 0.0),
        params(1.0, 0, 1.0, 0.2),
        params(0.9, 50, 0.9, 0.05),
        params(1.0, VOCAB + 1, 0.999, 0.0),
    ]
}

/// What the device draws from rows of logits, row `i` with seed `i`.
fn drawn(test: &UnderTest, case: &SamplingParams, logits: &[f32]) -> Vec<u32> {
    let rows = logits.len() / VOCAB;
    let request = |seed| {
        let case = case.clone();
        Sampler::new(&SamplingParams { seed, ..case }).request()
    };
    let requests: Vec<_> = (0..rows as u64).map(request).collect();
    let mut upload = Upload::default();
    upload.draws(&requests);
    let bytes: Vec<u8> = logits.iter().flat_map(|l| l.to_le_bytes()).collect();
    let at = test.bytes(&bytes).unwrap();
    let draws = test.bytes(&upload.bytes).unwrap();
    let tokens = test.numbers(&vec![u32::MAX; rows]).unwrap();
    let addresses = [at.address, draws.address, tokens.address];
    test.gpu
        .launch(&launches::sample([rows, VOCAB], addresses))
        .unwrap();
    let mut ids = vec![0u8; 4 * rows];
    test.gpu.read(tokens.address, &mut ids).unwrap();
    ids.chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// Draws of both for rows of logits that `make` gives, one row a seed.
fn agree(test: &UnderTest, make: impl Fn(&mut ChaCha8Rng) -> f32) {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut scratch = Scratch::default();
    for case in cases() {
        let rows = 6;
        let logits: Vec<f32> = (0..rows * VOCAB).map(|_| make(&mut random)).collect();
        let on_host: Vec<u32> = logits
            .chunks_exact(VOCAB)
            .zip(0..)
            .map(|(row, seed)| {
                let case = case.clone();
                Sampler::new(&SamplingParams { seed, ..case }).draw(row, &mut scratch)
            })
            .collect();
        let on_device = drawn(test, &case, &logits);
        assert_eq!(on_device, on_host, "{case:?} on {}", test.name);
    }
}

#[test]
fn the_device_draws_what_the_host_would() {
    for test in devices() {
        agree(&test, |random| random.random_range(-6.0..6.0));
    }
}

#[test]
fn ties_go_the_same_way() {
    for test in devices() {
        // Sixteen different logits in three thousand places.
        agree(&test, |random| random.random_range(0..16) as f32 * 0.5);
        // Most of the vocabulary masked.
        agree(&test, |random| match random.random_range(0..100) {
            0 => random.random_range(-3.0..3.0),
            _ => f32::NEG_INFINITY,
        });
    }
}

#[test]
fn rows_that_are_not_finite_give_no_token() {
    for test in devices() {
        let mut logits: Vec<f32> = (0..5 * VOCAB).map(|i| (i % 91) as f32 * 0.1).collect();
        logits[VOCAB - 1] = f32::NAN;
        logits[VOCAB..2 * VOCAB].fill(f32::NAN);
        logits[2 * VOCAB + 700] = f32::INFINITY;
        logits[3 * VOCAB..4 * VOCAB].fill(f32::NEG_INFINITY);
        for case in cases() {
            let ids = drawn(&test, &case, &logits);
            assert_eq!(ids[..4], [NOT_FINITE; 4], "{case:?} on {}", test.name);
            assert!(ids[4] < VOCAB as u32, "{case:?} on {}", test.name);
        }
    }
}
