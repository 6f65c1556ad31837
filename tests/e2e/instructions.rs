//! What `scripts/bench-guard.py` counts the instructions of. Each case does its work `REALIGN_REPEAT`
//! times; the script runs it twice under callgrind, with different numbers, so that what comes before
//! the work cancels out. As tests they show only that a case runs.

use std::net::SocketAddr;
use std::sync::Arc;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use realign::Server;
use realign_align::train::examples::{Reference, TokenPair, with_reference};
use realign_align::train::passes::Passes;
use realign_align::train::{Recipe, TrainExample, TrainableLora};
use realign_core::Category;
use realign_cpu::{CpuBackend, CpuExecutor, PackedWeight};
use realign_model::random::random_model;
use realign_model::shapes::shape;
use realign_model::{
    BLOCK_TOKENS, Decoder, KvType, ModelSpec, PagedSequence, Precision, Step, StoredMatrix,
};
use serde_json::{Value, json};

use super::workspace::Workspace;
use crate::golden_training::objective;
use realign_align::train::PreferenceLoss;

fn repeat() -> usize {
    let given = std::env::var("REALIGN_REPEAT").ok();
    given.map_or(1, |n| n.parse().unwrap())
}

/// A narrow model with the depth of heads that real ones have.
fn spec() -> ModelSpec {
    ModelSpec {
        vocab_size: 2048,
        hidden_size: 256,
        intermediate_size: 768,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        max_position: 4096,
        tied_embeddings: true,
        ..shape("tiny").unwrap()
    }
}

fn model() -> Decoder<PackedWeight> {
    let random = random_model(spec(), &Device::Cpu, |matrix| {
        Ok(StoredMatrix::Quantized(Arc::new(
            matrix.quantized(GgmlDType::Q4_1)?,
        )))
    });
    random.and_then(realign_cpu::pack).unwrap()
}

/// Computes steps of so many rows after so many tokens, whose keys and values are zero.
fn steps(cached: usize, rows: usize) {
    let blocks = (cached + rows).div_ceil(BLOCK_TOKENS);
    let mut executor = CpuExecutor::new(Arc::new(model()), blocks, 1, KvType::F16).unwrap();
    let mut logits = vec![0.0; executor.vocab_size()];
    let positions: Vec<u32> = (cached as u32..(cached + rows) as u32).collect();
    let tokens: Vec<u32> = positions.iter().map(|p| p * 37 % 2000).collect();
    let sequence = PagedSequence {
        start: 0,
        rows,
        cached,
        blocks: (0..blocks as u32).collect(),
    };
    let step = Step {
        tokens: &tokens,
        positions: &positions,
        sequences: &[sequence],
        adapters: &[],
        outputs: &[rows as u32 - 1],
    };
    for _ in 0..repeat() {
        executor.forward(&step, &mut logits).unwrap();
    }
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

#[test]
fn decode_at_256() {
    steps(256, 1);
}

#[test]
fn decode_at_3000() {
    steps(3000, 1);
}

#[test]
fn prefill_64_at_0() {
    steps(0, 64);
}

#[test]
fn prefill_64_at_1024() {
    steps(1024, 64);
}

#[test]
fn training_step() {
    let tokens =
        |seed: u32, n: u32| -> Vec<u32> { (0..n).map(|i| 3 + (seed * 31 + i * 7) % 50).collect() };
    let pair = |i: u32| TokenPair {
        id: i.to_string(),
        category: Category::ALL[i as usize % 3],
        prompt: tokens(i, 12),
        chosen: tokens(i + 20, 16),
        rejected: tokens(i + 40, 20),
    };
    let pairs: Vec<TokenPair> = (0..3).map(pair).collect();
    let backend = CpuBackend::new(model());
    let at = Reference {
        backend: &backend,
        lowest_layer: 0,
        precision: Precision::Exact,
        conflicts: true,
    };
    let examples = with_reference(at, &pairs, 512, |_| true).unwrap().unwrap();
    let examples: Vec<&TrainExample> = examples.iter().collect();
    let recipe = Recipe {
        rank: 8,
        ..Recipe::default()
    };
    let projections = recipe.projections().unwrap();
    let lora = TrainableLora::init(&spec(), &recipe, &projections, &Device::Cpu).unwrap();
    let mut passes = Passes::new(&backend, Precision::Exact).unwrap();
    let objective = objective(PreferenceLoss::Sigmoid);
    for _ in 0..repeat() {
        let (gradients, _) = passes.loss(&objective, &lora, &examples).unwrap();
        assert!(!gradients.sites.is_empty());
    }
}

/// Forty chat requests over HTTP, for one token each.
#[test]
fn requests_40() {
    if super::engine::lacks("it is a server in this process") {
        return;
    }
    let workspace = Workspace::tiny(1);
    // What looks around in the meantime would be counted too, and what is kept of weights is not the same in two runs.
    let settings = workspace
        .read("realign.toml")
        .replace("poll_ms = 200", "poll_ms = 60000")
        .replace("[engine]", "[engine]\nweights_cache = \"off\"");
    let server = Server::builder()
        .settings(settings)
        .policies(workspace.path("policies"))
        .preferences(workspace.path("preferences"))
        .adapters(workspace.path("adapters"))
        .state(workspace.path("state"))
        .threads(1)
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let url = format!(
        "http://{}/v1/chat/completions",
        listener.local_addr().unwrap()
    );
    let app = server
        .client_router()
        .into_make_service_with_connect_info::<SocketAddr>();
    let serving = runtime.spawn(async move { axum::serve(listener, app).await });
    let agent = ureq::Agent::new_with_defaults();
    let body = json!({
        "model": "tiny", "max_tokens": 1, "temperature": 0,
        "messages": [{ "role": "user", "content": "Hello, how are you today?" }],
    });
    for _ in 0..8 + 40 * repeat() {
        let mut answer = agent.post(&url).send_json(&body).unwrap();
        let answer: Value = answer.body_mut().read_json().unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], 1, "{answer}");
    }
    serving.abort();
    runtime.block_on(server.shutdown());
}
