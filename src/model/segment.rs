//! How sequences lie in a packed batch, and which rows see which.

use std::ops::Range;

/// Consecutive rows of a packed batch that begin with the same tokens.
///
/// The rows are a tree of parts: what all sequences begin with, then what each goes on with. A row
/// sees its own part up to itself and the parts that it follows, never a sibling. So a preference
/// pair costs its prompt once, and a batch a system prompt once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row in the batch.
    pub start: usize,
    parts: Vec<Part>,
}

/// A run of rows in which each sees those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// Relative to the segment's start; may be empty.
    rows: Range<usize>,
    /// Position of its first row in its sequence.
    position: usize,
    /// The part that it follows.
    after: Option<usize>,
}

impl Segment {
    /// A segment without rows.
    pub fn empty(start: usize) -> Self {
        let parts = Vec::new();
        Self { start, parts }
    }

    /// One sequence.
    pub fn sequence(start: usize, rows: usize) -> Self {
        Self::branched(start, rows, &[])
    }

    /// A prompt and sequences that each go on from it.
    pub fn branched(start: usize, prompt: usize, branches: &[usize]) -> Self {
        let mut segment = Self::empty(start);
        let prompt = segment.add(prompt, None);
        for rows in branches {
            segment.add(*rows, Some(prompt));
        }
        segment
    }

    /// Adds rows that go on from a part, and returns their part's number.
    ///
    /// # Panics
    /// If there is no part `after`.
    pub(crate) fn add(&mut self, rows: usize, after: Option<usize>) -> usize {
        let start = self.len();
        let position = after.map_or(0, |i| self.parts[i].position + self.parts[i].rows.len());
        self.parts.push(Part {
            rows: start..start + rows,
            position,
            after,
        });
        self.parts.len() - 1
    }

    fn len(&self) -> usize {
        self.parts.last().map_or(0, |p| p.rows.end)
    }

    /// All rows of the segment in the batch.
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.len()
    }

    /// The rows of part `i` in the batch.
    pub(crate) fn part(&self, i: usize) -> Range<usize> {
        let rows = &self.parts[i].rows;
        self.start + rows.start..self.start + rows.end
    }

    /// Positions of all rows.
    pub(crate) fn positions(&self) -> impl Iterator<Item = u32> + '_ {
        let of = |p: &Part| p.position as u32..(p.position + p.rows.len()) as u32;
        self.parts.iter().flat_map(of)
    }

    /// What the rows of each part see: the parts that they follow, oldest first, then their own.
    pub fn pasts(&self) -> impl Iterator<Item = Vec<Run>> + '_ {
        self.parts.iter().map(|part| {
            let mut runs = vec![Run::new(part)];
            let mut after = part.after;
            while let Some(i) = after {
                runs.push(Run::new(&self.parts[i]));
                after = self.parts[i].after;
            }
            runs.reverse();
            runs
        })
    }
}

/// Rows of a segment that follow each other in every sequence that has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Relative to the segment's start.
    pub rows: Range<usize>,
    /// Position of the first of them.
    pub position: usize,
}

impl Run {
    fn new(part: &Part) -> Self {
        Self {
            rows: part.rows.clone(),
            position: part.position,
        }
    }

    /// Which of them a row at `position` sees, the last `window` tokens of its past at most.
    pub fn seen(&self, position: usize, window: Option<usize>) -> Range<usize> {
        let first = (position + 1).saturating_sub(window.unwrap_or(usize::MAX));
        let row = |p: usize| self.rows.start + p.saturating_sub(self.position).min(self.rows.len());
        row(first)..row(position + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows that each row sees.
    fn seen(segment: &Segment, window: Option<usize>) -> Vec<Vec<usize>> {
        let mut all = Vec::new();
        for past in segment.pasts() {
            let own = past.last().unwrap();
            for offset in 0..own.rows.len() {
                let rows = past
                    .iter()
                    .flat_map(|run| run.seen(own.position + offset, window));
                all.push(rows.collect());
            }
        }
        all
    }

    #[test]
    fn a_window_counts_positions_across_prompt_and_branch() {
        let segment = Segment::branched(10, 3, &[2, 4]);
        let all = seen(&segment, None);
        assert_eq!(all[2], [0, 1, 2]);
        assert_eq!(all[4], [0, 1, 2, 3, 4]);
        assert_eq!(all[8], [0, 1, 2, 5, 6, 7, 8]);
        let three = seen(&segment, Some(3));
        assert_eq!(three[..3], [vec![0], vec![0, 1], vec![0, 1, 2]]);
        assert_eq!(three[3..5], [vec![1, 2, 3], vec![2, 3, 4]]);
        assert_eq!(three[5..7], [vec![1, 2, 5], vec![2, 5, 6]]);
        assert_eq!(three[7..], [vec![5, 6, 7], vec![6, 7, 8]]);
        assert_eq!(seen(&segment, Some(1))[8], [8]);
        assert_eq!(segment.rows(), 10..19);
    }

    #[test]
    fn rows_see_what_they_follow_and_no_sibling() {
        let mut segment = Segment::empty(5);
        let prefix = segment.add(2, None);
        let prompt = segment.add(1, Some(prefix));
        segment.add(2, Some(prompt));
        let other = segment.add(0, Some(prefix));
        let answer = segment.add(1, Some(other));
        assert_eq!(segment.part(answer), 10..11);
        assert_eq!(
            seen(&segment, None),
            [
                vec![0],
                vec![0, 1],
                vec![0, 1, 2],
                vec![0, 1, 2, 3],
                vec![0, 1, 2, 3, 4],
                vec![0, 1, 5]
            ]
        );
        assert_eq!(seen(&segment, Some(2))[5], [1, 5]);
        assert_eq!(segment.positions().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 2]);
    }
}
