//! Starting an engine: sizes, KV cache, executor, thread.

use std::sync::Arc;
use std::time::Duration;

use realign_model::{
    BLOCK_TOKENS, Backend, Executor, ExecutorOptions, KvType, Precision, TimeSlices, Tokenizer,
};

use super::admission::Admission;
use super::blocks::BlockPool;
use super::engine::EngineHandle;
use super::merged::{Builder, MergedEngine, PrepareError};
use super::native::NativeEngine;
use super::runner::Runner;
use super::scheduler::Scheduler;

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
    /// Time that a step with streams should take at most: prompts get fewer rows for it. `None`: no
    /// bound.
    pub step_target: Option<Duration>,
    /// Whether tokens that a grammar forces are appended without a step of their own.
    pub jump_forward: bool,
    /// Most tokens of a draft of what comes next, from what followed the same words before; 0 makes none.
    pub draft_tokens: usize,
    /// CPU threads that compute.
    pub threads: usize,
    /// Whether a CUDA device runs decoding steps as they were recorded.
    pub cuda_graphs: bool,
    /// Elements of keys and values, where the device has a choice.
    pub kv_type: KvType,
    /// The arithmetic of weights in bfloat16 on a CPU.
    pub precision: Precision,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_model_len: None,
            max_running: 64,
            max_waiting: 256,
            kv_cache_bytes: 512 << 20,
            step_tokens: 256,
            step_target: None,
            jump_forward: true,
            draft_tokens: 8,
            threads: std::thread::available_parallelism().map_or(1, Into::into),
            cuda_graphs: true,
            kv_type: KvType::default(),
            precision: Precision::Exact,
        }
    }
}

/// Tokens per KV block.
const BLOCK_SIZE: usize = BLOCK_TOKENS;

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

/// Allocates the KV cache and starts the engine's thread.
///
/// # Errors
/// [`EngineError`]: a cache that holds no block or does not fit the memory, no thread.
pub fn start(
    backend: &dyn Backend,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
) -> Result<EngineHandle, EngineError> {
    let block = backend.bytes_per_block(config.kv_type);
    let blocks = config.kv_cache_bytes / block;
    if blocks == 0 {
        return Err(EngineError::CacheTooSmall {
            bytes: config.kv_cache_bytes,
            block,
        });
    }
    let executor = backend.executor(ExecutorOptions {
        // One that no sequence gets, for probes.
        blocks: blocks + 1,
        threads: config.threads,
        record: config.cuda_graphs,
        kv: config.kv_type,
        precision: config.precision,
    })?;
    // After the cache: a size that was mistyped is refused there.
    let computing = Computing {
        executor,
        pool: BlockPool::new(blocks, BLOCK_SIZE),
        limit: backend.spec().max_position,
        slices: backend.time_slices().clone(),
    };
    start_with(computing, tokenizer, config)
}

/// What an engine's thread computes with.
pub(super) struct Computing {
    /// Runs the steps.
    pub(crate) executor: Box<dyn Executor>,
    /// The blocks of the executor's cache, except the last, which is for probes.
    pub(crate) pool: BlockPool,
    /// The model's longest sequence, in tokens.
    pub(crate) limit: usize,
    /// How its steps divide the time with learning.
    pub(crate) slices: Arc<TimeSlices>,
}

/// Starts the engine's thread.
pub(super) fn start_with(
    computing: Computing,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
) -> Result<EngineHandle, EngineError> {
    let Computing {
        executor,
        pool,
        limit,
        slices,
    } = computing;
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
    let admission = Admission::new(tokenizer, max_model_len, config.max_waiting);
    let scheduler = Scheduler::new(pool, config.max_running.max(1), config.step_tokens)
        .within(config.step_target);
    let (tokenizer, health) = (admission.tokenizer.clone(), admission.shared.health.clone());
    let runner = Runner::new(scheduler, executor, tokenizer, health)
        .jumping(config.jump_forward)
        .drafting(config.draft_tokens);
    Ok(Arc::new(NativeEngine::start(admission, runner, slices)?))
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
    let max_model_len = config.max_model_len.unwrap_or(limit).min(limit);
    let admission = Admission::new(tokenizer, max_model_len, config.max_waiting);
    Arc::new(MergedEngine::new(builder, admission, copies))
}
