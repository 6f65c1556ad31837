//! Speed by depth of the context, on shapes of small models with random weights.
//!
//! `SHAPE=SmolLM2 cargo bench --locked --bench depth`; any other shape is that of a model of half a billion parameters.
//! `KINDS=f16,q8`, `THREADS=1` and `DEPTHS=256,3000,16000` choose some of what is measured.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use realign_cpu::{CpuExecutor, PackedWeight};
use realign_model::random::random_model;
use realign_model::shapes::shape;
use realign_model::{BLOCK_TOKENS, Decoder, KvType, ModelSpec, PagedSequence, Step, StoredMatrix};

/// Rows of a prompt's step.
const CHUNK: usize = 256;
/// A list in the environment, or this one.
fn list(name: &str, default: &str) -> Vec<String> {
    let text = std::env::var(name).unwrap_or_else(|_| default.into());
    text.split(',').map(str::to_owned).collect()
}

fn numbers(name: &str, default: &str) -> Vec<usize> {
    let number = |word: String| word.parse().expect("numbers, with commas between them");
    list(name, default).into_iter().map(number).collect()
}

fn spec(name: &str) -> ModelSpec {
    let sizes = match name {
        "SmolLM2" => [576, 1536, 30, 9, 3, 49_152],
        _ => [896, 4864, 24, 14, 2, 151_936],
    };
    let [
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        vocab_size,
    ] = sizes;
    ModelSpec {
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        vocab_size,
        head_dim: 64,
        max_position: 32_768,
        tied_embeddings: true,
        ..shape("tiny").expect("a shape that there is")
    }
}

fn model(name: &str) -> Arc<Decoder<PackedWeight>> {
    let model = random_model(spec(name), &Device::Cpu, |matrix| {
        Ok(StoredMatrix::Quantized(Arc::new(
            matrix.quantized(GgmlDType::Q4_1)?,
        )))
    });
    let packed = model.and_then(realign_cpu::pack);
    Arc::new(packed.expect("the weights fit into memory"))
}

struct Context {
    executor: CpuExecutor,
    blocks: Arc<[u32]>,
    logits: Vec<f32>,
}

impl Context {
    /// Seconds that so many rows after `cached` tokens take.
    fn run(&mut self, cached: usize, rows: usize) -> f64 {
        let positions: Vec<u32> = (cached as u32..(cached + rows) as u32).collect();
        let tokens: Vec<u32> = positions.iter().map(|p| p * 37 % 4000).collect();
        let step = Step {
            tokens: &tokens,
            positions: &positions,
            sequences: &[PagedSequence {
                start: 0,
                rows,
                cached,
                blocks: self.blocks.clone(),
            }],
            adapters: &[],
            outputs: &[rows as u32 - 1],
        };
        let started = Instant::now();
        self.executor
            .forward(&step, &mut self.logits)
            .expect("random weights give finite numbers");
        started.elapsed().as_secs_f64()
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let name = std::env::var("SHAPE").unwrap_or_else(|_| "SmolLM2".into());
    let model = model(&name);
    let kinds = list("KINDS", "f32,f16,q8");
    let depths = numbers("DEPTHS", "256,1024,3000,8000");
    let deepest = depths.iter().copied().max().unwrap_or(0);
    for threads in numbers("THREADS", "1,2") {
        for (kind, kv) in KvType::ALL {
            if !kinds.iter().any(|chosen| chosen == kind) {
                continue;
            }
            let blocks = (deepest + 1).div_ceil(BLOCK_TOKENS);
            let executor = CpuExecutor::new(model.clone(), blocks, threads, kv)
                .expect("the cache fits into memory");
            let mut context = Context {
                logits: vec![0.0; executor.vocab_size()],
                blocks: (0..blocks as u32).collect(),
                executor,
            };
            let mut line = format!("{name} {kind}, {threads} threads:");
            let (mut cached, mut prefill) = (0, 0.0);
            for &depth in &depths {
                while cached < depth {
                    let rows = CHUNK.min(depth - cached);
                    prefill += context.run(cached, rows);
                    cached += rows;
                }
                let times = (0..15).map(|_| context.run(depth, 1)).collect();
                line += &format!(
                    "  {depth}: prefill {:.0}, decode {:.1}",
                    depth as f64 / prefill,
                    1.0 / median(times)
                );
            }
            println!("{line}");
        }
    }
}
