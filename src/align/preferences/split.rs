//! The split into training pairs and held-out pairs.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::Pair;

/// Indices into the pairs that were split, ascending; every pair is in one of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Indices of the pairs to train on.
    pub train: Vec<usize>,
    /// Indices of the pairs to measure on.
    pub holdout: Vec<usize>,
}

/// Splits pairs by prompt, so that no prompt is used for both training and measuring.
///
/// A pair's own `meta.holdout` decides. If other pairs with the same prompt have one, it applies to
/// the prompt (held out, if they disagree). Otherwise a hash of prompt and `seed` decides,
/// independently of other prompts, so that about `holdout_ratio` (0 to 1) of the prompts is held
/// out.
pub fn split(pairs: &[Pair], holdout_ratio: f64, seed: u64) -> Split {
    let hashes: Vec<[u8; 32]> = pairs.iter().map(Pair::prompt_hash).collect();
    let mut stated: HashMap<[u8; 32], bool> = HashMap::new();
    for (pair, hash) in pairs.iter().zip(&hashes) {
        if let Some(held) = pair.holdout {
            *stated.entry(*hash).or_insert(false) |= held;
        }
    }
    let mut out = Split::default();
    for (index, (pair, hash)) in pairs.iter().zip(&hashes).enumerate() {
        let held = pair
            .holdout
            .or_else(|| stated.get(hash).copied())
            .unwrap_or_else(|| draw(hash, seed) < holdout_ratio);
        if held {
            &mut out.holdout
        } else {
            &mut out.train
        }
        .push(index);
    }
    out
}

/// A number in [0, 1) that depends only on the prompt and the seed.
fn draw(prompt_hash: &[u8; 32], seed: u64) -> f64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(prompt_hash);
    let digest = hasher.finalize();
    // An f64 represents 53 bits exactly.
    let bits = digest
        .iter()
        .take(8)
        .fold(0u64, |acc, byte| acc << 8 | u64::from(*byte));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
