//! The loop's body: schedule, run, sample. No threads and no channels for requests, so that tests
//! drive it step by step.

use std::sync::Arc;
use std::time::Instant;

use super::health::Health;
use super::merged::PrepareError;
use super::probe;
use super::sampler::Scratch;
use super::scheduler::{Scheduler, Share};
use super::sequence::Advance;
use super::step::{Layout, Logits};
use crate::adapter::generation::Generation;
use realign_model::{Executor, Tokenizer};

/// The sequences, what computes them, and the buffers that steps reuse.
pub(crate) struct Runner {
    /// Who runs and who waits.
    pub(crate) scheduler: Scheduler,
    executor: Box<dyn Executor>,
    tokenizer: Arc<Tokenizer>,
    health: Arc<Health>,
    shares: Vec<Share>,
    layout: Layout,
    logits: Logits,
    scratch: Scratch,
    ended: Vec<usize>,
    /// Whether tokens that a grammar forces are appended without a step of their own.
    jumps: bool,
}

impl Runner {
    /// A runner without sequences. The executor's cache has one block more than the scheduler's
    /// pool, for probes.
    pub(crate) fn new(
        scheduler: Scheduler,
        executor: Box<dyn Executor>,
        tokenizer: Arc<Tokenizer>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            scheduler,
            executor,
            tokenizer,
            health,
            shares: Vec::new(),
            layout: Layout::default(),
            logits: Logits::default(),
            scratch: Scratch::default(),
            ended: Vec::new(),
            jumps: true,
        }
    }

    /// Whether tokens that a grammar forces are appended without a step of their own; they are unless
    /// this says otherwise.
    pub(crate) fn jumping(self, jumps: bool) -> Self {
        Self { jumps, ..self }
    }

    /// Streams get drafts of at most so many tokens; 0 makes none, and so does an executor that draws
    /// tokens itself.
    pub(crate) fn drafting(mut self, tokens: usize) -> Self {
        let draws = self.executor.draws();
        self.scheduler.drafting(if draws { 0 } else { tokens });
        self
    }

    /// Computes a few tokens with a generation, whatever runs and waits.
    ///
    /// # Errors
    /// [`PrepareError`] if it may not serve.
    pub(crate) fn probe(&mut self, generation: &Generation) -> Result<(), PrepareError> {
        let pool = &self.scheduler.pool;
        let spare = (
            (pool.capacity() / pool.block_size()) as u32,
            pool.block_size(),
        );
        probe::probe(&mut *self.executor, generation, &self.tokenizer, spare)
    }

    /// Forgets cancelled sequences and chooses the rows of the next step. `false` if none can run.
    pub(crate) fn schedule(&mut self) -> bool {
        self.scheduler.drop_cancelled();
        self.scheduler.schedule(&mut self.shares);
        if self.shares.is_empty() {
            self.give_up_unfit();
        }
        !self.shares.is_empty()
    }

    /// Runs the chosen step; sequences that end leave the batch.
    pub(crate) fn execute(&mut self) {
        let started = Instant::now();
        let draws = self.executor.draws();
        let running = &mut self.scheduler.running;
        self.layout.fill(running, &self.shares, draws);
        let vocab = self.executor.vocab_size();
        let mut outputs = self.logits.prepare(&self.layout, vocab);
        match self.executor.forward(&self.layout.step(), &mut outputs) {
            Ok(()) => self.advance(),
            Err(error) => {
                tracing::error!(%error, "a forward pass failed; its sequences are given up");
                self.give_up();
            }
        }
        self.scheduler.took(started.elapsed());
    }

    fn advance(&mut self) {
        self.ended.clear();
        self.scheduler.mark_computed(&self.shares);
        let mut output = 0;
        while let Some(&index) = self.layout.owners.get(output) {
            let draft = std::mem::take(&mut self.scheduler.running[index].draft);
            let mut advance = self.follow(output, index, &draft);
            output += 1 + draft.len();
            let sequence = &mut self.scheduler.running[index];
            if self.jumps && advance == Advance::Continues {
                advance = sequence.jump(&self.tokenizer);
            }
            match advance {
                Advance::Continues => continue,
                Advance::Ended => self.health.ended_well(&sequence.generation.id),
                Advance::NotFinite => {
                    self.health.failed(&sequence.generation);
                    self.scheduler.pool.forget(&sequence.table);
                }
            }
            self.ended.push(index);
        }
        self.scheduler.retire(&mut self.ended);
    }

    /// Draws a sequence's next token from the logits that begin at `output`, and further ones as long as
    /// they are those of its draft.
    fn follow(&mut self, output: usize, index: usize, draft: &[u32]) -> Advance {
        let sequence = &mut self.scheduler.running[index];
        let mut accepted = 0;
        let advance = loop {
            let row = output + accepted;
            let advance = match self.logits.token(row) {
                Some(id) => sequence.advance_with(id, &self.tokenizer),
                None => {
                    let logits = self.logits.row(row);
                    sequence.advance(logits, &self.tokenizer, &mut self.scratch)
                }
            };
            let is_drafted = draft.get(accepted) == sequence.tokens.last();
            if advance != Advance::Continues || !is_drafted {
                break advance;
            }
            accepted += 1;
        };
        self.scheduler.settle_draft(index, draft, accepted);
        advance
    }

    /// A sequence that the whole empty pool cannot hold would wait for ever, and everyone behind it.
    /// Acceptance refuses such sequences; this keeps a mistake there from stopping the engine.
    fn give_up_unfit(&mut self) {
        if let Some(sequence) = self.scheduler.waiting.pop_front() {
            tracing::error!("a sequence does not fit the KV cache and is given up");
            sequence.fail("the sequence does not fit the KV cache");
        }
    }

    fn give_up(&mut self) {
        self.ended.clear();
        self.ended.extend(self.shares.iter().map(|s| s.index));
        for sequence in self.scheduler.retire(&mut self.ended) {
            sequence.fail("the model could not compute this step; see the server's log");
        }
    }
}
