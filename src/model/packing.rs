//! Packing tokenised examples into one padding-free batch.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::segment::Segment;

/// The residual stream of an example's rows where it enters a layer, computed once on the base
/// model. It stays valid for every adapter that leaves the layers below alone.
#[derive(Clone, Debug)]
pub struct States {
    /// The layer it enters.
    pub layer: usize,
    /// Shape (rows, hidden), no gradient.
    pub hidden: Tensor,
}

/// A prompt and the responses to score after it, as token ids.
#[derive(Clone, Debug)]
pub struct Example {
    /// Prompt tokens, generation prompt included; not empty.
    pub prompt: Vec<u32>,
    /// Response tokens, each ending with the end-of-turn token; not empty.
    pub responses: Vec<Vec<u32>>,
    /// Where forward passes may start instead of at the embedding.
    pub states: Option<States>,
}

/// Equal if they are the same text; `states` only remember work.
impl PartialEq for Example {
    fn eq(&self, other: &Self) -> bool {
        (&self.prompt, &self.responses) == (&other.prompt, &other.responses)
    }
}

impl Eq for Example {}

impl Example {
    /// An example without remembered states.
    pub fn new(prompt: Vec<u32>, responses: Vec<Vec<u32>>) -> Self {
        Self {
            prompt,
            responses,
            states: None,
        }
    }

    /// Rows the example takes in a batch. A response's last token is only predicted, never fed.
    pub fn rows(&self) -> usize {
        self.prompt.len()
            + self
                .responses
                .iter()
                .map(|r| r.len().saturating_sub(1))
                .sum::<usize>()
    }
}

/// Several examples laid out in one batch.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Token ids, one per row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// How the sequences lie.
    pub segments: Arc<[Segment]>,
    /// For every response token, the batch row whose logits predict it.
    pub rows: Vec<u32>,
    /// The response tokens themselves, aligned with `rows`.
    targets: Vec<u32>,
    /// Per example and response: its part of `rows` and `targets`.
    spans: Vec<Vec<Range<usize>>>,
    /// The examples' states, if every one has them at the same layer.
    pub states: Option<Vec<States>>,
}

impl Packed {
    /// Lays examples out one after another; each prompt stands once for all its responses.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut packed = Packed {
            tokens: vec![],
            positions: vec![],
            segments: Arc::from([]),
            rows: vec![],
            targets: vec![],
            spans: vec![],
            states: None,
        };
        let mut segments = Vec::new();
        let mut states = Vec::new();
        for example in examples {
            segments.push(packed.push(example));
            states.extend(example.states.clone());
        }
        let complete =
            states.len() == segments.len() && states.windows(2).all(|w| w[0].layer == w[1].layer);
        packed.states = complete.then_some(states).filter(|s| !s.is_empty());
        packed.segments = segments.into();
        packed
    }

    fn push(&mut self, example: &Example) -> Segment {
        let segment = Segment {
            start: self.tokens.len(),
            prompt: example.prompt.len(),
            branches: example
                .responses
                .iter()
                .map(|r| r.len().saturating_sub(1))
                .collect(),
        };
        self.positions.extend(segment.positions());
        self.tokens.extend_from_slice(&example.prompt);
        let mut spans = Vec::with_capacity(example.responses.len());
        for (i, response) in example.responses.iter().enumerate() {
            let fed = segment.branch(i);
            let first = self.targets.len();
            // Token i is predicted by the row before it: the prompt's last row, then the branch's.
            let last_prompt_row = (segment.start + segment.prompt).saturating_sub(1);
            self.rows.extend(
                std::iter::once(last_prompt_row)
                    .chain(fed.clone())
                    .take(response.len())
                    .map(|r| r as u32),
            );
            self.targets.extend_from_slice(response);
            self.tokens.extend_from_slice(&response[..fed.len()]);
            spans.push(first..self.targets.len());
        }
        self.spans.push(spans);
        segment
    }

    /// Tokens that run through the layers.
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// The part of the response rows that belongs to one response of one example.
    pub fn span(&self, example: usize, response: usize) -> Range<usize> {
        self.spans[example][response].clone()
    }

    /// For each example, the part of the response rows that belongs to each of its responses.
    pub fn spans(&self) -> &[Vec<Range<usize>>] {
        &self.spans
    }

    /// The response tokens, aligned with `rows`.
    pub fn targets(&self) -> &[u32] {
        &self.targets
    }
}

/// Splits examples, in order, into groups of at most `budget` rows (at least one example each), so
/// that memory is bounded up front.
pub fn group_by_rows(examples: &[Example], budget: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (i, example) in examples.iter().enumerate() {
        if i > start && rows + example.rows() > budget {
            groups.push(start..i);
            (start, rows) = (i, 0);
        }
        rows += example.rows();
    }
    if start < examples.len() {
        groups.push(start..examples.len());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_predicted_by_the_row_before_each_token() {
        let example = Example::new(vec![10, 11, 12], vec![vec![20, 21, 2], vec![30, 2]]);
        let other = Example::new(vec![40], vec![vec![2]]);
        let packed = Packed::new([&example, &other]);
        assert_eq!(packed.tokens, [10, 11, 12, 20, 21, 30, 40]);
        assert_eq!(packed.positions, [0, 1, 2, 3, 4, 3, 0]);
        assert_eq!(packed.rows, [2, 3, 4, 2, 5, 6]);
        assert_eq!(packed.targets, [20, 21, 2, 30, 2, 2]);
        assert_eq!(packed.span(0, 1), 3..5);
        assert_eq!(packed.span(1, 0), 5..6);
        assert_eq!(example.rows(), 6);
    }

    #[test]
    fn groups_respect_the_budget_but_never_lose_an_example() {
        let example = |n: usize| Example::new(vec![1; n], vec![vec![2]]);
        let examples: Vec<Example> = [3, 3, 9, 1, 1].into_iter().map(example).collect();
        assert_eq!(group_by_rows(&examples, 6), [0..2, 2..3, 3..5]);
        assert_eq!(group_by_rows(&[], 6), Vec::<Range<usize>>::new());
    }
}
