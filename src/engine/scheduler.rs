//! Chooses the sequences that run in the next step.
//!
//! First come, first served. A sequence is admitted when the blocks for all its tokens are free, so
//! prefills never wait for each other's blocks. A sequence that does not fit yet blocks those
//! behind it, so it runs as soon as enough running ones have ended. Only decoding takes further
//! blocks. If none is free, the youngest sequence is preempted: it returns its blocks and goes to
//! the front of the queue. The oldest sequence therefore always makes progress, and so all do.

use std::collections::VecDeque;
use std::time::Duration;

use super::blocks::BlockPool;
use super::pace::{Load, Pace};
use super::sequence::Sequence;

/// Fewest prompt tokens of a prefill chunk: smaller ones pay a step's fixed costs too often.
const MIN_CHUNK: usize = 64;

/// Streams beside which drafts are made, at most: with more, rows cost what they compute.
const DRAFTING_STREAMS: usize = 4;

/// Waiting and running sequences. Running ones hold KV blocks; waiting ones hold nothing.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// In order of admission: the last one is preempted first.
    pub running: Vec<Sequence>,
    /// In order of arrival; preempted sequences come back to the front.
    pub waiting: VecDeque<Sequence>,
    /// Free and used KV blocks.
    pub(crate) pool: BlockPool,
    /// Running totals.
    pub(crate) totals: Totals,
    max_running: usize,
    /// Most tokens of a draft; 0 makes none.
    draft_tokens: usize,
    prefill_budget: usize,
    /// Bounds the time of steps that have streams; `None`: only the budget counts.
    pace: Option<Pace>,
    /// What the last step that was chosen has to do.
    load: Load,
    /// The `prefill_order` to assign next.
    next_prefill_order: u64,
    /// Scratch: indices of prefilling sequences.
    prefilling: Vec<usize>,
}

/// Counts since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Prompt tokens looked up in the prefix cache: all of each prompt, once per sequence.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Times that a sequence returned its blocks to older ones.
    pub preemptions: u64,
    /// Tokens that were drafted.
    pub drafted: u64,
    /// Those of them that were drawn.
    pub accepted: u64,
}

/// One sequence's rows in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Index into `running`.
    pub(crate) index: usize,
    /// How many of its pending tokens run.
    pub(crate) tokens: usize,
}

impl Scheduler {
    /// An empty scheduler. A step has a row for every decoding sequence and fills up to
    /// `step_tokens` rows with prompts, but runs at least one chunk if a prompt is there.
    pub(crate) fn new(pool: BlockPool, max_running: usize, step_tokens: usize) -> Self {
        Self {
            running: Vec::new(),
            waiting: VecDeque::new(),
            pool,
            totals: Totals::default(),
            max_running: max_running.max(1),
            draft_tokens: 0,
            prefill_budget: step_tokens.max(1),
            pace: None,
            load: Load::default(),
            next_prefill_order: 0,
            prefilling: Vec::new(),
        }
    }

    /// Prompts get fewer rows where a step with streams would take longer than this.
    pub(crate) fn within(mut self, target: Option<Duration>) -> Self {
        self.pace = target.map(Pace::new);
        self
    }

    /// Streams get drafts of at most so many tokens; 0 makes none.
    pub(crate) fn drafting(&mut self, tokens: usize) {
        self.draft_tokens = tokens;
    }

    /// Notes how long the last step that was chosen took.
    pub(crate) fn took(&mut self, time: Duration) {
        if let Some(pace) = &mut self.pace {
            pace.learn(self.load, time);
        }
    }

    /// Whether nothing is running or waiting.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Drops sequences whose clients have disconnected.
    pub(crate) fn drop_cancelled(&mut self) {
        let pool = &mut self.pool;
        self.running.retain_mut(|s| {
            let keep = !s.is_cancelled();
            if !keep {
                pool.release(&mut s.table);
            }
            keep
        });
        self.waiting.retain(|s| !s.is_cancelled());
    }

    /// Chooses the next step: every decoding sequence, so that no stream stalls behind a prompt,
    /// then chunks of prompts. `shares` is empty only if nothing can run.
    pub(crate) fn schedule(&mut self, shares: &mut Vec<Share>) {
        shares.clear();
        if !self.secure_blocks() {
            self.admit();
        }
        for (index, sequence) in self.running.iter().enumerate() {
            if sequence.is_decoding() {
                let tokens = sequence.pending();
                shares.push(Share { index, tokens });
            }
        }
        self.make_drafts(shares);
        self.share_prefill(shares);
    }

    /// Drafts tokens for the streams of a step, where there are few and blocks are free.
    fn make_drafts(&mut self, shares: &[Share]) {
        if self.draft_tokens == 0 || shares.len() > DRAFTING_STREAMS {
            return;
        }
        for share in shares {
            let sequence = &mut self.running[share.index];
            sequence.make_draft(self.draft_tokens);
            let tokens = sequence.tokens.len() + sequence.draft.len();
            if !self.pool.grow(&mut sequence.table, tokens) {
                sequence.draft.clear();
            }
        }
    }

    /// Notes how much of a sequence's draft was drawn.
    pub(crate) fn settle_draft(&mut self, index: usize, draft: &[u32], accepted: usize) {
        let s = &mut self.running[index];
        s.learn_from_draft(draft, accepted, self.draft_tokens);
        s.computed += accepted;
        self.pool.seal(&mut s.table, &s.tokens, s.computed);
        self.totals.drafted += draft.len() as u64;
        self.totals.accepted += accepted as u64;
    }

    /// Gives every running sequence the blocks for its tokens, which only a decoding one can lack.
    /// Returns whether sequences were preempted for that.
    fn secure_blocks(&mut self) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while let Some(sequence) = self.running.get_mut(index) {
            let tokens = sequence.tokens.len();
            if self.pool.grow(&mut sequence.table, tokens) {
                index += 1;
            } else {
                self.preempt_youngest();
                preempted = true;
            }
        }
        preempted
    }

    /// Preempts the youngest sequence. Its full blocks stay in the prefix cache until others need
    /// them, so there may be little to recompute.
    fn preempt_youngest(&mut self) {
        if let Some(mut youngest) = self.running.pop() {
            self.pool.release(&mut youngest.table);
            youngest.computed = 0;
            self.waiting.push_front(youngest);
            self.totals.preemptions += 1;
        }
    }

    fn admit(&mut self) {
        let mut at = 0;
        // How many sequences that wait for a block being computed are skipped is bounded like the
        // batch.
        while self.running.len() < self.max_running && at < self.max_running {
            let Some(sequence) = self.waiting.get_mut(at) else {
                return;
            };
            let tokens = sequence.tokens.len();
            let cached = self
                .pool
                .lease_prefix(&mut sequence.table, &sequence.tokens);
            let next_block = cached / self.pool.block_size();
            if awaits_block(sequence, next_block, &self.running, &self.pool) {
                self.pool.release(&mut sequence.table);
                at += 1;
                continue;
            }
            if !self.pool.grow(&mut sequence.table, tokens) {
                self.pool.release(&mut sequence.table);
                return;
            }
            if let Some(mut sequence) = self.waiting.remove(at) {
                self.count_lookup(&mut sequence, cached);
                sequence.computed = cached;
                sequence.prefill_order = self.next_prefill_order;
                self.next_prefill_order += 1;
                self.running.push(sequence);
            }
        }
    }

    /// Counts a sequence's first admission only: a preempted one finds its own blocks again.
    fn count_lookup(&mut self, sequence: &mut Sequence, cached: usize) {
        if sequence.cached_prompt.is_none() {
            sequence.cached_prompt = Some(cached);
            self.totals.prefix_queries += sequence.tokens.len() as u64;
            self.totals.prefix_hits += cached as u64;
        }
    }

    /// Rows for prompts, and for the streams beside them.
    fn prefill_rows(&self, streams: usize) -> usize {
        match &self.pace {
            Some(pace) if streams > 0 => {
                let prompts = self.running.iter().filter(|s| !s.is_decoding());
                let depth = prompts.map(|s| s.computed).max().unwrap_or_default();
                self.prefill_budget
                    .min(pace.rows(depth).saturating_add(streams))
            }
            _ => self.prefill_budget,
        }
    }

    /// Divides the rows that decoding leaves between prefills: equal parts of at least a minimum
    /// chunk each. If there are too few rows for all, those that waited longest come first.
    fn share_prefill(&mut self, shares: &mut Vec<Share>) {
        self.load = Load {
            decoding: shares.len(),
            ..Load::default()
        };
        let most = self.prefill_rows(shares.len());
        let least = MIN_CHUNK.min(most);
        let mut budget = most.saturating_sub(shares.len()).max(least);
        let running = &mut self.running;
        let mut prefilling = std::mem::take(&mut self.prefilling);
        prefilling.clear();
        prefilling.extend((0..running.len()).filter(|&i| !running[i].is_decoding()));
        prefilling.sort_unstable_by_key(|&i| running[i].prefill_order);
        let served = prefilling.len().min((budget / least).max(1));
        // The shortest first: the rows of an equal part that they do not need go to the others.
        prefilling[..served].sort_unstable_by_key(|&i| (running[i].pending(), i));
        for (at, &index) in prefilling.iter().enumerate() {
            let part = budget / served.saturating_sub(at).max(1);
            // A sequence that only gets left-over rows keeps its position in the round.
            if at < served {
                running[index].prefill_order = self.next_prefill_order;
                self.next_prefill_order += 1;
            }
            let tokens = running[index].pending().min(part);
            if tokens > 0 {
                self.load.add(tokens, running[index].computed);
                shares.push(Share { index, tokens });
                budget -= tokens;
            }
        }
        self.prefilling = prefilling;
    }

    /// Notes that the tokens of these shares have their keys and values in the cache.
    pub(crate) fn mark_computed(&mut self, shares: &[Share]) {
        for share in shares {
            let s = &mut self.running[share.index];
            s.computed += share.tokens;
            self.pool.seal(&mut s.table, &s.tokens, s.computed);
        }
    }

    /// Removes the running sequences at these indices and frees their blocks.
    pub(crate) fn retire(&mut self, indices: &mut [usize]) -> Vec<Sequence> {
        indices.sort_unstable();
        let retired = indices.iter().rev().map(|&index| {
            let mut sequence = self.running.remove(index);
            self.pool.release(&mut sequence.table);
            sequence
        });
        retired.collect()
    }
}

/// Whether a running sequence is about to compute the block that this one lacks next, as when a
/// request asks for several choices: waiting for it is less work than computing it twice.
/// Running sequences make progress in every step, so the wait ends.
fn awaits_block(
    sequence: &Sequence,
    next_block: usize,
    running: &[Sequence],
    pool: &BlockPool,
) -> bool {
    let end = (next_block + 1) * pool.block_size();
    let Some(key) = sequence.table.key(next_block) else {
        return false;
    };
    // The last token runs anyway, so a block that holds it is not worth waiting for.
    end < sequence.tokens.len()
        && running
            .iter()
            .any(|r| r.computed < end && r.table.key(next_block) == Some(key))
}
