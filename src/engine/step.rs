//! One forward pass over a scheduled batch.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::scheduler::{Scheduler, Share};
use super::sequence::Sequence;
use crate::model::{AdapterRows, Attention, Batch, Model, Ops, PagedKv, PagedSequence};

/// The rows of a step, sequences of one generation side by side.
struct Layout {
    shares: Vec<Share>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequences: Arc<[PagedSequence]>,
}

impl Layout {
    fn new(running: &[Sequence], shares: &[Share]) -> Self {
        let mut shares = shares.to_vec();
        shares.sort_by(|a, b| {
            running[a.index]
                .generation
                .id
                .cmp(&running[b.index].generation.id)
                .then(a.index.cmp(&b.index))
        });
        let (mut tokens, mut positions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for share in &shares {
            let s = &running[share.index];
            let range = s.computed..s.computed + share.tokens;
            sequences.push(PagedSequence {
                start: tokens.len(),
                rows: share.tokens,
                cached: s.computed,
                blocks: s.blocks.clone().into(),
            });
            tokens.extend_from_slice(&s.tokens[range.clone()]);
            positions.extend(range.map(|p| p as u32));
        }
        Self {
            shares,
            tokens,
            positions,
            sequences: sequences.into(),
        }
    }

    /// Row ranges by adapter, ascending; base rows appear in none.
    fn adapters<'a>(&self, running: &'a [Sequence]) -> Vec<AdapterRows<'a>> {
        let mut ranges: Vec<AdapterRows<'a>> = Vec::new();
        for (share, rows) in self.shares.iter().zip(self.sequences.iter()) {
            let Some(adapter) = running[share.index].generation.adapter.as_deref() else {
                continue;
            };
            let rows = rows.start..rows.start + rows.rows;
            match ranges.last_mut() {
                Some(last)
                    if std::ptr::eq(last.adapter, adapter) && last.rows.end == rows.start =>
                {
                    last.rows.end = rows.end
                }
                _ => ranges.push(AdapterRows { rows, adapter }),
            }
        }
        ranges
    }
}

/// Runs the shares, marks their tokens as computed, and returns (index into `running`, logits) of
/// every sequence whose last token was among them.
pub fn forward(
    model: &Model,
    ops: Ops,
    kv: &PagedKv,
    scheduler: &mut Scheduler,
    shares: &[Share],
) -> Result<Vec<(usize, Vec<f32>)>> {
    let running = &scheduler.running;
    let layout = Layout::new(running, shares);
    let batch = Batch {
        tokens: &layout.tokens,
        positions: &layout.positions,
        adapters: &layout.adapters(running),
        attention: Attention::Paged {
            kv,
            sequences: layout.sequences.clone(),
        },
        ops,
    };
    let hidden = model.hidden(&batch)?;
    let complete = |share: &Share| running[share.index].pending() == share.tokens;
    let ready = layout
        .shares
        .iter()
        .zip(layout.sequences.iter())
        .filter(|(share, _)| complete(share));
    let (indices, rows): (Vec<usize>, Vec<u32>) = ready
        .map(|(share, s)| (share.index, (s.start + s.rows - 1) as u32))
        .unzip();
    for share in shares {
        scheduler.running[share.index].computed += share.tokens;
    }
    if indices.is_empty() {
        return Ok(Vec::new());
    }
    let rows = Tensor::new(rows.as_slice(), &model.device)?;
    let logits = model.logits(ops, &hidden.index_select(&rows, 0)?)?;
    Ok(indices.into_iter().zip(logits.to_vec2::<f32>()?).collect())
}
