//! The engine's thread and the handle that others hold.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::unbounded_channel;

use super::blocks::BlockPool;
use super::driver::{Driver, STOPPING};
use super::merged::{Builder, Copies, PrepareError};
use super::request::{EngineStats, GenerateRequest, GenerateStream, SubmitError};
use super::runner::Runner;
use super::scheduler::Scheduler;
use super::sequence::Sequence;
use super::step::Executor;
use crate::adapter::generation::{Generation, GenerationId};
use crate::model::cpu::KvCache;
use crate::model::{BLOCK_TOKENS, CpuExecutor, Model, Tokenizer, turns};

/// Sizes of an engine; resolved from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Longest prompt plus completion in tokens; the model's own limit if `None`.
    pub max_model_len: Option<usize>,
    /// Most sequences in a batch.
    pub max_running: usize,
    /// Most sequences waiting; one more is refused.
    pub max_waiting: usize,
    /// Memory for keys and values, in bytes.
    pub kv_cache_bytes: usize,
    /// Rows that a step aims for: what decoding leaves of them is for prompts, and a chunk of a
    /// prompt runs in any case.
    pub step_tokens: usize,
    /// CPU threads that compute.
    pub threads: usize,
    /// Whether a CUDA device runs decoding steps as they were recorded.
    pub cuda_graphs: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_model_len: None,
            max_running: 64,
            max_waiting: 256,
            kv_cache_bytes: 512 << 20,
            step_tokens: 256,
            threads: std::thread::available_parallelism().map_or(1, Into::into),
            cuda_graphs: true,
        }
    }
}

/// Tokens per KV block.
const BLOCK_SIZE: usize = BLOCK_TOKENS;
/// How long the end of an engine waits for sequences to notice it.
const END: Duration = Duration::from_secs(5);

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The KV cache would not hold even one block.
    #[error(
        "a KV cache of {bytes} bytes holds no block; one block takes {block} bytes: raise engine.kv_cache_mb"
    )]
    CacheTooSmall {
        /// Configured size.
        bytes: usize,
        /// Bytes of one block.
        block: usize,
    },
    /// The executor or its cache could not be set up.
    #[error("cannot set up the model's executor: {0}")]
    Allocate(#[from] candle_core::Error),
    /// The thread could not be started.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The engine that was asked for is not in this build.
    #[error("{0}")]
    NotBuilt(&'static str),
    /// The engine cannot serve this model.
    #[error("{0}")]
    Unsuitable(String),
    /// What should serve first could not be loaded.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
}

/// Counters that the handle and the thread share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Sequences accepted and not running yet.
    pub waiting: AtomicUsize,
    /// Sequences whose tokens are being computed.
    pub running: AtomicUsize,
    /// Parts per million, so that it fits an integer.
    kv_usage_ppm: AtomicU64,
    prefix_queries: AtomicU64,
    prefix_hits: AtomicU64,
    preemptions: AtomicU64,
    /// No more sequences are taken, and those that run are to end.
    pub stopping: AtomicBool,
}

enum Command {
    Run(Box<Sequence>),
    Stop,
}

/// A running engine. Clones share it; [`EngineHandle::shutdown`] ends it.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    door: Door,
    shared: Arc<Shared>,
    tokenizer: Arc<Tokenizer>,
    max_model_len: usize,
    max_waiting: usize,
}

/// What is behind the handle.
#[derive(Clone, Debug)]
enum Door {
    /// The thread of [`start`]: one copy of the weights, adapters applied row by row.
    Native {
        commands: Sender<Command>,
        thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    },
    /// A copy of the weights for each generation.
    Merged(Arc<Copies>),
}

/// Allocates the KV cache and starts the engine's thread.
pub fn start(
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
) -> Result<EngineHandle, EngineError> {
    let limit = model.spec.max_position;
    let block = bytes_per_block(&model);
    let blocks = config.kv_cache_bytes / block;
    if blocks == 0 {
        return Err(EngineError::CacheTooSmall {
            bytes: config.kv_cache_bytes,
            block,
        });
    }
    let executor: Box<dyn Executor> = if model.device.is_cuda() {
        cuda_executor(model, blocks, &config)?
    } else {
        Box::new(CpuExecutor::new(model, blocks, config.threads)?)
    };
    // After the cache: a size that was mistyped is refused there.
    let pool = BlockPool::new(blocks, BLOCK_SIZE);
    start_with(executor, pool, limit, tokenizer, config)
}

/// Bytes of keys and values per block, in the element type of the executor's cache.
fn bytes_per_block(model: &Model) -> usize {
    let spec = &model.spec;
    let floats = KvCache::bytes_per_block(spec.layers, spec.kv_heads, spec.head_dim);
    // A CUDA device's cache has the weights' sixteen bits.
    if model.device.is_cuda() {
        floats / 2
    } else {
        floats
    }
}

#[cfg(feature = "cuda")]
fn cuda_executor(
    model: Arc<Model>,
    blocks: usize,
    config: &EngineConfig,
) -> Result<Box<dyn Executor>, EngineError> {
    use crate::model::cuda::{CudaExecutor, CudaGpu, Options};
    let mut options = Options::default();
    if !config.cuda_graphs {
        options.graphs = 0;
    }
    let gpu = CudaGpu::new(&model.device)?;
    let executor = CudaExecutor::new(gpu, model, blocks, options)?;
    Ok(Box::new(executor))
}

#[cfg(not(feature = "cuda"))]
fn cuda_executor(
    _model: Arc<Model>,
    _blocks: usize,
    _config: &EngineConfig,
) -> Result<Box<dyn Executor>, EngineError> {
    // No device of that kind can be opened without the feature.
    let error = candle_core::Error::NotCompiledWithCudaSupport;
    Err(EngineError::Allocate(error))
}

/// Starts the engine's thread on an executor whose cache has the pool's blocks; `limit` is the
/// model's longest sequence in tokens.
pub(super) fn start_with(
    executor: Box<dyn Executor>,
    pool: BlockPool,
    limit: usize,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
) -> Result<EngineHandle, EngineError> {
    let wanted = config.max_model_len.unwrap_or(usize::MAX).min(limit);
    let max_model_len = wanted.min(pool.capacity());
    if max_model_len < wanted {
        tracing::warn!(
            max_model_len,
            wanted,
            "the KV cache holds fewer tokens than the context: requests are limited to \
             max_model_len; raise engine.kv_cache_mb for longer ones"
        );
    }
    let shared = Arc::new(Shared::default());
    let (commands, inbox) = channel();
    let scheduler = Scheduler::new(pool, config.max_running.max(1), config.step_tokens);
    let worker = Worker {
        runner: Runner::new(scheduler, executor, tokenizer.clone()),
        shared: shared.clone(),
        inbox,
    };
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || worker.run())?;
    Ok(EngineHandle {
        door: Door::Native {
            commands,
            thread: Arc::new(Mutex::new(Some(thread))),
        },
        shared,
        tokenizer,
        max_model_len,
        max_waiting: config.max_waiting,
    })
}

/// An engine that has a copy of the weights built for each generation, at most `copies` (and at
/// least two) at once; `limit` is the model's longest sequence in tokens.
pub fn start_merged(
    builder: Box<dyn Builder>,
    tokenizer: Arc<Tokenizer>,
    limit: usize,
    config: EngineConfig,
    copies: usize,
) -> EngineHandle {
    let shared = Arc::new(Shared::default());
    let copies = Copies::new(builder, tokenizer.clone(), shared.clone(), copies);
    EngineHandle {
        door: Door::Merged(Arc::new(copies)),
        shared,
        tokenizer,
        max_model_len: config.max_model_len.unwrap_or(limit).min(limit),
        max_waiting: config.max_waiting,
    }
}

impl EngineHandle {
    /// Accepts a sequence or says why not; nothing is queued then.
    pub fn submit(&self, request: GenerateRequest) -> Result<GenerateStream, SubmitError> {
        let prompt = request.prompt.len();
        let max_tokens = request.sampling.max_tokens;
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt.saturating_add(max_tokens) > self.max_model_len {
            return Err(SubmitError::TooLong {
                prompt,
                max_tokens,
                limit: self.max_model_len,
            });
        }
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(SubmitError::ShuttingDown);
        }
        let limit = self.max_waiting;
        let take_place = |n: usize| (n < limit).then_some(n + 1);
        if let Err(waiting) =
            self.shared
                .waiting
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, take_place)
        {
            return Err(SubmitError::QueueFull { waiting, limit });
        }
        let (sender, events) = unbounded_channel();
        let generation = request.generation.clone();
        let sequence = Sequence::new(request, &self.tokenizer, sender);
        let taken = match &self.door {
            Door::Native { commands, .. } => commands
                .send(Command::Run(Box::new(sequence)))
                .map_err(|_| SubmitError::ShuttingDown),
            Door::Merged(copies) => copies.submit(&generation, || {
                let (tokenizer, shared) = (self.tokenizer.clone(), self.shared.clone());
                Driver::new(sequence, max_tokens, tokenizer, shared)
            }),
        };
        if let Err(error) = taken {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(error);
        }
        Ok(GenerateStream { events })
    }

    /// Makes the engine ready to serve a generation at once. For the native engine there is nothing
    /// to do; one that merges adapters builds its next copy, which takes seconds. While there is no
    /// room for it, `wait` is told how long it has been waited for and says whether to go on.
    ///
    /// # Errors
    /// [`PrepareError`]; what served before still does.
    pub fn prepare(
        &self,
        generation: &Arc<Generation>,
        wait: &dyn Fn(Duration) -> bool,
    ) -> Result<(), PrepareError> {
        match &self.door {
            Door::Native { .. } => Ok(()),
            Door::Merged(copies) => copies.prepare(generation, wait),
        }
    }

    /// Says which generation serves, after the pointer store: what other generations alone need may
    /// be freed once nothing runs on it.
    pub fn serve(&self, generation: &GenerationId) {
        match &self.door {
            Door::Native { .. } => {}
            Door::Merged(copies) => copies.serve(generation),
        }
    }

    /// Says that a generation that was prepared will not serve.
    pub fn release(&self, generation: &GenerationId) {
        match &self.door {
            Door::Native { .. } => {}
            Door::Merged(copies) => copies.release(generation),
        }
    }

    /// Load right now.
    pub fn stats(&self) -> EngineStats {
        let shared = &self.shared;
        EngineStats {
            running: shared.running.load(Ordering::Relaxed),
            waiting: shared.waiting.load(Ordering::Relaxed),
            kv_cache_usage: shared.kv_usage_ppm.load(Ordering::Relaxed) as f64 / 1e6,
            prefix_hits: shared.prefix_hits.load(Ordering::Relaxed),
            prefix_queries: shared.prefix_queries.load(Ordering::Relaxed),
            preemptions: shared.preemptions.load(Ordering::Relaxed),
        }
    }

    /// Whether any sequence is running or waiting: the sign for training to stand back.
    pub fn is_busy(&self) -> bool {
        self.shared.running.load(Ordering::Relaxed) + self.shared.waiting.load(Ordering::Relaxed)
            > 0
    }

    /// Longest prompt plus completion, in tokens.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// Ends the engine after the step it is in and waits for its thread. Sequences still in it
    /// fail with a reason; drain first if they should finish.
    pub fn shutdown(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        match &self.door {
            Door::Native { commands, thread } => {
                let _already_stopped = commands.send(Command::Stop);
                let thread = thread.lock().ok().and_then(|mut t| t.take());
                if thread.is_some_and(|t| t.join().is_err()) {
                    tracing::error!("the engine's thread panicked");
                }
            }
            Door::Merged(copies) => {
                copies.stop();
                let until = Instant::now() + END;
                while self.is_busy() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

struct Worker {
    runner: Runner,
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
}

impl Worker {
    fn run(mut self) {
        while self.receive() {
            let waiting = self.runner.scheduler.waiting.len();
            let can_run = self.runner.schedule();
            self.count_waiting(waiting);
            self.publish();
            if can_run {
                let turn = turns::serve();
                self.runner.execute();
                self.publish();
                turn.end();
            }
        }
        let scheduler = &self.runner.scheduler;
        for sequence in scheduler.running.iter().chain(&scheduler.waiting) {
            sequence.fail(STOPPING);
        }
    }

    /// Takes new sequences in; waits for one when idle. `false` ends the engine.
    fn receive(&mut self) -> bool {
        let scheduler = &mut self.runner.scheduler;
        if scheduler.is_idle() {
            match self.inbox.recv() {
                Ok(Command::Run(sequence)) => scheduler.waiting.push_back(*sequence),
                Ok(Command::Stop) | Err(_) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Run(sequence)) => scheduler.waiting.push_back(*sequence),
                Ok(Command::Stop) => return false,
                Err(_) => return true,
            }
        }
    }

    /// The counter bounds accepted sequences that are not running; scheduling moves some.
    fn count_waiting(&self, before: usize) {
        let after = self.runner.scheduler.waiting.len();
        let waiting = &self.shared.waiting;
        if after < before {
            waiting.fetch_sub(before - after, Ordering::AcqRel);
        } else {
            waiting.fetch_add(after - before, Ordering::AcqRel);
        }
    }

    fn publish(&self) {
        let scheduler = &self.runner.scheduler;
        self.shared
            .running
            .store(scheduler.running.len(), Ordering::Relaxed);
        let usage = (scheduler.pool.usage() * 1e6) as u64;
        let totals = scheduler.totals;
        for (shared, value) in [
            (&self.shared.kv_usage_ppm, usage),
            (&self.shared.prefix_queries, totals.prefix_queries),
            (&self.shared.prefix_hits, totals.prefix_hits),
            (&self.shared.preemptions, totals.preemptions),
        ] {
            shared.store(value, Ordering::Relaxed);
        }
    }
}
