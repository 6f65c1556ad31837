//! Training pairs and held-out pairs.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::Pair;

/// Indices into the pairs that were split, each list ascending; together they are all pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// To train on.
    pub train: Vec<usize>,
    /// To measure on.
    pub holdout: Vec<usize>,
}

/// Splits pairs by prompt, so that no prompt is trained on and measured.
///
/// A pair's own `meta.holdout` wins. Where other pairs with the same prompt state one, it holds
/// for the prompt (held out, if they disagree). Otherwise a hash of prompt and `seed` decides, so
/// that about `holdout_ratio` (0 to 1) of the prompts is held out, whatever other pairs there are.
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

/// A number in [0, 1) that depends on the prompt and the seed alone.
fn draw(prompt_hash: &[u8; 32], seed: u64) -> f64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(prompt_hash);
    let digest = hasher.finalize();
    // 53 bits are what an f64 holds exactly.
    let bits = digest
        .iter()
        .take(8)
        .fold(0u64, |acc, byte| acc << 8 | u64::from(*byte));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
