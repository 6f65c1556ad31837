//! The whole engine on the CUDA executor, which draws tokens itself, against the CPU's.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::super::blocks::BlockPool;
use super::super::handle::{Computing, EngineConfig, start_with};
use super::super::request::{GenerateRequest, SamplingParams};
use super::fake::{Answer, generation, ids, prompt, request, tokenizer};
use crate::adapter::generation::{Generation, GenerationId, StagedAdapter};
use realign_cpu::{CpuBackend, PackedWeight};
use realign_cuda::tests::{devices, random_floats};
use realign_cuda::{CudaExecutor, DeviceAdapter, Element, Options};
use realign_model::shapes::shape;
use realign_model::{
    Backend, Executor, ExecutorOptions, KvType, LoraPair, LoraSite, LoraWeights, ModelSpec,
    Projection, Staged,
};

const BLOCKS: usize = 64;

fn adapter(spec: &ModelSpec) -> Arc<LoraWeights> {
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
    Arc::new(LoraWeights::from(sites))
}

/// Requests whose tokens the device draws, and such whose logits the host has to see.
fn requests(adapter: StagedAdapter) -> Vec<GenerateRequest> {
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
    let adapted = Arc::new(Generation {
        id: GenerationId("adapted00000".into()),
        adapter: Some(adapter),
        base_hash: "0".repeat(64),
        policy_revision: None,
    });
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
        let model = random_floats(spec.clone(), DType::F32, &test.device).unwrap();
        let weights = adapter(&spec);
        let on_cpu = match test.device.is_cpu() {
            true => {
                let packed = model.clone().map(|w| PackedWeight::from_dense(&w.dense()?));
                let backend = CpuBackend::new(packed.unwrap());
                let sizes = ExecutorOptions {
                    blocks: BLOCKS,
                    threads: 1,
                    record: false,
                    kv: KvType::F32,
                };
                let staged = backend.stage(&weights).unwrap();
                let weights = weights.clone();
                let requests = requests(StagedAdapter { weights, staged });
                generated(backend.executor(sizes).unwrap(), &requests)
            }
            // Random numbers of a GPU make another model: it is compared with itself.
            false => Vec::new(),
        };
        // The engine's thread keeps the device for itself.
        let device: &'static _ = Box::leak(Box::new(test));
        let form = DeviceAdapter::new(&weights.sites, &device.device, Element::F32);
        let staged = Staged::new(form.unwrap());
        let requests = requests(StagedAdapter { weights, staged });
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
