//! What every engine checks before it accepts a sequence, and the counters that it shares with its
//! threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use realign_model::Tokenizer;
use tokio::sync::mpsc::unbounded_channel;

use crate::health::Health;
use crate::request::{EngineStats, GenerateRequest, GenerateStream, SubmitError};
use crate::sequence::Sequence;

/// Counters of an engine, shared with its threads.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Sequences accepted and not running yet.
    pub waiting: AtomicUsize,
    /// Sequences whose tokens are being computed.
    pub running: AtomicUsize,
    /// Share of KV blocks in use, in parts per million so that it fits an integer.
    pub(crate) kv_usage_ppm: AtomicU64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: AtomicU64,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hits: AtomicU64,
    /// Times that a running sequence was preempted.
    pub preemptions: AtomicU64,
    /// Tokens that were drafted.
    pub(crate) drafted: AtomicU64,
    /// Those of them that were drawn.
    pub(crate) accepted: AtomicU64,
    /// Which generations compute numbers.
    pub(crate) health: Arc<Health>,
    /// Set on shutdown: no more sequences are accepted, and those that run end.
    pub(crate) stopping: AtomicBool,
}

/// The bounds within which an engine accepts sequences.
#[derive(Debug)]
pub(super) struct Admission {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) max_model_len: usize,
    max_waiting: usize,
}

impl Admission {
    /// `max_model_len`: longest prompt plus completion in tokens; `max_waiting`: most sequences that
    /// wait.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, max_model_len: usize, max_waiting: usize) -> Self {
        Self {
            shared: Arc::default(),
            tokenizer,
            max_model_len,
            max_waiting,
        }
    }

    /// Checks a request, counts it as waiting and hands its sequence to `queue`.
    ///
    /// # Errors
    /// [`SubmitError`] of the checks or of `queue`; the request is not counted then.
    pub(crate) fn submit(
        &self,
        request: GenerateRequest,
        queue: impl FnOnce(Sequence) -> Result<(), SubmitError>,
    ) -> Result<GenerateStream, SubmitError> {
        self.check(&request)?;
        self.count()?;
        let (sender, events) = unbounded_channel();
        if let Err(error) = queue(Sequence::new(request, &self.tokenizer, sender)) {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(error);
        }
        Ok(GenerateStream::new(events))
    }

    fn check(&self, request: &GenerateRequest) -> Result<(), SubmitError> {
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
        Ok(())
    }

    fn count(&self) -> Result<(), SubmitError> {
        let limit = self.max_waiting;
        let one_more = |n: usize| (n < limit).then_some(n + 1);
        self.shared
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map(|_| ())
            .map_err(|waiting| SubmitError::QueueFull { waiting, limit })
    }

    /// The load right now.
    pub(crate) fn stats(&self) -> EngineStats {
        let shared = &self.shared;
        EngineStats {
            running: shared.running.load(Ordering::Relaxed),
            waiting: shared.waiting.load(Ordering::Relaxed),
            kv_cache_usage: shared.kv_usage_ppm.load(Ordering::Relaxed) as f64 / 1e6,
            prefix_hits: shared.prefix_hits.load(Ordering::Relaxed),
            prefix_queries: shared.prefix_queries.load(Ordering::Relaxed),
            preemptions: shared.preemptions.load(Ordering::Relaxed),
            drafted: shared.drafted.load(Ordering::Relaxed),
            accepted: shared.accepted.load(Ordering::Relaxed),
            nonfinite: shared.health.failures(),
        }
    }

    /// Whether any sequence is running or waiting.
    pub(crate) fn is_busy(&self) -> bool {
        let shared = &self.shared;
        shared.running.load(Ordering::Relaxed) + shared.waiting.load(Ordering::Relaxed) > 0
    }
}
