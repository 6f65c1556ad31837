//! How a step's attention is cut into pieces of work.
//!
//! A run of a prompt's rows is one piece for each KV head. A single row's context is cut into
//! segments, which threads share; and rows whose tables name the same blocks for a segment, as
//! prompts that begin alike do, read it together. None of this changes a result.

use std::collections::HashMap;
use std::ops::Range;

use super::segment::SEGMENT;
use crate::executor::Run;
use realign_model::{AttentionShape, BLOCK_TOKENS, PagedSequence};

/// Queries of a segment's piece at most, so that many threads have something to do.
const QUERIES: usize = 48;

/// Pieces of work of a layer, and what is put together afterwards.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Runs, by number, that are attended to as a whole.
    pub(crate) whole: Vec<usize>,
    /// Segments that some single rows see.
    pub(crate) parts: Vec<Part>,
    /// Rows whose segments are parts.
    pub(crate) merges: Vec<Merge>,
    /// States of one query head that the parts leave.
    pub(crate) states: usize,
}

/// A segment, and the rows that read it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Which segment of the context.
    pub(crate) segment: usize,
    /// The rows, by their place in [`Plan::merges`].
    pub(crate) readers: Vec<usize>,
}

/// A row whose context was cut.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Merge {
    /// Number of the run that is this row.
    pub(crate) run: usize,
    /// The segments that it sees.
    pub(crate) segments: Range<usize>,
    /// States of other rows that lie before this one's.
    pub(crate) first: usize,
}

impl Plan {
    /// The pieces for runs of sequences, where `group` query heads share a KV head.
    pub(crate) fn new(
        runs: &[Run],
        sequences: &[PagedSequence],
        shape: &AttentionShape,
        group: usize,
    ) -> Self {
        let mut plan = Self::default();
        for (index, run) in runs.iter().enumerate() {
            let end = run.position + run.rows;
            let first = shape.first_visible(run.position) / SEGMENT;
            let segments = first..end.div_ceil(SEGMENT);
            if run.rows > 1 || segments.len() == 1 {
                plan.whole.push(index);
                continue;
            }
            let first = plan.states;
            plan.states += segments.len();
            plan.merges.push(Merge {
                run: index,
                segments,
                first,
            });
        }
        plan.share(runs, sequences, (QUERIES / group).max(1));
        plan
    }

    /// Makes the parts; at most `most` rows share one.
    fn share(&mut self, runs: &[Run], sequences: &[PagedSequence], most: usize) {
        let mut open: HashMap<(usize, &[u32]), usize> = HashMap::new();
        for (reader, merge) in self.merges.iter().enumerate() {
            let run = &runs[merge.run];
            let end = run.position + run.rows;
            for segment in merge.segments.clone() {
                let (from, to) = (segment * SEGMENT, end.min((segment + 1) * SEGMENT));
                let blocks = from / BLOCK_TOKENS..to.div_ceil(BLOCK_TOKENS);
                let key = (segment, &sequences[run.sequence].blocks[blocks]);
                match open.get(&key).copied() {
                    Some(part) if self.parts[part].readers.len() < most => {
                        self.parts[part].readers.push(reader);
                    }
                    _ => {
                        open.insert(key, self.parts.len());
                        self.parts.push(Part {
                            segment,
                            readers: vec![reader],
                        });
                    }
                }
            }
        }
    }
}

/// The plans of a step: one for each window that its layers have.
#[derive(Debug, Default)]
pub(crate) struct Plans(Vec<(Option<usize>, Plan)>);

impl Plans {
    /// Forgets the plans of another step.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The plan for layers of this shape.
    pub(crate) fn of(
        &mut self,
        (runs, sequences): (&[Run], &[PagedSequence]),
        shape: &AttentionShape,
        group: usize,
    ) -> &Plan {
        let known = self
            .0
            .iter()
            .position(|(window, _)| *window == shape.window);
        let index = known.unwrap_or_else(|| {
            let plan = Plan::new(runs, sequences, shape, group);
            self.0.push((shape.window, plan));
            self.0.len() - 1
        });
        &self.0[index].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn rows(tables: &[(&[u32], usize)]) -> (Vec<Run>, Vec<PagedSequence>) {
        let sequences = tables
            .iter()
            .enumerate()
            .map(|(start, (blocks, cached))| PagedSequence {
                start,
                rows: 1,
                cached: *cached,
                blocks: Arc::from(*blocks),
            });
        let runs = tables.iter().enumerate().map(|(row, (_, position))| Run {
            sequence: row,
            row,
            rows: 1,
            position: *position,
        });
        (runs.collect(), sequences.collect())
    }

    #[test]
    fn rows_that_share_blocks_read_them_together_and_each_its_own() {
        let shared: Vec<u32> = (0..40).collect();
        let with = |own: u32| -> Vec<u32> { shared.iter().copied().chain(own..own + 4).collect() };
        let (a, b, c) = (with(100), with(200), (300..344).collect::<Vec<u32>>());
        let (runs, sequences) = rows(&[(&a, 650), (&b, 660), (&c, 650), (&c, 250)]);
        let shape = AttentionShape::full(64);
        let plan = Plan::new(&runs, &sequences, &shape, 3);
        assert_eq!(plan.whole, [3], "one segment");
        assert_eq!(plan.states, 9);
        let readers = |part: &Part| (part.segment, part.readers.clone());
        let parts: Vec<_> = plan.parts.iter().map(readers).collect();
        let expected: [(usize, &[usize]); 7] = [
            (0, &[0, 1]),
            (1, &[0, 1]),
            (2, &[0]),
            (2, &[1]),
            (0, &[2]),
            (1, &[2]),
            (2, &[2]),
        ];
        assert_eq!(parts, expected.map(|(s, r)| (s, r.to_vec())));
        let narrow = AttentionShape {
            window: Some(20),
            ..shape
        };
        let plan = Plan::new(&runs, &sequences, &narrow, 3);
        assert_eq!(plan.whole, [0, 1, 2, 3], "a window inside one segment");
        let few = Plan::new(&runs, &sequences, &shape, 48);
        assert!(few.parts.iter().all(|p| p.readers.len() == 1));
    }
}
