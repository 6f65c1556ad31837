//! Attention of one KV head over 4,096 tokens in the caches, by shape, type of the cache and instruction set.
//!
//! `cargo bench --locked --bench attention`

use std::time::Instant;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use realign_cpu::measure::AttentionHead;
use realign_model::KvType;

const TOKENS: usize = 4096;
const REPEATS: usize = 30;
/// Columns of a head, and queries that share its keys.
const SHAPES: [(&str, usize, usize); 4] = [
    ("SmolLM2", 64, 3),
    ("0.5B", 64, 7),
    ("1B", 64, 4),
    ("8B", 128, 4),
];

fn main() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for (name, head_dim, group) in SHAPES {
        for (kind_name, kind) in KvType::ALL {
            for rows in [1, 16] {
                let number = || rng.random_range(-1.5..1.5);
                let head = AttentionHead::new(kind, (TOKENS, head_dim), (rows, group), number);
                let mut head = head.expect("a few megabytes are there");
                let products = (2 * head_dim * TOKENS * rows * group) as f64;
                for isa in AttentionHead::instruction_sets() {
                    let seconds = median(|| {
                        std::hint::black_box(head.attend(isa));
                    });
                    println!(
                        "{name} {kind_name} {isa} rows {rows}: {:.1} ns a token of context, {:.1} GMAC/s",
                        seconds / TOKENS as f64 * 1e9,
                        products / seconds / 1e9
                    );
                }
            }
        }
    }
}

fn median(mut run: impl FnMut()) -> f64 {
    let times = (0..REPEATS).map(|_| {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64()
    });
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    times[REPEATS / 2]
}
