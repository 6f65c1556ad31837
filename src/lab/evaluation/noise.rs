//! Random errors in triage labels, as a noisy oracle would make them. Pure.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use realign_core::Category;

/// Replaces `share` of the labels, rounded to whole pairs, each by one of the two others at random.
/// The same seed chooses the same pairs; a larger share chooses those and further ones.
pub(crate) fn flip(labels: &[Category], share: f64, seed: u64) -> Vec<Category> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xf11b);
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.shuffle(&mut rng);
    let count = (share.clamp(0.0, 1.0) * labels.len() as f64).round() as usize;
    let mut flipped = labels.to_vec();
    for &index in order.iter().take(count) {
        let others: Vec<Category> = Category::ALL
            .into_iter()
            .filter(|c| *c != labels[index])
            .collect();
        flipped[index] = others[rng.random_range(0..others.len())];
    }
    flipped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<Category> {
        (0..100).map(|i| Category::ALL[i % 3]).collect()
    }

    fn changed(a: &[Category], b: &[Category]) -> Vec<usize> {
        (0..a.len()).filter(|&i| a[i] != b[i]).collect()
    }

    #[test]
    fn exactly_the_share_is_wrong_and_the_seed_decides_which() {
        let labels = labels();
        let ten = flip(&labels, 0.1, 1);
        let twenty = flip(&labels, 0.2, 1);
        assert_eq!(changed(&labels, &ten).len(), 10);
        assert_eq!(changed(&labels, &twenty).len(), 20);
        assert_eq!(ten, flip(&labels, 0.1, 1));
        assert_ne!(ten, flip(&labels, 0.1, 2));
        let nested = changed(&labels, &twenty);
        assert!(changed(&labels, &ten).iter().all(|i| nested.contains(i)));
    }

    #[test]
    fn a_wrong_label_can_be_either_of_the_others() {
        let labels = vec![Category::Invert; 200];
        let flipped = flip(&labels, 1.0, 3);
        let of = |c: Category| flipped.iter().filter(|l| **l == c).count();
        assert_eq!(of(Category::Invert), 0);
        assert!(of(Category::Punish) > 60 && of(Category::Retain) > 60);
    }
}
