//! One step: the rows that run, and what comes back.
//!
//! The scheduler's shares become a [`Layout`]; an [`Executor`](realign_model::Executor) computes it
//! and hands back the logits of the rows that a next token is drawn from. Executors know nothing of
//! sequences, requests or scheduling.

use std::sync::Arc;

use super::scheduler::Share;
use super::sequence::Sequence;
use realign_model::{AdapterSpan, DrawRequest, Outputs, PagedSequence, Step};

/// The rows of a step, sequences of one generation side by side. Refilled for every step, so that
/// its buffers are allocated once.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Token ids, one per row.
    pub(crate) tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub(crate) positions: Vec<u32>,
    /// Which rows belong to which sequence, and where its keys and values are.
    pub(crate) sequences: Arc<[PagedSequence]>,
    /// Adapters by ascending row range; base rows appear in none.
    pub(crate) adapters: Vec<AdapterSpan>,
    /// Ascending rows whose logits are asked for: of every sequence that has no further token to
    /// compute, its last token's row and those of its draft.
    pub(crate) outputs: Vec<u32>,
    /// For each output, its sequence's index in the running batch.
    pub(crate) owners: Vec<usize>,
    /// For each output, how its token is to be drawn where the executor does that; `None` where the
    /// host has to see its logits.
    pub(crate) draws: Vec<Option<DrawRequest>>,
    /// The shares in the rows' order.
    order: Vec<Share>,
    /// `sequences` while it is collected.
    parts: Vec<PagedSequence>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            sequences: Arc::from([]),
            adapters: Vec::new(),
            outputs: Vec::new(),
            owners: Vec::new(),
            draws: Vec::new(),
            order: Vec::new(),
            parts: Vec::new(),
        }
    }
}

impl Layout {
    /// Lays out a step's shares. `draws` if the executor draws tokens.
    pub(crate) fn fill(&mut self, running: &mut [Sequence], shares: &[Share], draws: bool) {
        self.clear();
        self.order.extend_from_slice(shares);
        self.order.sort_unstable_by(|a, b| {
            let generation = |share: &Share| &running[share.index].generation.id;
            generation(a).cmp(generation(b)).then(a.index.cmp(&b.index))
        });
        for i in 0..self.order.len() {
            let share = self.order[i];
            self.push(&mut running[share.index], share);
        }
        if draws {
            let request = |owner: &usize| running[*owner].draw_request();
            self.draws.extend(self.owners.iter().map(request));
        }
        self.sequences = self.parts.drain(..).collect();
    }

    /// What the executor computes.
    pub(crate) fn step(&self) -> Step<'_> {
        Step {
            tokens: &self.tokens,
            positions: &self.positions,
            sequences: &self.sequences,
            adapters: &self.adapters,
            outputs: &self.outputs,
        }
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.adapters.clear();
        self.outputs.clear();
        self.owners.clear();
        self.draws.clear();
        self.order.clear();
    }

    fn push(&mut self, sequence: &mut Sequence, share: Share) {
        let start = self.tokens.len();
        let range = sequence.computed..sequence.computed + share.tokens;
        self.parts.push(PagedSequence {
            start,
            rows: share.tokens + sequence.draft.len(),
            cached: sequence.computed,
            blocks: sequence.table.view(),
        });
        self.tokens.extend_from_slice(&sequence.tokens[range]);
        let last = self.tokens.len() - 1;
        self.tokens.extend_from_slice(&sequence.draft);
        let end = self.tokens.len();
        let first = sequence.computed;
        self.positions
            .extend((first..first + end - start).map(|p| p as u32));
        if sequence.pending() == share.tokens {
            self.outputs.extend((last..end).map(|row| row as u32));
            self.owners.extend((last..end).map(|_| share.index));
        }
        let Some(adapter) = &sequence.generation.adapter else {
            return;
        };
        match self.adapters.last_mut() {
            Some(last) if last.adapter.is(&adapter.staged) && last.rows.end == start => {
                last.rows.end = end;
            }
            _ => self.adapters.push(AdapterSpan {
                rows: start..end,
                adapter: adapter.staged.clone(),
            }),
        }
    }
}

/// Logits of a step's outputs in one flat buffer, (outputs, vocabulary), reused between steps.
#[derive(Debug, Default)]
pub(crate) struct Logits {
    values: Vec<f32>,
    vocab: usize,
    /// Tokens that the executor has drawn itself.
    tokens: Vec<Option<u32>>,
}

impl Logits {
    /// Makes room for a layout's outputs, each of `vocab` logits. What it holds is unspecified.
    pub(crate) fn prepare<'a>(&'a mut self, layout: &'a Layout, vocab: usize) -> Outputs<'a> {
        self.vocab = vocab;
        self.tokens.clear();
        self.values.resize(layout.outputs.len() * vocab, 0.0);
        Outputs {
            draws: &layout.draws,
            logits: &mut self.values,
            tokens: &mut self.tokens,
        }
    }

    /// The logits of output `index`, (vocabulary).
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab..(index + 1) * self.vocab]
    }

    /// The token that the executor drew for output `index`; its logits are unspecified then.
    pub(crate) fn token(&self, index: usize) -> Option<u32> {
        self.tokens.get(index).copied().flatten()
    }
}
