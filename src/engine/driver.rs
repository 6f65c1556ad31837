//! A sequence that somebody else's loop computes: it is handed logits and hands back the token to
//! go on with.
//!
//! Everything a request may ask for (grammar, biases, penalties, its own random stream, stop
//! strings, log-probabilities) happens here, in the same code as in the native engine, so an
//! engine behind this type has to do one thing only: compute logits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::admission::Shared;
use super::merged::Loaded;
use super::sampler::Scratch;
use super::sequence::Sequence;
use realign_model::Tokenizer;

/// What clients are told whose answers the end of the server cuts off.
pub(super) const STOPPING: &str = "the engine is shutting down";

/// Where a sequence is. The shared counters know it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Running,
    Ended,
}

/// One sequence, and the copy of the weights that computes it. Dropping it before it has ended
/// tells the client that the engine gave it up.
#[derive(Debug)]
pub struct Driver {
    sequence: Sequence,
    prompt: usize,
    max_tokens: usize,
    tokenizer: Arc<Tokenizer>,
    scratch: Scratch,
    shared: Arc<Shared>,
    stage: Stage,
    /// What a client is told if the sequence is given up.
    reason: String,
    /// Keeps the copy loaded to the last token.
    copy: Option<Arc<Loaded>>,
}

impl Driver {
    /// A sequence that has been counted as waiting in `shared` and has no copy yet.
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

    /// Prompt token ids.
    pub fn prompt(&self) -> &[u32] {
        &self.sequence.tokens[..self.prompt]
    }

    /// Most tokens that will be drawn.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// A token of plain text, for engines that must be given one when the sequence has ended.
    pub fn filler(&self) -> u32 {
        let encoded = self.tokenizer.encode(".", false).unwrap_or_default();
        encoded.last().copied().unwrap_or(0)
    }

    /// What the client is told if the sequence is given up from here on.
    pub fn because(&mut self, reason: impl Into<String>) {
        self.reason = reason.into();
    }

    /// Draws the next token from its logits and reports it to the client. `None` if the sequence
    /// has ended with it, or if nobody waits for it any more: nothing is to be computed for it then.
    pub fn advance(&mut self, logits: &[f32]) -> Option<u32> {
        if self.stage == Stage::Ended {
            return None;
        }
        self.run();
        if self.is_over() {
            return None;
        }
        let ended = self
            .sequence
            .advance(logits, &self.tokenizer, &mut self.scratch);
        if ended {
            self.leave();
            return None;
        }
        self.sequence.tokens.last().copied()
    }

    /// Whether there is nothing to compute for the sequence any more, because its client has gone
    /// or the engine is to end. It has ended then.
    pub fn is_over(&mut self) -> bool {
        if self.shared.stopping.load(Ordering::Acquire) {
            self.because(STOPPING);
            self.give_up();
        } else if self.sequence.is_cancelled() {
            self.leave();
        }
        self.stage == Stage::Ended
    }

    fn run(&mut self) {
        if self.stage == Stage::Waiting {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            self.shared.running.fetch_add(1, Ordering::AcqRel);
            self.stage = Stage::Running;
        }
    }

    fn give_up(&mut self) {
        if self.stage != Stage::Ended {
            self.sequence.fail(&self.reason);
            self.leave();
        }
    }

    fn leave(&mut self) {
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
        self.give_up();
    }
}
