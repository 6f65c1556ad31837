//! Query rows that are scored together, and the keys that they see.

use std::ops::Range;

use realign_model::{Run, Segment};

/// Rows of a block.
const BLOCK: usize = 32;

/// Query rows of one part of a segment, and the keys that any of them sees.
pub(super) struct Block {
    /// Batch rows.
    pub(super) rows: Range<usize>,
    /// The keys, oldest first.
    pub(super) keys: Vec<Keys>,
    /// For every query row, the columns of the block's scores that it sees: a range for each of
    /// `keys`.
    seen: Vec<Range<usize>>,
}

/// Keys that lie side by side.
pub(super) struct Keys {
    /// Their first column in the block's scores.
    pub(super) column: usize,
    /// Batch rows.
    pub(super) rows: Range<usize>,
}

impl Block {
    /// Columns of its scores.
    pub(super) fn width(&self) -> usize {
        self.keys.last().map_or(0, |k| k.column + k.rows.len())
    }

    /// The columns that each query row sees.
    pub(super) fn seen(&self) -> std::slice::ChunksExact<'_, Range<usize>> {
        self.seen.chunks_exact(self.keys.len())
    }
}

/// A segment's query rows, in its order.
pub(super) fn blocks(segment: &Segment, window: Option<usize>) -> Vec<Block> {
    let mut all = Vec::new();
    for past in segment.pasts() {
        let Some(own) = past.last() else { continue };
        for rows in own.rows.clone().step_by(BLOCK) {
            let rows = rows..own.rows.end.min(rows + BLOCK);
            all.push(block(segment.start, &past, rows, window));
        }
    }
    all
}

/// The block of `rows`, which are of the last of the runs that they see.
fn block(start: usize, past: &[Run], rows: Range<usize>, window: Option<usize>) -> Block {
    let own = &past[past.len() - 1];
    let position = |row: usize| own.position + row - own.rows.start;
    let positions = position(rows.start)..position(rows.end);
    let (mut keys, mut runs, mut column) = (Vec::new(), Vec::new(), 0);
    for run in past {
        let seen = run.seen(positions.start, window).start..run.seen(positions.end - 1, window).end;
        if !seen.is_empty() {
            runs.push((run, seen.start, column));
            keys.push(Keys {
                column,
                rows: start + seen.start..start + seen.end,
            });
            column += seen.len();
        }
    }
    let seen = positions
        .flat_map(|position| {
            runs.iter().map(move |&(run, first, column)| {
                let rows = run.seen(position, window);
                rows.start - first + column..rows.end - first + column
            })
        })
        .collect();
    Block {
        rows: start + rows.start..start + rows.end,
        keys,
        seen,
    }
}
