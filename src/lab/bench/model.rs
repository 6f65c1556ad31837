//! A model in this process, without HTTP: prefill, decoding, adapters, batches, swaps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use super::cases::{Case, Mix};
use super::{BenchError, Options, Row, Samples};
use realign_engine::adapter::generation::{Generation, GenerationId, StagedAdapter};
use realign_engine::adapter::{Registry, base_id};
use realign_engine::request::{GenerateEvent, GenerateRequest, SamplingParams};
use realign_engine::{EngineConfig, EngineHandle};
use realign_model::{
    Backend, LoadedModel, LoraPair, LoraSite, LoraWeights, ModelSpec, Projection, Tokenizer,
};

/// One run of one case.
#[derive(Clone, Copy, Debug)]
struct Run {
    rate: f64,
    gap: Option<f64>,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The model.
    pub backend: Arc<dyn Backend>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// 64 hex digits.
    pub base_hash: String,
}

/// An engine with the generations that the cases need.
pub struct ModelBench {
    options: Options,
    backend: Arc<dyn Backend>,
    engine: EngineHandle,
    registry: Registry,
    base: Arc<Generation>,
    adapted: Arc<Generation>,
    vocab: u32,
    prompts: u32,
}

impl ModelBench {
    /// Starts an engine over `loaded`.
    ///
    /// # Errors
    /// [`BenchError`], for sizes that do not fit the model among others.
    pub fn start(
        loaded: &LoadedModel,
        config: EngineConfig,
        options: Options,
    ) -> Result<Self, BenchError> {
        let subject = Subject {
            backend: loaded.backend.clone(),
            tokenizer: loaded.tokenizer.clone(),
            base_hash: loaded.base_hash.to_string(),
        };
        Self::start_on(&subject, config, options)
    }

    /// [`ModelBench::start`] on a model that comes from no file.
    ///
    /// # Errors
    /// As there.
    pub fn start_on(
        subject: &Subject,
        config: EngineConfig,
        options: Options,
    ) -> Result<Self, BenchError> {
        let backend = &*subject.backend;
        let spec = backend.spec();
        let base_hash = subject.base_hash.clone();
        let generation = |adapter: Option<StagedAdapter>, id: GenerationId| {
            Arc::new(Generation {
                id,
                base_hash: base_hash.clone(),
                policy_revision: None,
                adapter,
            })
        };
        let base = generation(None, base_id(&base_hash));
        let adapter = random_adapter(spec, options.rank.max(1), backend.device())?;
        let adapter = StagedAdapter::new(backend, adapter)?;
        let adapted = generation(Some(adapter), GenerationId("bench0000000".into()));
        let engine = realign_engine::start(backend, subject.tokenizer.clone(), config)?;
        let longest = options.prompt_tokens.max(options.generate_tokens) + 33;
        if longest > engine.max_model_len() || options.prompt_tokens == 0 {
            let limit = engine.max_model_len();
            engine.shutdown();
            return Err(BenchError::Options(format!(
                "sequences of {longest} tokens are needed, and 1 to {limit} are possible: choose \
                 fewer with --prompt-tokens and --generate-tokens"
            )));
        }
        Ok(Self {
            backend: subject.backend.clone(),
            registry: Registry::new(base.clone(), 4),
            options,
            engine,
            base,
            adapted,
            vocab: spec.vocab_size as u32,
            prompts: 0,
        })
    }

    /// Runs all cases in turn, as often as asked, and calls `progress` after each run.
    ///
    /// # Errors
    /// [`BenchError::Sequence`].
    pub fn run(&mut self, progress: impl FnMut(&str)) -> Result<Vec<Row>, BenchError> {
        self.run_some(false, progress)
    }

    /// [`ModelBench::run`], or only its cases of several streams.
    ///
    /// # Errors
    /// [`BenchError::Sequence`].
    pub fn run_some(
        &mut self,
        batches_only: bool,
        mut progress: impl FnMut(&str),
    ) -> Result<Vec<Row>, BenchError> {
        let mut cases = self.cases();
        if batches_only {
            cases.retain(|case| matches!(case, Case::Batch(_)));
        }
        let mut runs = vec![Vec::new(); cases.len()];
        self.once(Case::Decode(Mix::Base))?; // Caches and clocks warm up unmeasured.
        for repetition in 0..self.options.repetitions.max(1) {
            for (case, runs) in cases.iter().zip(&mut runs) {
                let name = case.name(&self.options);
                progress(&format!("{}: {name}", repetition + 1));
                runs.push(self.once(*case)?);
            }
        }
        Ok(self.rows(&cases, &runs))
    }

    fn cases(&self) -> Vec<Case> {
        let o = &self.options;
        let mut cases = vec![Case::Prefill, Case::Decode(Mix::Base)];
        if o.rank > 0 {
            cases.push(Case::Decode(Mix::One));
        }
        if o.streams > 0 {
            cases.push(Case::Batch(Mix::Base));
            if o.rank > 0 {
                cases.extend([Case::Batch(Mix::One), Case::Batch(Mix::Two)]);
            }
            if o.swap_seconds > 0 {
                cases.extend([Case::Batch(Mix::Steady), Case::Batch(Mix::Swapping)]);
            }
        }
        cases
    }

    fn rows(&self, cases: &[Case], runs: &[Vec<Run>]) -> Vec<Row> {
        let rates = |case: Case| -> Option<Samples> {
            let at = cases.iter().position(|c| *c == case)?;
            Some(Samples(runs[at].iter().map(|r| r.rate).collect()))
        };
        let row = |(case, runs): (&Case, &Vec<Run>)| {
            let baseline = case.baseline();
            let rate = Samples(runs.iter().map(|r| r.rate).collect());
            let gaps: Vec<f64> = runs.iter().filter_map(|r| r.gap).collect();
            Row {
                name: case.name(&self.options),
                ratio: baseline.and_then(rates).map(|b| rate.ratios(&b)),
                against: baseline.map(|b| b.name(&self.options)),
                tokens_per_second: rate,
                longest_gap_over_p99: (!gaps.is_empty()).then_some(Samples(gaps)),
            }
        };
        cases.iter().zip(runs).map(row).collect()
    }

    fn once(&mut self, case: Case) -> Result<Run, BenchError> {
        match case {
            Case::Prefill => self.prefill(),
            Case::Decode(mix) => self.decode(mix),
            Case::Batch(mix @ (Mix::Steady | Mix::Swapping)) => self.serve(mix),
            Case::Batch(mix) => self.batch(mix),
        }
    }

    fn prefill(&mut self) -> Result<Run, BenchError> {
        let request = self.request(self.options.prompt_tokens, 1, self.base.clone());
        let started = Instant::now();
        block_on(stream(&self.engine, request))?;
        Ok(Run {
            rate: self.options.prompt_tokens as f64 / started.elapsed().as_secs_f64(),
            gap: None,
        })
    }

    /// From the first token to the last: the prompt's token is not counted.
    fn decode(&mut self, mix: Mix) -> Result<Run, BenchError> {
        let generation = self.generation(mix, 0);
        let request = self.request(1, self.options.generate_tokens + 1, generation);
        let times = block_on(stream(&self.engine, request))?;
        Ok(Run {
            rate: rate(times.len().saturating_sub(1), span(&times)),
            gap: None,
        })
    }

    fn batch(&mut self, mix: Mix) -> Result<Run, BenchError> {
        let requests: Vec<GenerateRequest> = (0..self.options.streams)
            .map(|i| {
                let generation = self.generation(mix, i);
                self.request(16, self.options.generate_tokens, generation)
            })
            .collect();
        let engine = &self.engine;
        let all = block_on(async {
            let streams = requests.into_iter().map(|r| stream(engine, r));
            futures::future::try_join_all(streams).await
        })?;
        // While all streams run: from the last first token to the first last one.
        let from = all.iter().filter_map(|t| t.first()).max().copied();
        let to = all.iter().filter_map(|t| t.last()).min().copied();
        let (Some(from), Some(to)) = (from, to) else {
            return Err(BenchError::Sequence("it gave no token".into()));
        };
        let within = |t: &&Instant| **t > from && **t <= to;
        let tokens = all.iter().flatten().filter(within).count();
        Ok(Run {
            rate: rate(tokens, to.saturating_duration_since(from)),
            gap: None,
        })
    }

    /// Streams that begin anew as soon as they end, each on what serves when it begins.
    fn serve(&mut self, mix: Mix) -> Result<Run, BenchError> {
        let until = Instant::now() + Duration::from_secs(self.options.swap_seconds);
        let tokens = self.options.generate_tokens;
        let seeds: Vec<u32> = (0..self.options.streams)
            .map(|_| self.next_prompt())
            .collect();
        // Both cases run on an adapter, so that their ratio is what swapping costs.
        let start = self.registry.swap(self.adapted.clone(), None);
        start.map_err(|e| BenchError::Sequence(e.to_string()))?;
        let this = &*self;
        let worker = |seed: u32| async move {
            let mut runs = Vec::new();
            for round in 0.. {
                if Instant::now() >= until {
                    break;
                }
                let prompt = this.prompt(16, seed.wrapping_mul(7919).wrapping_add(round));
                let generation = this.registry.lease_current();
                let request = request(prompt, (tokens, this.options.temperature), generation);
                runs.push(stream(&this.engine, request).await?);
            }
            Ok::<_, BenchError>(runs)
        };
        let swapping = mix == Mix::Swapping;
        let all = block_on(async {
            let workers = futures::future::try_join_all(seeds.into_iter().map(worker));
            let swaps = this.swap_every_second(swapping, until);
            tokio::try_join!(workers, swaps).map(|(workers, ())| workers)
        })?;
        let streams: Vec<Vec<Instant>> = all.into_iter().flatten().collect();
        let tokens = streams.iter().map(Vec::len).sum();
        let from = streams.iter().filter_map(|t| t.first()).min();
        let to = streams.iter().filter_map(|t| t.last()).max();
        let waits = Samples(streams.iter().flat_map(|times| waits(times)).collect());
        let took = from.zip(to).map_or(Duration::ZERO, |(a, b)| *b - *a);
        Ok(Run {
            rate: rate(tokens, took),
            gap: Some(waits.max() / waits.quantile(0.99)),
        })
    }

    /// Publishes a generation that the engine has not seen before, every second.
    async fn swap_every_second(&self, swapping: bool, until: Instant) -> Result<(), BenchError> {
        let mut count = 0u32;
        while swapping && Instant::now() < until {
            tokio::time::sleep(Duration::from_secs(1)).await;
            count += 1;
            let (backend, same) = (self.backend.clone(), self.adapted.adapter.clone());
            let staged = tokio::task::spawn_blocking(move || {
                // Staged anew, as a generation from the disk would be.
                let sites = same.map(|adapter| adapter.weights.sites.clone());
                let adapter = LoraWeights::from(sites.unwrap_or_default());
                StagedAdapter::new(&*backend, adapter)
            });
            let adapter = staged.await.map_err(std::io::Error::other)??;
            let fresh = Generation {
                id: GenerationId(format!("swap{count:08x}")),
                base_hash: self.base.base_hash.clone(),
                policy_revision: None,
                adapter: Some(adapter),
            };
            self.registry
                .swap(Arc::new(fresh), None)
                .map_err(|e| BenchError::Sequence(e.to_string()))?;
        }
        Ok(())
    }

    fn generation(&self, mix: Mix, stream: usize) -> Arc<Generation> {
        match mix {
            Mix::One => self.adapted.clone(),
            Mix::Two if stream % 2 == 1 => self.adapted.clone(),
            _ => self.base.clone(),
        }
    }

    fn request(
        &mut self,
        prompt: usize,
        tokens: usize,
        generation: Arc<Generation>,
    ) -> GenerateRequest {
        let seed = self.next_prompt();
        let how = (tokens, self.options.temperature);
        request(self.prompt(prompt, seed), how, generation)
    }

    fn next_prompt(&mut self) -> u32 {
        self.prompts += 1;
        self.prompts
    }

    /// Token ids that no other prompt begins with, so that the prefix cache holds none of them.
    fn prompt(&self, tokens: usize, seed: u32) -> Vec<u32> {
        let ids = (self.vocab / 2).max(1);
        (0..tokens as u32)
            .map(|i| {
                (self.vocab / 4 + (seed.wrapping_mul(31) ^ i.wrapping_mul(101)) % ids) % self.vocab
            })
            .collect()
    }
}

impl Drop for ModelBench {
    fn drop(&mut self) {
        self.engine.shutdown();
    }
}

fn request(
    prompt: Vec<u32>,
    (tokens, temperature): (usize, f32),
    generation: Arc<Generation>,
) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: SamplingParams {
            max_tokens: tokens,
            temperature,
            ignore_eos: true,
            ..SamplingParams::default()
        },
        generation,
    }
}

/// Runs one sequence and returns when each of its tokens came.
async fn stream(
    engine: &EngineHandle,
    request: GenerateRequest,
) -> Result<Vec<Instant>, BenchError> {
    let mut times = Vec::with_capacity(request.sampling.max_tokens);
    let refused = |e: realign_engine::request::SubmitError| BenchError::Sequence(e.to_string());
    let mut events = engine.submit(request).map_err(refused)?;
    loop {
        match events.next().await {
            Some(GenerateEvent::Token { .. }) => times.push(Instant::now()),
            Some(GenerateEvent::Finished { .. }) => return Ok(times),
            Some(GenerateEvent::Failed(reason)) => return Err(BenchError::Sequence(reason)),
            None => return Err(BenchError::Sequence("the engine stopped".into())),
        }
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, BenchError>>) -> Result<T, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    runtime.block_on(work)
}

fn rate(tokens: usize, took: Duration) -> f64 {
    tokens as f64 / took.as_secs_f64().max(1e-9)
}

fn span(times: &[Instant]) -> Duration {
    match (times.first(), times.last()) {
        (Some(first), Some(last)) => *last - *first,
        _ => Duration::ZERO,
    }
}

fn waits(times: &[Instant]) -> impl Iterator<Item = f64> {
    times.windows(2).map(|t| (t[1] - t[0]).as_secs_f64())
}

/// An adapter on q and v of every layer whose factors are small and not zero.
fn random_adapter(
    spec: &ModelSpec,
    rank: usize,
    device: &Device,
) -> candle_core::Result<LoraWeights> {
    let mut weights = LoraWeights::default();
    for layer in 0..spec.layers {
        for projection in [Projection::Q, Projection::V] {
            let (inner, out) = spec.projection_shape(projection);
            let random = |shape| Tensor::randn(0f32, 0.01, shape, device);
            let pair = LoraPair {
                a: random((rank, inner))?,
                b: random((out, rank))?,
                scale: 1.0,
            };
            weights.sites.insert(LoraSite { layer, projection }, pair);
        }
    }
    Ok(weights)
}
