//! Perplexity of a text by type of the KV cache, in windows that are read as a prompt is.
//!
//! `MODEL=models/….gguf TEXT=FILE WINDOWS=8 TOKENS=2048 cargo bench --locked --bench perplexity`

use std::sync::Arc;
use std::time::Instant;

use realign_cpu::CpuExecutor;
use realign_model::{BLOCK_TOKENS, Decoder, KvType, LoadedModel, ModelSource, PagedSequence, Step};

/// Rows of a step.
const CHUNK: usize = 256;

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.into())
}

fn number(name: &str, default: usize) -> usize {
    setting(name, &default.to_string())
        .parse()
        .unwrap_or_else(|e| panic!("{name} is no number: {e}"))
}

/// Log-probabilities of a window's tokens after its first, and which of them were the likeliest.
fn read(executor: &mut CpuExecutor, tokens: &[u32]) -> Vec<(f64, bool)> {
    let blocks: Arc<[u32]> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
    let vocab = executor.vocab_size();
    let mut found = Vec::new();
    for (chunk, cached) in tokens.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
        let rows = chunk.len();
        let positions: Vec<u32> = (cached as u32..(cached + rows) as u32).collect();
        let outputs: Vec<u32> = (0..rows as u32).collect();
        let mut logits = vec![0f32; rows * vocab];
        let step = Step {
            tokens: chunk,
            positions: &positions,
            sequences: &[PagedSequence {
                start: 0,
                rows,
                cached,
                blocks: blocks.clone(),
            }],
            adapters: &[],
            outputs: &outputs,
        };
        executor
            .forward(&step, &mut logits)
            .expect("a text gives finite numbers");
        let next = tokens[cached + 1..].iter();
        for (logits, next) in logits.chunks_exact(vocab).zip(next) {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|l| f64::from(l - largest).exp()).sum();
            let own = logits[*next as usize];
            found.push((f64::from(own - largest) - sum.ln(), own == largest));
        }
    }
    found
}

fn main() {
    let path = setting("MODEL", "models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let text = std::fs::read_to_string(setting("TEXT", "README.md")).expect("TEXT is a file");
    let (windows, length) = (number("WINDOWS", 4), number("TOKENS", 2048));
    let loaded = LoadedModel::load(&path, &realign_cpu::Cpu).expect("MODEL is a model");
    let tokens = loaded.tokenizer.encode(&text, false).expect("text");
    drop(loaded);
    let files = ModelSource::parse(&path).and_then(ModelSource::fetch);
    let model: Arc<Decoder<_>> =
        Arc::new(realign_cpu::load(&files.expect("it was there")).expect("it was loaded"));
    let mut exact: Vec<(f64, bool)> = Vec::new();
    for (name, kind) in KvType::ALL {
        let blocks = length.div_ceil(BLOCK_TOKENS);
        let mut executor =
            CpuExecutor::new(model.clone(), blocks, 1, kind).expect("the cache fits into memory");
        let started = Instant::now();
        let windows = tokens.chunks_exact(length).take(windows);
        let found: Vec<_> = windows.flat_map(|w| read(&mut executor, w)).collect();
        if exact.is_empty() {
            exact.clone_from(&found);
        }
        let count = found.len() as f64;
        let mean = found.iter().map(|(p, _)| p).sum::<f64>() / count;
        let right = found.iter().filter(|(_, best)| *best).count();
        let pairs = found.iter().zip(&exact).map(|(a, b)| (a.0 - b.0).abs());
        let (moved, most) = pairs.fold((0.0, 0f64), |(sum, most), d| (sum + d, most.max(d)));
        println!(
            "{name}: perplexity {:.4} over {count} tokens, {right} the likeliest; a log-probability is {:.4} from f32's, at most {most:.2}; {:.0} s",
            (-mean).exp(),
            moved / count,
            started.elapsed().as_secs_f64()
        );
    }
}
