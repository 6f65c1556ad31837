//! Softmax weights of a whole vocabulary, in blocks of tokens.

use super::Candidate;
use realign_model::vector::{max, softmax_weights};

/// Tokens of a block.
pub(super) const BLOCK: usize = 256;
/// Keeps a bound below what rounding moves.
const SLACK: f64 = 0.999;

/// Weights of all tokens, 1 for the most probable one.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// exp((logit − best) / temperature); 0 where it is negligible.
    values: Vec<f32>,
    /// The sum of each block.
    sums: Vec<f32>,
}

impl Weights {
    /// Weights of a row of logits, the largest of which is `best`.
    pub(super) fn fill(&mut self, logits: &[f32], best: f32, temperature: f32) {
        self.values.resize(logits.len(), 0.0);
        self.sums.clear();
        let blocks = logits.chunks(BLOCK).zip(self.values.chunks_mut(BLOCK));
        let sums = blocks.map(|(logits, into)| softmax_weights(logits, best, temperature, into));
        self.sums.extend(sums);
    }

    /// Tokens of the vocabulary.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// In f64, so that the rounding of many small weights does not add up.
    pub(super) fn total(&self) -> f64 {
        self.sums.iter().copied().map(f64::from).sum()
    }

    /// Tokens that have a weight.
    pub(super) fn count(&self) -> usize {
        self.values.iter().filter(|w| **w > 0.0).count()
    }

    /// The token at which the running sum reaches `rest`; `None` if no token has a weight.
    pub(super) fn at(&self, mut rest: f64) -> Option<u32> {
        for (block, sum) in self.sums.iter().enumerate() {
            let sum = f64::from(*sum);
            if rest > sum {
                rest -= sum;
                continue;
            }
            for (id, weight) in self.block(block).filter(|(_, weight)| *weight > 0.0) {
                rest -= f64::from(weight);
                if rest <= 0.0 {
                    return Some(id);
                }
            }
        }
        // Rounding can leave a sliver of `rest`: the last token owns it.
        let last = self.values.iter().rposition(|weight| *weight > 0.0);
        last.map(|id| id as u32)
    }

    /// A weight that `count` tokens reach, as high as blocks tell; 0 if there are fewer blocks.
    pub(super) fn reached_by(&self, count: usize) -> f32 {
        let mut largest: Vec<f32> = self.values.chunks(BLOCK).map(max).collect();
        if !(1..=largest.len()).contains(&count) {
            return 0.0;
        }
        // Each of the blocks from there on has a token of its own.
        let at = largest.len() - count;
        *largest.select_nth_unstable_by(at, f32::total_cmp).1
    }

    /// A weight below which all tokens together weigh less than `mass`.
    pub(super) fn outside(&self, mass: f64) -> f32 {
        (SLACK * mass / self.len().max(1) as f64) as f32
    }

    /// The tokens of at least this weight, by id.
    pub(super) fn collect(&self, least: f32, into: &mut Vec<Candidate>) {
        into.clear();
        for (block, sum) in self.sums.iter().enumerate() {
            // No rounded sum of weights is below one of them.
            if *sum >= least {
                let weights = self.block(block);
                into.extend(weights.filter(|(_, weight)| *weight >= least && *weight > 0.0));
            }
        }
    }

    fn block(&self, index: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let first = index * BLOCK;
        let end = self.values.len().min(first + BLOCK);
        (first as u32..).zip(self.values[first..end].iter().copied())
    }
}
