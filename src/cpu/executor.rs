//! The decoder's steps on reusable buffers.

mod hidden;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{Result, bail};

use super::activations::Activations;
use super::adapters::{Adapters, Projected};
use super::attention::{Line, Plans, Work};
use super::kernels::{self, Isa};
use super::kv::{KvCache, KvShape};
use super::mix::Mixing;
use super::packed::PANEL;
use super::rows::{for_tiles, normalise, round_rows, with_floats};
use super::team::{Shards, Team};
use crate::Model;
use realign_model::compute::{Ropes, run_layers};
use realign_model::vector::soft_cap_in_place;
use realign_model::{BLOCK_TOKENS, KvType, ModelSpec, PagedSequence, Precision, Step};

/// Runs forward passes of one model on the CPU. Owns the KV cache, the threads and all buffers;
/// a decode step allocates next to nothing.
#[derive(Debug)]
pub struct CpuExecutor {
    pub(super) model: Arc<Model>,
    pub(super) isa: Isa,
    pub(super) team: Team,
    pub(super) kv: KvCache,
    pub(super) adapters: Adapters,
    pub(super) registers: Registers,
}

/// Values that flow from step to step of a layer, (rows, …) each.
#[derive(Debug, Default)]
pub(super) struct Registers {
    /// Rows of the step.
    pub(crate) rows: usize,
    /// The sequences they belong to.
    pub(crate) sequences: Vec<PagedSequence>,
    /// The same rows cut at the borders of KV blocks.
    pub(crate) runs: Vec<Run>,
    /// The residual stream, (hidden).
    pub(crate) x: Vec<f32>,
    /// What a projection adds to it, before its norm, (hidden).
    pub(crate) y: Vec<f32>,
    /// The normalised residual stream, (hidden).
    pub(crate) h: Activations,
    /// Queries, keys and values.
    pub(crate) qkv: [Vec<f32>; 3],
    /// What a sublayer's last projection reads: mixed values or the gated inner state.
    pub(crate) m: Activations,
    /// A x of the adapters at up to three sites.
    pub(crate) projected: [Projected; 3],
    /// Per thread: what attention works on.
    pub(crate) work: Vec<Work>,
    /// How attention is cut, for each window.
    pub(crate) plans: Plans,
    /// What segments of single rows come to, before they are merged.
    pub(crate) states: Vec<Line>,
    /// What layers with experts work on.
    pub(crate) mixing: Mixing,
}

/// Consecutive rows of one sequence whose tokens lie in one KV block: a unit of parallel work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Index of the sequence in the step.
    pub(crate) sequence: usize,
    /// First row.
    pub(crate) row: usize,
    /// Rows, at most sixteen.
    pub(crate) rows: usize,
    /// Position of the first row's token.
    pub(crate) position: usize,
}

/// Sizes of a model's keys and values.
pub(super) fn kv_shape(spec: &ModelSpec) -> KvShape {
    KvShape {
        layers: spec.layers,
        heads: spec.kv_heads,
        head_dim: spec.head_dim,
    }
}

/// Cuts the sequences' rows at block borders.
fn cut(sequences: &[PagedSequence], runs: &mut Vec<Run>) {
    runs.clear();
    for (index, s) in sequences.iter().enumerate() {
        let mut done = 0;
        while done < s.rows {
            let position = s.cached + done;
            let rows = (BLOCK_TOKENS - position % BLOCK_TOKENS).min(s.rows - done);
            runs.push(Run {
                sequence: index,
                row: s.start + done,
                rows,
                position,
            });
            done += rows;
        }
    }
}

impl CpuExecutor {
    /// An executor with `threads` threads and a cache of `blocks` blocks of 16 tokens.
    ///
    /// # Errors
    /// If a thread cannot be started, or the cache does not fit the memory.
    pub fn new(model: Arc<Model>, blocks: usize, threads: usize, kv: KvType) -> Result<Self> {
        let Some(kv) = KvCache::new(kv_shape(&model.spec), kv, blocks) else {
            bail!(
                "the system refuses memory for a KV cache of {blocks} blocks: lower engine.kv_cache_mb"
            );
        };
        let team = Team::new(threads)?;
        let registers = Registers {
            work: (0..team.threads()).map(|_| Work::default()).collect(),
            ..Registers::default()
        };
        let executor = Self {
            isa: Isa::detect(),
            team,
            kv,
            adapters: Adapters::default(),
            registers,
            model,
        };
        Ok(executor.in_precision(Precision::Exact))
    }

    /// The same executor in an arithmetic; a new one is exact as far as its weights are.
    pub fn in_precision(mut self, precision: Precision) -> Self {
        let weights = self.model.weights().map(|weight| weight.encoding);
        let encodings = weights.chain([self.model.head.encoding]);
        let wanted = kernels::wanted(self.isa, encodings, precision);
        (self.registers.h.wanted, self.registers.m.wanted) = (wanted, wanted);
        self
    }

    /// Logits per output.
    pub fn vocab_size(&self) -> usize {
        self.model.spec.vocab_size
    }

    /// Runs a step: writes its keys and values, and the logits of `step.outputs` to `logits`,
    /// (outputs, vocabulary).
    ///
    /// # Errors
    /// If the step does not fit the cache or the model.
    pub fn forward(&mut self, step: &Step, logits: &mut [f32]) -> Result<()> {
        let (model, ropes) = self.begin(step, logits)?;
        run_layers(self, &model, &ropes, 0..model.layers.len())?;
        self.logits(&model, step.outputs, logits)
    }

    /// Checks a step, and lays its rows and its tokens' embeddings out in the registers.
    fn begin(&mut self, step: &Step, logits: &[f32]) -> Result<(Arc<Model>, Ropes)> {
        self.check(step, logits)?;
        self.adapters.set(step.adapters)?;
        let model = self.model.clone();
        let ropes = Ropes::new(&model.spec, step.positions);
        let r = &mut self.registers;
        r.rows = step.tokens.len();
        r.sequences.clear();
        r.sequences.extend_from_slice(step.sequences);
        cut(step.sequences, &mut r.runs);
        r.plans.clear();
        self.embed(&model, step.tokens)?;
        Ok((model, ropes))
    }

    fn check(&self, step: &Step, logits: &[f32]) -> Result<()> {
        let rows = step.tokens.len();
        let spec = &self.model.spec;
        if step.positions.len() != rows || logits.len() != step.outputs.len() * spec.vocab_size {
            bail!("a step of {rows} rows has the wrong number of positions or room for logits");
        }
        if let Some(id) = step
            .tokens
            .iter()
            .find(|id| **id as usize >= spec.vocab_size)
        {
            bail!("token {id} is not in a vocabulary of {}", spec.vocab_size);
        }
        if step.outputs.iter().any(|row| *row as usize >= rows) {
            bail!(
                "a step of {rows} rows cannot give the logits of {:?}",
                step.outputs
            );
        }
        let mut next = 0;
        for s in step.sequences {
            if s.start < next {
                bail!("sequences of a step overlap at row {}", s.start);
            }
            next = s.start + s.rows;
            let holds = s.blocks.len() * BLOCK_TOKENS;
            let in_pool = s.blocks.iter().all(|b| (*b as usize) < self.kv.blocks);
            if s.start + s.rows > rows || s.cached + s.rows > holds || !in_pool {
                bail!(
                    "sequence {s:?} does not fit {rows} rows and {} blocks",
                    self.kv.blocks
                );
            }
        }
        Ok(())
    }

    fn embed(&mut self, model: &Model, tokens: &[u32]) -> Result<()> {
        let weight = &model.embedding;
        let x = &mut self.registers.x;
        x.resize(tokens.len() * weight.columns, 0.0);
        for (row, id) in x.chunks_exact_mut(weight.columns).zip(tokens) {
            weight.read_row(*id as usize, row);
            if let Some(scale) = model.spec.variant.embedding_scale {
                row.iter_mut().for_each(|v| *v *= scale as f32);
            }
        }
        Ok(())
    }

    fn logits(&mut self, model: &Model, outputs: &[u32], logits: &mut [f32]) -> Result<()> {
        if outputs.is_empty() {
            return Ok(());
        }
        let head = &model.head;
        let (width, eps) = (head.columns, model.spec.rms_norm_eps as f32);
        let r = &mut self.registers;
        r.h.reshape(outputs.len(), width);
        with_floats(&model.final_norm, |norm| {
            for (index, row) in outputs.iter().enumerate() {
                let x = &r.x[*row as usize * width..][..width];
                normalise(x, norm, eps, &mut r.h.values[index * width..][..width]);
            }
        })?;
        round_rows(&mut self.team, &mut r.h);
        let (isa, h) = (self.isa, &r.h);
        let cap = model.spec.variant.logit_cap.map(|cap| cap as f32);
        let shards = Shards::new(logits);
        for_tiles(
            &mut self.team,
            head.panels(),
            h.rows,
            |panel, first, rows, [tile, _]| {
                kernels::panel(isa, head, panel, h, first, rows, tile);
                let lanes = PANEL.min(head.out - panel * PANEL);
                for (r, tile) in tile[..rows].iter_mut().enumerate() {
                    if let Some(cap) = cap {
                        soft_cap_in_place(tile, cap);
                    }
                    // SAFETY: each (row, panel) is computed once.
                    let y = unsafe { shards.part((first + r) * head.out + panel * PANEL, lanes) };
                    y.copy_from_slice(&tile[..lanes]);
                }
            },
        );
        Ok(())
    }
}
