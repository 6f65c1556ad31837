//! Generations that compute what is no number.

use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use realign_cpu::CpuBackend;
use realign_model::{LoraWeights, ModelSource};

use super::super::blocks::BlockPool;
use super::super::handle::{Computing, EngineConfig, start, start_with};
use super::super::request::{GenerateRequest, SamplingParams};
use super::fake::{
    Answer, BLOCK, BROKEN, Bench, FakeModel, SOUND, alone, generation, prompt, request, tokenizer,
};
use crate::adapter::generation::{Generation, GenerationId, StagedAdapter};
use crate::adapter::peft;
use crate::health::TOLERATED;
use crate::merged::PrepareError;
use crate::{Embedder, EngineHandle};

fn on(number: u32, length: usize, seed: u64) -> GenerateRequest {
    let mut request = request(prompt(seed, length), 8, seed);
    request.sampling.ignore_eos = true;
    GenerateRequest {
        generation: generation(number),
        ..request
    }
}

#[test]
fn only_the_sequences_of_the_broken_generation_fail() {
    let requests = [
        on(1, 9, 1),
        on(BROKEN, 14, 2),
        on(2, 20, 3),
        on(BROKEN, 9, 4),
    ];
    let mut bench = Bench::new(64, 8, 64);
    let answers = bench.answers(&requests);
    let expected = alone(&[on(1, 9, 1), on(2, 20, 3)]);
    assert_eq!(answers[0].ids, expected[0]);
    assert_eq!(answers[2].ids, expected[1]);
    for at in [1, 3] {
        let reason = answers[at].failed.as_deref().expect("it failed");
        let id = &requests[at].generation.id.0;
        assert!(
            reason.contains(id) && reason.contains("not finite"),
            "{reason}"
        );
    }
    assert!(answers[1].ids.is_empty(), "nothing was drawn from NaN");
    assert_eq!(
        answers[3].ids.len(),
        SOUND - 8,
        "what came before was sound"
    );
}

#[test]
fn greedy_sampled_scored_and_shaped_requests_fail_alike() {
    let params = [
        SamplingParams::default(),
        SamplingParams {
            temperature: 1.0,
            ..SamplingParams::default()
        },
        SamplingParams {
            top_logprobs: Some(3),
            ..SamplingParams::default()
        },
        SamplingParams {
            logit_bias: vec![(5, -100.0)],
            ..SamplingParams::default()
        },
        SamplingParams {
            presence_penalty: 1.0,
            ..SamplingParams::default()
        },
    ];
    let requests = params.map(|sampling| GenerateRequest {
        sampling,
        ..on(BROKEN, SOUND + 1, 7)
    });
    for answer in Bench::new(64, 8, 64).answers(&requests) {
        assert!(
            answer.failed.is_some() && answer.ids.is_empty(),
            "{answer:?}"
        );
    }
}

#[test]
fn blocks_of_a_failed_sequence_are_not_used_again() {
    let mut bench = Bench::new(64, 8, 64);
    let first = bench.answers(&[on(BROKEN, 4 * BLOCK, 1)]);
    assert!(first[0].failed.is_some());
    bench.answers(&[on(BROKEN, 4 * BLOCK, 1)]);
    assert_eq!(bench.runner.scheduler.totals.prefix_hits, 0);
}

fn fake_engine() -> EngineHandle {
    let computing = Computing {
        executor: Box::new(FakeModel::new(64)),
        pool: BlockPool::new(64, BLOCK),
        limit: 512,
        slices: Arc::default(),
    };
    start_with(computing, tokenizer(), EngineConfig::default()).unwrap()
}

fn answer(engine: &EngineHandle, request: GenerateRequest) -> Answer {
    let mut stream = engine.submit(request).unwrap();
    let mut answer = Answer::default();
    while let Some(event) = stream.blocking_next() {
        answer.take(event);
    }
    answer
}

/// The fake's probe is short enough to be sound; the sequences are not.
#[test]
fn a_generation_that_keeps_failing_is_reported_and_not_prepared_again() {
    let engine = fake_engine();
    let reported = Arc::new(Mutex::new(Vec::new()));
    let into = reported.clone();
    engine
        .health()
        .on_unhealthy(move |id| into.lock().unwrap().push(id.clone()));
    let broken = generation(BROKEN);
    engine.prepare(&broken, &|_| true).unwrap();
    for seed in 0..TOLERATED as u64 {
        assert!(reported.lock().unwrap().is_empty());
        assert!(
            answer(&engine, on(BROKEN, SOUND + 2, seed))
                .failed
                .is_some()
        );
    }
    assert_eq!(*reported.lock().unwrap(), std::slice::from_ref(&broken.id));
    assert_eq!(engine.stats().nonfinite, TOLERATED as u64);
    let error = engine.prepare(&broken, &|_| true).unwrap_err();
    assert!(matches!(error, PrepareError::TakenOut { .. }), "{error}");
    engine.prepare(&generation(0), &|_| true).unwrap();
    assert!(answer(&engine, on(0, 5, 1)).failed.is_none());
    engine.shutdown();
    let stopped = engine.prepare(&generation(1), &|_| true);
    assert_eq!(stopped, Err(PrepareError::Stopped));
}

/// A tiny Gemma 3 (its caps and norms hide overflows if anything does) and its adapter, with every
/// factor times `gain`.
fn gemma(gain: f64) -> (Arc<CpuBackend>, Arc<Generation>) {
    let path = realign_model::test_support::path("tests/golden/families/gemma3");
    let files = ModelSource::parse(&path)
        .and_then(ModelSource::fetch)
        .unwrap();
    let backend = Arc::new(CpuBackend::new(realign_cpu::load(&files).unwrap()));
    let read = peft::read_dir(&std::path::Path::new(&path).join("adapter"));
    let mut weights: LoraWeights = read.unwrap().weights;
    let scaled = |t: &Tensor| (t * gain).unwrap();
    for pair in weights.sites.values_mut() {
        (pair.a, pair.b) = (scaled(&pair.a), scaled(&pair.b));
    }
    let generation = Generation {
        id: GenerationId("badbadbadbad".into()),
        base_hash: "0".repeat(64),
        policy_revision: None,
        adapter: Some(StagedAdapter::new(&*backend, weights).unwrap()),
    };
    (backend, Arc::new(generation))
}

fn small() -> EngineConfig {
    EngineConfig {
        kv_cache_bytes: 1 << 20,
        threads: 1,
        ..EngineConfig::default()
    }
}

#[test]
fn an_adapter_that_overflows_is_found_by_the_probe_the_engine_and_the_embedder() {
    for gain in [1e12, 1e18, 1e30] {
        let (backend, broken) = gemma(gain);
        let engine = start(&*backend, tokenizer(), small()).unwrap();
        engine.prepare(&generation(0), &|_| true).unwrap();
        let error = engine.prepare(&broken, &|_| true).unwrap_err();
        assert!(
            matches!(error, PrepareError::NotFinite { .. }),
            "{gain}: {error}"
        );
        let request = GenerateRequest {
            generation: broken.clone(),
            ..request(vec![3, 4, 5], 4, 1)
        };
        let answer = answer(&engine, request);
        assert!(answer.failed.is_some(), "{gain}: {answer:?}");
        let embedder = Embedder::new(backend.clone(), engine.health().clone());
        let error = embedder.embed(&broken, &[3, 4, 5]).unwrap_err().to_string();
        assert!(error.contains("not finite"), "{gain}: {error}");
        assert_eq!(engine.stats().nonfinite, 2);
        engine.shutdown();
    }
    let (backend, sound) = gemma(1.0);
    let engine = start(&*backend, tokenizer(), small()).unwrap();
    engine.prepare(&sound, &|_| true).unwrap();
    engine.shutdown();
}
