//! Steps without keys and values: the cache keeps tokens, and every step computes its sequences from
//! their beginning.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use realign_model::{BLOCK_TOKENS, Executor, LoraWeights, Outputs, PagedSequence, Segment, Step};

use crate::Reference;
use crate::decoder::Batch;
use crate::linear::AdapterRows;

/// Runs steps of the reference.
pub(crate) struct ReferenceExecutor {
    model: Arc<Reference>,
    /// The token of each slot of the cache.
    slots: Vec<u32>,
}

/// Sequences from their beginning, side by side.
#[derive(Default)]
struct Whole {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<Segment>,
    /// Each row of the step as a row of these.
    rows: Vec<u32>,
    adapters: Vec<(std::ops::Range<usize>, Arc<LoraWeights>)>,
}

impl ReferenceExecutor {
    /// An executor with a cache of so many blocks.
    pub(crate) fn new(model: Arc<Reference>, blocks: usize) -> Self {
        Self {
            model,
            slots: vec![0; blocks * BLOCK_TOKENS],
        }
    }

    fn slot(&self, sequence: &PagedSequence, position: usize) -> Result<usize> {
        let block = sequence.blocks.get(position / BLOCK_TOKENS);
        let slot = block.map(|b| *b as usize * BLOCK_TOKENS + position % BLOCK_TOKENS);
        match slot.filter(|slot| *slot < self.slots.len()) {
            Some(slot) => Ok(slot),
            None => bail!("sequence {sequence:?} does not fit its blocks"),
        }
    }

    /// Remembers a step's tokens and lays its sequences out.
    fn whole(&mut self, step: &Step) -> Result<Whole> {
        let mut whole = Whole {
            rows: vec![0; step.tokens.len()],
            ..Whole::default()
        };
        for sequence in step.sequences {
            let (start, end) = (whole.tokens.len(), sequence.cached + sequence.rows);
            for position in 0..end {
                let slot = self.slot(sequence, position)?;
                if position >= sequence.cached {
                    let row = sequence.start + position - sequence.cached;
                    self.slots[slot] = step.tokens[row];
                    whole.rows[row] = (start + position) as u32;
                }
                whole.tokens.push(self.slots[slot]);
                whole.positions.push(position as u32);
            }
            whole.segments.push(Segment::sequence(start, end));
            let span = step
                .adapters
                .iter()
                .find(|a| a.rows.contains(&sequence.start));
            if let Some(span) = span {
                whole
                    .adapters
                    .push((start..start + end, span.adapter.get()?));
            }
        }
        Ok(whole)
    }
}

impl Executor for ReferenceExecutor {
    fn vocab_size(&self) -> usize {
        self.model.decoder.spec.vocab_size
    }

    fn forward(&mut self, step: &Step, outputs: &mut Outputs) -> Result<()> {
        outputs.tokens.clear();
        let whole = self.whole(step)?;
        if step.outputs.is_empty() {
            return Ok(());
        }
        let adapters = whole.adapters();
        let hidden = self.model.hidden(&whole.batch(&adapters))?;
        let rows: Vec<u32> = step
            .outputs
            .iter()
            .map(|r| whole.rows[*r as usize])
            .collect();
        let rows = Tensor::new(rows, self.model.device())?;
        let logits = self.model.logits(&hidden.index_select(&rows, 0)?)?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        outputs.logits[..logits.len()].copy_from_slice(&logits);
        Ok(())
    }

    fn residuals(
        &mut self,
        step: &Step,
        layers: &[usize],
        show: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let deepest = self.model.decoder.layers.len();
        if !layers.is_sorted() || layers.last().is_some_and(|last| *last > deepest) {
            bail!("layers {layers:?} are not an ascending part of 0..={deepest}");
        }
        let step = Step {
            adapters: &[],
            ..*step
        };
        let whole = self.whole(&step)?;
        let rows = Tensor::new(whole.rows.as_slice(), self.model.device())?;
        self.model.residuals(&whole.batch(&[]), layers, |layer, x| {
            let x = x.index_select(&rows, 0)?.flatten_all()?;
            show(layer, &x.to_vec1::<f32>()?);
            Ok(())
        })
    }
}

impl Whole {
    fn adapters(&self) -> Vec<AdapterRows<'_>> {
        let rows = self.adapters.iter();
        rows.map(|(rows, adapter)| AdapterRows {
            rows: rows.clone(),
            adapter,
        })
        .collect()
    }

    fn batch<'a>(&'a self, adapters: &'a [AdapterRows<'a>]) -> Batch<'a> {
        Batch {
            tokens: &self.tokens,
            positions: &self.positions,
            adapters,
            segments: self.segments.as_slice().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use realign_model::ModelSource;

    use super::*;

    /// Steps of a sequence in chunks give the logits of the whole sequence.
    #[test]
    fn steps_give_what_a_whole_pass_gives() -> Result<()> {
        let path = realign_model::test_support::path("tests/golden/families/gemma2");
        let files = ModelSource::parse(&path)
            .and_then(ModelSource::fetch)
            .unwrap();
        let model = Arc::new(crate::load(&files).unwrap());
        let tokens: Vec<u32> = (0..21).map(|i| 3 + i * 7 % 50).collect();
        let positions: Vec<u32> = (0..21).collect();
        let whole = model.hidden(&Batch {
            tokens: &tokens,
            positions: &positions,
            adapters: &[],
            segments: Arc::from([Segment::sequence(0, tokens.len())]),
        })?;
        let whole = model.logits(&whole)?.to_vec2::<f32>()?;
        let mut executor = ReferenceExecutor::new(model, 3);
        let mut cached = 0;
        for rows in [7, 1, 12, 1] {
            let sequences = [PagedSequence {
                start: 0,
                rows,
                cached,
                blocks: Arc::from([2u32, 0]),
            }];
            let step = Step {
                tokens: &tokens[cached..cached + rows],
                positions: &positions[cached..cached + rows],
                sequences: &sequences,
                adapters: &[],
                outputs: &[rows as u32 - 1],
            };
            cached += rows;
            let expected = &whole[cached - 1];
            let mut logits = vec![0f32; expected.len()];
            let mut outputs = Outputs {
                draws: &[None],
                logits: &mut logits,
                tokens: &mut Vec::new(),
            };
            executor.forward(&step, &mut outputs)?;
            for (got, expected) in logits.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-4, "{got} and {expected}");
            }
        }
        Ok(())
    }
}
