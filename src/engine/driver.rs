//! A sequence that another engine's loop computes: it takes logits and returns the next token.
//!
//! Everything a request may ask for (grammar, biases, penalties, its own random stream, stop
//! strings, log-probabilities) happens here, in the same code as in the native engine, so an
//! engine that uses this type only has to compute logits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::admission::Shared;
use super::merged::Loaded;
use super::sampler::Scratch;
use super::sequence::{Advance, Sequence};
use realign_model::Tokenizer;

/// The error that clients receive when a shutdown cuts their answers off.
pub(super) const STOPPING: &str = "the engine is shutting down";

/// The state of a sequence; the shared counters count `Waiting` and `Running`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Running,
    Ended,
}

/// One sequence, and the copy of the weights that computes it. Dropping it before it has ended
/// fails the sequence with the reason set by [`Driver::because`].
#[derive(Debug)]
pub struct Driver {
    sequence: Sequence,
    prompt: usize,
    max_tokens: usize,
    tokenizer: Arc<Tokenizer>,
    scratch: Scratch,
    shared: Arc<Shared>,
    stage: Stage,
    /// The error that the client receives if the sequence fails.
    reason: String,
    /// Keeps the copy loaded until the last token.
    copy: Option<Arc<Loaded>>,
}

impl Driver {
    /// A sequence that `shared` already counts as waiting; [`Driver::lease`] gives it a copy.
    pub(super) fn new(
        sequence: Sequence,
        max_tokens: usize,
        tokenizer: Arc<Tokenizer>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            prompt: sequence.tokens.len(),
            sequence,
            max_tokens,
            tokenizer,
            scratch: Scratch::default(),
            shared,
            stage: Stage::Waiting,
            reason: "the engine gave this sequence up; see the server's log".into(),
            copy: None,
        }
    }

    /// Leases the copy that will compute the sequence.
    pub(super) fn lease(&mut self, copy: Arc<Loaded>) {
        self.copy = Some(copy);
    }

    /// The prompt's token ids, special tokens included.
    pub fn prompt(&self) -> &[u32] {
        &self.sequence.tokens[..self.prompt]
    }

    /// The most tokens that will be drawn.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// An arbitrary text token, for engines that insist on a next token after the sequence ended.
    pub fn filler(&self) -> u32 {
        let encoded = self.tokenizer.encode(".", false).unwrap_or_default();
        encoded.last().copied().unwrap_or(0)
    }

    /// Sets the error that the client receives if the sequence fails from now on.
    pub fn because(&mut self, reason: impl Into<String>) {
        self.reason = reason.into();
    }

    /// Draws the next token from its logits (vocabulary) and reports it to the client. `None` if
    /// the sequence ended with it or its client has disconnected: there is nothing left to compute.
    pub fn advance(&mut self, logits: &[f32]) -> Option<u32> {
        if self.stage == Stage::Ended {
            return None;
        }
        self.mark_running();
        if self.is_over() {
            return None;
        }
        let advance = self
            .sequence
            .advance(logits, &self.tokenizer, &mut self.scratch);
        let (health, generation) = (&self.shared.health, &self.sequence.generation);
        match advance {
            Advance::Continues => return self.sequence.tokens.last().copied(),
            Advance::Ended => health.ended_well(&generation.id),
            Advance::NotFinite => health.failed(generation),
        }
        self.end();
        None
    }

    /// Whether nothing is left to compute for the sequence. Ends it if its client has disconnected
    /// and fails it if the engine is shutting down.
    pub fn is_over(&mut self) -> bool {
        if self.shared.stopping.load(Ordering::Acquire) {
            self.because(STOPPING);
            self.abort();
        } else if self.sequence.is_cancelled() {
            self.end();
        }
        self.stage == Stage::Ended
    }

    fn mark_running(&mut self) {
        if self.stage == Stage::Waiting {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            self.shared.running.fetch_add(1, Ordering::AcqRel);
            self.stage = Stage::Running;
        }
    }

    fn abort(&mut self) {
        if self.stage != Stage::Ended {
            self.sequence.fail(&self.reason);
            self.end();
        }
    }

    /// Uncounts the sequence and frees its lease.
    fn end(&mut self) {
        let counted = match self.stage {
            Stage::Waiting => &self.shared.waiting,
            Stage::Running => &self.shared.running,
            Stage::Ended => return,
        };
        counted.fetch_sub(1, Ordering::AcqRel);
        self.stage = Stage::Ended;
        self.copy = None;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.abort();
    }
}
