//! Decode, prefill, swap under load and a training step on the default model.
//!
//! `make bench` fetches the model first. Times are per step; tokens per second stand beside them.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use realign_align::train::passes::Passes;
use realign_align::train::{Objective, Recipe, TrainableLora};
use realign_engine::adapter::generation::{Generation, GenerationId, StagedAdapter};
use realign_engine::adapter::{Registry, base_id};
use realign_engine::request::{GenerateEvent, GenerateRequest, SamplingParams};
use realign_engine::{EngineConfig, EngineHandle};
use realign_model::packing::Example;
use realign_model::{LoadedModel, Precision};

const MODEL: &str = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

fn load() -> LoadedModel {
    LoadedModel::load(MODEL, &realign_cpu::Cpu).expect("`make model` fetches the model")
}

fn generation(loaded: &LoadedModel, adapter: Option<TrainableLora>) -> Arc<Generation> {
    let staged = |a: TrainableLora| StagedAdapter::new(&*loaded.backend, a.weights());
    let adapter = adapter.map(|a| staged(a).expect("it fits"));
    let base_hash = loaded.base_hash.to_string();
    let id = if adapter.is_some() {
        GenerationId("0123456789ab".into())
    } else {
        base_id(&base_hash)
    };
    Arc::new(Generation {
        id,
        base_hash,
        policy_revision: None,
        adapter,
    })
}

fn adapter(loaded: &LoadedModel) -> TrainableLora {
    let recipe = Recipe {
        layer_share: 1.0,
        targets: vec!["q_proj".into(), "v_proj".into()],
        ..Recipe::default()
    };
    let projections = recipe.projections().expect("named above");
    TrainableLora::init(
        loaded.spec(),
        &recipe,
        &projections,
        loaded.backend.device(),
    )
    .expect("it fits")
}

/// Runs one sequence to its end and returns the tokens it generated.
fn generate(
    engine: &EngineHandle,
    generation: &Arc<Generation>,
    prompt: usize,
    tokens: usize,
) -> usize {
    let sampling = SamplingParams {
        max_tokens: tokens,
        ..SamplingParams::default()
    };
    let prompt = (0..prompt as u32).map(|i| 1000 + i % 5000).collect();
    let request = GenerateRequest {
        prompt,
        sampling,
        generation: generation.clone(),
    };
    let mut stream = engine.submit(request).expect("the queue is empty");
    loop {
        match stream.blocking_next() {
            Some(GenerateEvent::Finished {
                completion_tokens, ..
            }) => return completion_tokens,
            Some(GenerateEvent::Token { .. }) => {}
            other => panic!("the engine gave up: {other:?}"),
        }
    }
}

fn serving(c: &mut Criterion) {
    let loaded = load();
    let engine = realign_engine::start(
        &*loaded.backend,
        loaded.tokenizer.clone(),
        EngineConfig::default(),
    )
    .expect("it starts");
    let base = generation(&loaded, None);
    let adapted = generation(&loaded, Some(adapter(&loaded)));
    let mut group = c.benchmark_group("serving");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(10));
    group.throughput(Throughput::Elements(512));
    group.bench_function("prefill 512", |b| {
        b.iter(|| generate(&engine, &base, 512, 1))
    });
    group.throughput(Throughput::Elements(32));
    group.bench_function("decode 32, base", |b| {
        b.iter(|| generate(&engine, &base, 8, 32))
    });
    group.bench_function("decode 32, rank-16 adapter on q and v", |b| {
        b.iter(|| generate(&engine, &adapted, 8, 32))
    });
    group.finish();
    swap_under_load(c, &engine, base, adapted);
    engine.shutdown();
}

/// The pointer store itself, while sequences run on both generations.
fn swap_under_load(
    c: &mut Criterion,
    engine: &EngineHandle,
    base: Arc<Generation>,
    adapted: Arc<Generation>,
) {
    let registry = Registry::new(base.clone(), 4);
    let sampling = SamplingParams {
        max_tokens: 4000,
        ..SamplingParams::default()
    };
    let load = [&base, &adapted].map(|g| {
        engine.submit(GenerateRequest {
            prompt: vec![1000; 8],
            sampling: sampling.clone(),
            generation: g.clone(),
        })
    });
    let mut to_base = false;
    c.bench_function("swap under load", |b| {
        b.iter(|| {
            to_base = !to_base;
            registry.swap(
                if to_base {
                    base.clone()
                } else {
                    adapted.clone()
                },
                None,
            )
        })
    });
    drop(load);
}

fn training(c: &mut Criterion) {
    let loaded = load();
    let backend = &*loaded.backend;
    let mut passes = Passes::new(backend, Precision::Mixed).expect("it learns");
    let recipe = Recipe::default();
    let projections = recipe.projections().expect("the default's");
    let lora = TrainableLora::init(backend.spec(), &recipe, &projections, backend.device())
        .expect("it fits");
    let tokens = |from: u32, n: u32| (from..from + n).collect::<Vec<u32>>();
    let mut pairs: Vec<Example> = (0..6)
        .map(|i| {
            Example::new(
                tokens(1000 + i, 40),
                vec![tokens(2000, 24), tokens(3000, 24)],
            )
        })
        .collect();
    let lowest = recipe.lowest_layer(backend.spec().layers);
    passes.remember(&mut pairs, lowest).expect("the base runs");
    let batch: Vec<(&Example, _)> = pairs.iter().map(|p| (p, None)).collect();
    let rows: usize = pairs.iter().map(Example::rows).sum();
    let objective = Objective::from(&recipe);
    let mut group = c.benchmark_group("training");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(20))
        .throughput(Throughput::Elements(rows as u64));
    group.bench_function("forward and backward of 6 pairs", |b| {
        b.iter(|| {
            passes
                .gold(&objective, &lora.weights(), &batch)
                .expect("it runs")
        })
    });
    group.finish();
}

criterion_group!(benches, serving, training);
criterion_main!(benches);
