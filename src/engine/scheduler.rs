//! Who runs in the next step.

use std::collections::VecDeque;

use super::blocks::BlockPool;
use super::sequence::Sequence;

/// Waiting and running sequences. Running ones hold KV blocks; waiting ones hold nothing.
#[derive(Debug)]
pub struct Scheduler {
    /// In order of admission: the last one is preempted first.
    pub running: Vec<Sequence>,
    /// In order of arrival; preempted sequences come back to the front.
    pub waiting: VecDeque<Sequence>,
    /// Free and used KV blocks.
    pub pool: BlockPool,
    max_running: usize,
    token_budget: usize,
}

/// One sequence's share of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Index into `running`.
    pub index: usize,
    /// How many of its pending tokens run.
    pub tokens: usize,
}

impl Scheduler {
    /// An empty scheduler. `token_budget` bounds the rows of one step.
    pub fn new(pool: BlockPool, max_running: usize, token_budget: usize) -> Self {
        Self {
            running: Vec::new(),
            waiting: VecDeque::new(),
            pool,
            max_running,
            token_budget: token_budget.max(1),
        }
    }

    /// Whether nothing is running or waiting.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Drops sequences whose clients have gone. Returns how many of them were waiting.
    pub fn drop_cancelled(&mut self) -> usize {
        let pool = &mut self.pool;
        self.running.retain_mut(|s| {
            let keep = !s.is_cancelled();
            if !keep {
                pool.release(&mut s.blocks);
            }
            keep
        });
        let before = self.waiting.len();
        self.waiting.retain(|s| !s.is_cancelled());
        before - self.waiting.len()
    }

    /// Chooses the next step: every decoding sequence first, so that no stream stalls behind a
    /// long prompt, then prefill chunks, oldest first, then new sequences, within the token budget.
    pub fn schedule(&mut self) -> Vec<Share> {
        let mut budget = self.token_budget;
        let mut shares = Vec::new();
        let preempted = self.secure_decodes();
        for index in 0..self.running.len() {
            if self.running[index].pending() == 1 && budget > 0 {
                shares.push(Share { index, tokens: 1 });
                budget -= 1;
            }
        }
        for index in 0..self.running.len() {
            let sequence = &mut self.running[index];
            let tokens = sequence.pending().min(budget);
            if sequence.pending() > 1 && tokens > 0 {
                let end = sequence.computed + tokens;
                if self.pool.grow(&mut sequence.blocks, end) {
                    shares.push(Share { index, tokens });
                    budget -= tokens;
                }
            }
        }
        if !preempted {
            self.admit(&mut budget, &mut shares);
        }
        shares
    }

    /// Gives every decoding sequence the block for its next token, preempting the youngest when
    /// the pool is empty. A preempted sequence forgets its cache and is recomputed later.
    fn secure_decodes(&mut self) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let end = sequence.computed + 1;
            if sequence.pending() > 1 || self.pool.grow(&mut sequence.blocks, end) {
                index += 1;
                continue;
            }
            preempted = true;
            if let Some(mut youngest) = self.running.pop() {
                self.pool.release(&mut youngest.blocks);
                youngest.computed = 0;
                self.waiting.push_front(youngest);
            }
        }
        preempted
    }

    fn admit(&mut self, budget: &mut usize, shares: &mut Vec<Share>) {
        while *budget > 0 && self.running.len() < self.max_running {
            let Some(mut sequence) = self.waiting.pop_front() else {
                return;
            };
            let tokens = sequence.pending().min(*budget);
            if !self.pool.grow(&mut sequence.blocks, tokens) {
                self.waiting.push_front(sequence);
                return;
            }
            shares.push(Share {
                index: self.running.len(),
                tokens,
            });
            self.running.push(sequence);
            *budget -= tokens;
        }
    }

    /// Removes the running sequences at these ascending indices and frees their blocks.
    pub fn retire(&mut self, indices: &[usize]) -> Vec<Sequence> {
        let retired = indices.iter().rev().map(|&index| {
            let mut sequence = self.running.remove(index);
            self.pool.release(&mut sequence.blocks);
            sequence
        });
        retired.collect()
    }
}
