//! Whether a step fits the model and the cache: nothing is launched for one that does not.

use candle_core::{Result, bail};

use super::CudaExecutor;
use crate::gpu::Gpu;
use realign_model::{BLOCK_TOKENS, Outputs, Step};

impl<G: Gpu> CudaExecutor<G> {
    pub(super) fn check(&self, step: &Step, outputs: &Outputs) -> Result<()> {
        let (rows, spec) = (step.tokens.len(), &self.model.spec);
        let room = step.outputs.len() * spec.vocab_size;
        if rows == 0 || step.positions.len() != rows {
            bail!(
                "a step of {rows} rows has {} positions",
                step.positions.len()
            );
        }
        if outputs.draws.len() != step.outputs.len() || outputs.logits.len() < room {
            bail!("a step's outputs and what is asked for them differ in number");
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
        if step.adapters.iter().any(|span| span.rows.end > rows) {
            bail!("an adapter lies on rows beyond the {rows} of its step");
        }
        let mut next = 0;
        for s in step.sequences {
            let holds = s.blocks.len() * BLOCK_TOKENS;
            let in_pool = s.blocks.iter().all(|b| (*b as usize) < self.blocks);
            let in_order = s.start == next && s.rows > 0;
            if !in_order || s.start + s.rows > rows || s.cached + s.rows > holds || !in_pool {
                bail!(
                    "sequence {s:?} does not fit {rows} rows and {} blocks",
                    self.blocks
                );
            }
            next = s.start + s.rows;
        }
        if next != rows {
            bail!(
                "{} of a step's {rows} rows belong to no sequence",
                rows - next
            );
        }
        Ok(())
    }
}
