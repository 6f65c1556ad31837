//! Packing tokenised examples into one padding-free batch.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::segment::Segment;
use share::{beginning, groups};

pub use share::group_by_rows;

mod share;

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
    /// Per example: where its rows lie, what it shares with others first.
    lies: Vec<[Range<usize>; 2]>,
    /// The batch's rows in their order: of which example, and which of its rows.
    pieces: Vec<(usize, Range<usize>)>,
}

impl Packed {
    /// Lays examples out one after another. A prompt stands once for all its responses, and a turn
    /// that prompts begin with once for all of them.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let examples: Vec<&Example> = examples.into_iter().collect();
        let mut packed = Packed {
            tokens: vec![],
            positions: vec![],
            segments: Arc::from([]),
            rows: vec![],
            targets: vec![],
            spans: vec![],
            states: states(&examples),
            lies: vec![[0..0, 0..0]; examples.len()],
            pieces: vec![],
        };
        let mut places = vec![Place::default(); examples.len()];
        let lay = |group: Vec<usize>| packed.lay(&group, &examples, &mut places);
        packed.segments = groups(&examples).into_iter().map(lay).collect();
        for (example, place) in examples.iter().zip(&places) {
            packed.respond(example, place);
        }
        packed
    }

    /// Adds the rows of examples that begin alike.
    fn lay(&mut self, group: &[usize], examples: &[&Example], places: &mut [Place]) -> Segment {
        let mut segment = Segment::empty(self.tokens.len());
        let shared = beginning(examples[group[0]]);
        let prefix = (!shared.is_empty()).then(|| segment.add(shared.len(), None));
        self.tokens.extend(shared);
        self.pieces.push((group[0], 0..shared.len()));
        for &i in group {
            let example = examples[i];
            let begin = self.tokens.len();
            let own = &example.prompt[shared.len()..];
            let prompt = segment.add(own.len(), prefix);
            self.tokens.extend(own);
            places[i].last = segment.part(prompt).end.saturating_sub(1);
            for response in &example.responses {
                let fed = response.len().saturating_sub(1);
                let branch = segment.add(fed, Some(prompt));
                self.tokens.extend(&response[..fed]);
                places[i].branches.push(segment.part(branch));
            }
            let shared_rows = prefix.map_or(0..0, |prefix| segment.part(prefix));
            self.lies[i] = [shared_rows, begin..self.tokens.len()];
            self.pieces.push((i, shared.len()..example.rows()));
        }
        self.positions.extend(segment.positions());
        segment
    }

    /// Adds the tokens that an example's rows predict. Token i is predicted by the row before it:
    /// the prompt's last row, then the branch's.
    fn respond(&mut self, example: &Example, place: &Place) {
        let mut spans = Vec::with_capacity(example.responses.len());
        for (response, branch) in example.responses.iter().zip(&place.branches) {
            let first = self.targets.len();
            let rows = std::iter::once(place.last).chain(branch.clone());
            self.rows
                .extend(rows.take(response.len()).map(|r| r as u32));
            self.targets.extend_from_slice(response);
            spans.push(first..self.targets.len());
        }
        self.spans.push(spans);
    }

    /// Where an example's rows lie in the batch, in the order that they have by themselves.
    pub fn lies(&self, example: usize) -> &[Range<usize>; 2] {
        &self.lies[example]
    }

    /// The batch's rows in their order: of which example, and which of its rows.
    pub fn pieces(&self) -> &[(usize, Range<usize>)] {
        &self.pieces
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

/// Where the rows lie that predict an example's responses.
#[derive(Clone, Debug, Default)]
struct Place {
    /// The prompt's last row.
    last: usize,
    /// Rows of each response.
    branches: Vec<Range<usize>>,
}

/// The examples' states, if every one has them at the same layer.
fn states(examples: &[&Example]) -> Option<Vec<States>> {
    let states: Option<Vec<States>> = examples.iter().map(|e| e.states.clone()).collect();
    states.filter(|s| !s.is_empty() && s.windows(2).all(|w| w[0].layer == w[1].layer))
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
    fn what_prompts_begin_with_stands_once() {
        // Turns begin with 1; one prompt is cut off before its question.
        let prompt = |system: u32, own: &[u32]| {
            let turn = [1].into_iter().chain((0..8).map(|i| 100 * system + i));
            turn.chain(own.iter().copied()).collect::<Vec<u32>>()
        };
        let examples = [
            Example::new(prompt(3, &[1, 11]), vec![vec![20, 2], vec![30, 31, 2]]),
            Example::new(prompt(4, &[1, 12]), vec![vec![21, 2]]),
            Example::new(prompt(3, &[1]), vec![vec![22, 2]]),
            Example::new(prompt(3, &[1, 11]), vec![vec![23, 2]]),
        ];
        let packed = Packed::new(&examples);
        // The first, third and fourth begin alike; the second is alone.
        assert_eq!(packed.segments.len(), 2);
        assert_eq!(packed.token_count(), 19 + 12);
        assert_eq!(packed.tokens[9..19], [1, 11, 20, 30, 31, 1, 22, 1, 11, 23]);
        assert_eq!(
            packed.positions[9..19],
            [9, 10, 11, 11, 12, 9, 10, 9, 10, 11]
        );
        // In the order of the examples, whatever the order of the rows.
        assert_eq!(packed.targets, [20, 2, 30, 31, 2, 21, 2, 22, 2, 23, 2]);
        assert_eq!(packed.rows, [10, 11, 10, 12, 13, 29, 30, 14, 15, 17, 18]);
        assert_eq!(packed.lies(3), &[0..9, 16..19]);
        // The pieces name every row of the batch once, and an example's rows lie where they say.
        let mut at = 0;
        for (example, rows) in packed.pieces() {
            let [shared, own] = packed.lies(*example);
            let lies: Vec<usize> = shared.clone().chain(own.clone()).collect();
            assert_eq!(lies.len(), examples[*example].rows());
            for row in rows.clone() {
                assert_eq!(lies[row], at);
                at += 1;
            }
        }
        assert_eq!(at, packed.token_count());
    }
}
