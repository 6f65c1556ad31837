//! The whole engine on the CUDA executor, which draws tokens itself, against the CPU's.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::super::blocks::BlockPool;
use super::super::handle::{Computing, EngineConfig, start_with};
use super::super::request::{GenerateRequest, SamplingParams};
use super::super::step::Executor;
use super::fake::{Answer, generation, ids, prompt, request, tokenizer};
use crate::adapter::generation::{Generation, GenerationId};
use realign_model::cuda::tests::devices;
use realign_model::cuda::{CudaExecutor, Options};
use realign_model::random::random_model;
use realign_model::shapes::shape;
use realign_model::{CpuExecutor, LoraPair, LoraSite, LoraWeights, Model, ModelSpec, Projection};

const BLOCKS: usize = 64;

fn adapted(spec: &ModelSpec) -> Arc<Generation> {
    let (inner, out) = spec.projection_shape(Projection::Q);
    let random = |shape| Tensor::randn(0f32, 0.3, shape, &Device::Cpu).unwrap();
    let pair = |layer| {
        let site = LoraSite {
            layer,
            projection: Projection::Q,
        };
        let pair = LoraPair {
            a: random((4, inner)),
            b: random((out, 4)),
            scale: 1.0,
        };
        (site, pair)
    };
    let sites: BTreeMap<_, _> = (0..spec.layers).map(pair).collect();
    Arc::new(Generation {
        id: GenerationId("adapted00000".into()),
        adapter: Some(Arc::new(LoraWeights::from(sites))),
        base_hash: "0".repeat(64),
        policy_revision: None,
    })
}

/// Requests whose tokens the device draws, and such whose logits the host has to see.
fn requests(spec: &ModelSpec) -> Vec<GenerateRequest> {
    let plain = SamplingParams {
        temperature: 1.0,
        max_tokens: 9,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let with = |change: fn(&mut SamplingParams)| {
        let mut params = plain.clone();
        change(&mut params);
        params
    };
    let all = [
        with(|p| p.temperature = 0.0),
        plain.clone(),
        with(|p| p.top_k = 3),
        with(|p| p.top_p = 0.7),
        with(|p| p.top_logprobs = Some(2)),
        with(|p| p.presence_penalty = 0.8),
        with(|p| p.logit_bias = vec![(3, 2.0)]),
    ];
    let adapted = adapted(spec);
    let make = |(seed, sampling): (u64, SamplingParams)| GenerateRequest {
        sampling: SamplingParams { seed, ..sampling },
        generation: match seed % 2 {
            0 => generation(0),
            _ => adapted.clone(),
        },
        ..request(prompt(seed, 5 + 11 * seed as usize), 1, seed)
    };
    (1..).zip(all).map(make).collect()
}

fn generated(executor: Box<dyn Executor>, requests: &[GenerateRequest]) -> Vec<Vec<u32>> {
    let computing = Computing {
        executor,
        pool: BlockPool::new(BLOCKS, 16),
        limit: 512,
        slices: Arc::default(),
    };
    let config = EngineConfig {
        step_tokens: 24,
        ..EngineConfig::default()
    };
    let engine = start_with(computing, tokenizer(), config).unwrap();
    let submitted = requests.iter().map(|r| engine.submit(r.clone()).unwrap());
    let streams: Vec<_> = submitted.collect();
    let finish = |mut stream: super::super::request::GenerateStream| {
        let mut answer = Answer::default();
        while let Some(event) = stream.blocking_next() {
            answer.take(event);
        }
        answer
    };
    let answers: Vec<Answer> = streams.into_iter().map(finish).collect();
    engine.shutdown();
    ids(&answers)
}

#[test]
fn the_same_seeds_draw_the_same_tokens_on_the_device_and_on_the_cpu() {
    for test in devices() {
        let spec = ModelSpec {
            vocab_size: 40,
            ..shape("tiny").unwrap()
        };
        let model = random_model(spec.clone(), DType::F32, &test.device).unwrap();
        let requests = requests(&spec);
        let on_cpu = match test.device.is_cpu() {
            true => {
                let packed: Model = model.clone().packed().unwrap();
                let executor = CpuExecutor::new(Arc::new(packed), BLOCKS, 1).unwrap();
                generated(Box::new(executor), &requests)
            }
            // Random numbers of a GPU make another model: it is compared with itself.
            false => Vec::new(),
        };
        // The engine's thread keeps the device for itself.
        let device: &'static _ = Box::leak(Box::new(test));
        let run = || {
            let (model, options) = (Arc::new(model.clone()), Options::default());
            let executor = CudaExecutor::new(&*device.gpu, model, BLOCKS, options);
            generated(Box::new(executor.unwrap()), &requests)
        };
        let on_device = run();
        let expected = if on_cpu.is_empty() { run() } else { on_cpu };
        assert_eq!(on_device, expected, "{}", device.name);
    }
}
