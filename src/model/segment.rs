//! How sequences lie in a packed batch, and which rows see which.

use std::ops::Range;

/// Consecutive rows of a packed batch that share a prompt.
///
/// The rows are the prompt, then each branch in turn. A branch (a response) sees the prompt and
/// itself, never its siblings, so a preference pair costs its prompt once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row in the batch.
    pub start: usize,
    /// Rows of the shared prompt.
    pub prompt: usize,
    /// Rows of each branch; may be empty.
    pub branches: Vec<usize>,
}

impl Segment {
    /// All rows of the segment.
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.prompt + self.branches.iter().sum::<usize>()
    }

    /// The rows of branch `i`.
    pub fn branch(&self, i: usize) -> Range<usize> {
        let start = self.start + self.prompt + self.branches[..i].iter().sum::<usize>();
        start..start + self.branches[i]
    }

    /// Positions of all rows: every branch continues where the prompt ends.
    pub(crate) fn positions(&self) -> impl Iterator<Item = u32> + '_ {
        let prompt = self.prompt as u32;
        (0..prompt).chain(
            self.branches
                .iter()
                .flat_map(move |&len| prompt..prompt + len as u32),
        )
    }

    /// For each row of the segment, relative to `start`: the rows it sees, the last `window`
    /// tokens of its own past at most.
    pub fn visible(&self, window: Option<usize>) -> Vec<Seen> {
        let window = window.unwrap_or(usize::MAX);
        // The first position that a row at position `p` sees.
        let first = |p: usize| (p + 1).saturating_sub(window);
        let mut seen: Vec<Seen> = (0..self.prompt)
            .map(|p| Seen {
                prompt: first(p)..p + 1,
                own: 0..0,
            })
            .collect();
        for i in 0..self.branches.len() {
            let branch = self.branch(i);
            let begin = branch.start - self.start;
            seen.extend((0..branch.len()).map(|offset| {
                let first = first(self.prompt + offset);
                Seen {
                    prompt: first.min(self.prompt)..self.prompt,
                    own: begin + first.saturating_sub(self.prompt)..begin + offset + 1,
                }
            }));
        }
        seen
    }
}

/// The rows of a segment that one of its rows sees, relative to the segment's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Rows of the prompt.
    pub prompt: Range<usize>,
    /// Rows of its own branch; empty for a row of the prompt.
    pub own: Range<usize>,
}

impl Seen {
    /// All of them, oldest first.
    pub fn rows(&self) -> impl Iterator<Item = usize> + use<> {
        self.prompt.clone().chain(self.own.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_positions_across_prompt_and_branch() {
        let segment = Segment {
            start: 10,
            prompt: 3,
            branches: vec![2, 4],
        };
        let rows = |window| -> Vec<Vec<usize>> {
            let seen = segment.visible(window);
            seen.iter().map(|s| s.rows().collect()).collect()
        };
        let all = rows(None);
        assert_eq!(all[2], [0, 1, 2]);
        assert_eq!(all[4], [0, 1, 2, 3, 4]);
        assert_eq!(all[8], [0, 1, 2, 5, 6, 7, 8]);
        let three = rows(Some(3));
        assert_eq!(three[..3], [vec![0], vec![0, 1], vec![0, 1, 2]]);
        assert_eq!(three[3..5], [vec![1, 2, 3], vec![2, 3, 4]]);
        assert_eq!(three[5..7], [vec![1, 2, 5], vec![2, 5, 6]]);
        assert_eq!(three[7..], [vec![5, 6, 7], vec![6, 7, 8]]);
        assert_eq!(rows(Some(1))[8], [8]);
    }
}
