//! The gold batch: preference pairs that follow the new policy.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::train::examples::TokenPair;
use realign_core::Category;
use realign_model::packing::Example;

/// A preference pair that follows the new policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoldPair {
    /// Index of the pair it was made from, which must not be scored against it.
    pub(crate) source: usize,
    /// The prompt with its (preferred, dispreferred) responses.
    pub(crate) example: Example,
}

/// The gold batch in two folds. A pair in one fold is scored only against the other fold: scored
/// against itself, it would be rated about twice too high.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoldBatch {
    /// Two folds; their sizes differ by at most 1.
    pub(crate) folds: [Vec<GoldPair>; 2],
}

impl GoldBatch {
    /// The fold that contains the pair with this index, if any.
    pub(crate) fn fold_of(&self, pair: usize) -> Option<usize> {
        self.folds
            .iter()
            .position(|fold| fold.iter().any(|g| g.source == pair))
    }

    /// Number of pairs in both folds.
    pub(crate) fn len(&self) -> usize {
        self.folds.iter().map(Vec::len).sum()
    }

    /// Whether both folds are empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Draws `size` gold pairs: a third from RETAIN as they are, a third from INVERT with the
/// preference reversed, the rest from PUNISH with another pair's compliant response as the
/// preferred one. If a category is too small, the others fill its share.
pub fn gold_batch(pairs: &[TokenPair], size: usize, seed: u64) -> GoldBatch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x601d);
    let mut queues = [Category::Retain, Category::Invert, Category::Punish].map(|category| {
        let mut indices: Vec<usize> = (0..pairs.len())
            .filter(|&i| pairs[i].category == category)
            .collect();
        indices.shuffle(&mut rng);
        indices
    });
    let shares = [size / 3, size / 3, size - 2 * (size / 3)];
    let mut drawn: Vec<usize> = Vec::with_capacity(size);
    for (queue, share) in queues.iter_mut().zip(shares) {
        drawn.extend(queue.drain(..share.min(queue.len())));
    }
    for queue in &mut queues {
        let missing = size - drawn.len();
        drawn.extend(queue.drain(..missing.min(queue.len())));
    }
    let mut batch = GoldBatch::default();
    for source in drawn {
        let Some(example) = gold_example(pairs, source) else {
            continue;
        };
        let fold = usize::from(batch.folds[0].len() > batch.folds[1].len());
        batch.folds[fold].push(GoldPair { source, example });
    }
    batch
}

fn gold_example(pairs: &[TokenPair], index: usize) -> Option<Example> {
    let pair = &pairs[index];
    if pair.category != Category::Punish {
        return Some(pair.preference());
    }
    let compliant = nearest_compliant(pairs, &pair.prompt)?;
    Some(Example::new(
        pair.prompt.clone(),
        vec![compliant.to_vec(), pair.chosen.clone()],
    ))
}

/// The compliant response to the most similar prompt (by shared tokens): an answer to an unrelated
/// question would be too easy a contrast.
fn nearest_compliant<'a>(pairs: &'a [TokenPair], prompt: &[u32]) -> Option<&'a [u32]> {
    let wanted: BTreeSet<u32> = prompt.iter().copied().collect();
    let similarity = |other: &TokenPair| {
        let tokens: BTreeSet<u32> = other.prompt.iter().copied().collect();
        let shared = wanted.intersection(&tokens).count() as f64;
        shared / (wanted.len() + tokens.len()) as f64
    };
    let mut best: Option<(f64, &TokenPair)> = None;
    for candidate in pairs.iter().filter(|p| p.category != Category::Punish) {
        let value = similarity(candidate);
        if best.is_none_or(|(top, _)| value > top) {
            best = Some((value, candidate));
        }
    }
    best.map(|(_, pair)| match pair.category {
        Category::Invert => pair.rejected.as_slice(),
        Category::Retain | Category::Punish => pair.chosen.as_slice(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(category: Category, prompt: u32) -> TokenPair {
        TokenPair {
            id: format!("{category:?}{prompt}"),
            category,
            prompt: vec![prompt, prompt / 10],
            chosen: vec![100 + prompt, 2],
            rejected: vec![200 + prompt, 2],
        }
    }

    fn pairs() -> Vec<TokenPair> {
        let of = |category, from: u32| (from..from + 10).map(move |i| pair(category, i));
        of(Category::Retain, 10)
            .chain(of(Category::Invert, 20))
            .chain(of(Category::Punish, 30))
            .collect()
    }

    #[test]
    fn a_third_comes_from_each_category_and_the_seed_decides() {
        let pairs = pairs();
        let batch = gold_batch(&pairs, 12, 1);
        let of = |category| {
            let sources = batch.folds.iter().flatten();
            sources
                .filter(|g| pairs[g.source].category == category)
                .count()
        };
        assert_eq!(
            [
                of(Category::Retain),
                of(Category::Invert),
                of(Category::Punish)
            ],
            [4, 4, 4]
        );
        assert_eq!([batch.folds[0].len(), batch.folds[1].len()], [6, 6]);
        assert_eq!(batch, gold_batch(&pairs, 12, 1));
        assert_ne!(batch, gold_batch(&pairs, 12, 2));
    }

    #[test]
    fn missing_categories_leave_their_share() {
        let pairs: Vec<TokenPair> = pairs()
            .into_iter()
            .filter(|p| p.category != Category::Punish)
            .collect();
        assert_eq!(gold_batch(&pairs, 12, 1).len(), 12);
        assert_eq!(gold_batch(&pairs, 100, 1).len(), 20);
        assert!(
            gold_batch(&[pair(Category::Punish, 3)], 12, 1).is_empty(),
            "nothing compliant to prefer"
        );
    }

    #[test]
    fn punished_prompts_get_the_nearest_compliant_response() {
        let near = TokenPair {
            prompt: vec![30, 31, 3],
            ..pair(Category::Invert, 29)
        };
        let pairs = [pair(Category::Retain, 10), near, pair(Category::Punish, 30)];
        let gold = gold_batch(&pairs, 3, 0);
        let punished = gold
            .folds
            .iter()
            .flatten()
            .find(|g| g.source == 2)
            .expect("drawn");
        assert_eq!(punished.example.responses, [vec![229, 2], vec![130, 2]]);
    }
}
