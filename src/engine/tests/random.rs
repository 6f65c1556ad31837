//! Random loads: blocks are always accounted for, every sequence ends, and no text depends on other
//! sequences.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::request::{GenerateRequest, GenerateStream};
use super::fake::{Answer, BLOCK, Bench, alone, generation, prompt, request};

struct Client {
    request: GenerateRequest,
    stream: Option<GenerateStream>,
    answer: Answer,
}

/// Prompts of a few families, so that prefixes are shared, on three generations.
fn random_request(random: &mut ChaCha8Rng, longest: usize) -> GenerateRequest {
    let family = prompt(random.random_range(0..3), longest);
    let shared = random.random_range(0..longest);
    let mut tokens = family[..shared].to_vec();
    let own = random.random_range(1..=longest - shared);
    tokens.extend(prompt(random.random(), own));
    let room = longest + 1 - tokens.len();
    let mut asked = request(tokens, random.random_range(1..=room), random.random());
    asked.generation = generation(random.random_range(0..3));
    asked.sampling.temperature = [0.0, 0.7, 1.5][random.random_range(0..3)];
    asked.sampling.top_k = [0, 0, 4][random.random_range(0..3)];
    asked.sampling.top_p = [1.0, 0.9][random.random_range(0..2)];
    asked
}

fn check_load(seed: u64, draft: usize) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let blocks = random.random_range(2..40);
    let running = random.random_range(1..10);
    let step_tokens = [1, 5, 64, 200][random.random_range(0..4)];
    let mut bench = Bench::new(blocks, running, step_tokens);
    bench.runner = bench.runner.drafting(draft);
    let mut clients: Vec<Client> = Vec::new();
    // How long each running sequence has gone without a row.
    let mut idle: HashMap<u64, usize> = HashMap::new();
    let mut coming = 30;
    for step in 0.. {
        assert!(step < 20_000, "seed {seed}: no end");
        if coming > 0 && random.random_bool(0.3) {
            coming -= 1;
            let request = random_request(&mut random, blocks * BLOCK);
            let stream = Some(bench.submit(request.clone()));
            let answer = Answer::default();
            clients.push(Client {
                request,
                stream,
                answer,
            });
        }
        if random.random_bool(0.02) && !clients.is_empty() {
            let gone = random.random_range(0..clients.len());
            clients[gone].stream = None;
        }
        let before: Vec<(u64, usize)> = progress(&bench);
        bench.step();
        for (seed, computed) in progress(&bench) {
            let stalled = before.contains(&(seed, computed));
            let count = idle.entry(seed).or_default();
            *count = if stalled { *count + 1 } else { 0 };
            assert!(*count <= running, "seed {seed}: a running sequence starves");
        }
        for client in &mut clients {
            if let Some(stream) = &mut client.stream {
                client.answer.update(stream);
            }
        }
        if coming == 0 && bench.runner.scheduler.is_idle() {
            break;
        }
    }
    assert_eq!(bench.runner.scheduler.pool.usage(), 0.0);
    for client in clients {
        let expected = alone(&[client.request]).remove(0);
        let got = client.answer.ids;
        match client.stream {
            Some(_) => assert_eq!(got, expected, "seed {seed}"),
            None => assert_eq!(got, expected[..got.len()], "seed {seed}"),
        }
    }
}

/// The running sequences' seeds, and how many tokens each has computed.
fn progress(bench: &Bench) -> Vec<(u64, usize)> {
    let running = bench.runner.scheduler.running.iter();
    running.map(|s| (s.seed(), s.computed)).collect()
}

#[test]
fn random_loads_end_and_sequences_do_not_affect_each_other() {
    for seed in 0..150 {
        check_load(seed, 0);
        check_load(seed, 8);
    }
}
