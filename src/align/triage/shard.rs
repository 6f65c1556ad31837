//! Which of several machines judges a pair.

use std::fmt;
use std::str::FromStr;

use crate::preferences::PairId;

/// The most shards.
const MOST: u32 = 100_000;

/// One of `count` parts of the pairs. A pair's part depends on its content alone, so every machine that reads the same
/// pairs agrees on it, whatever files they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shard {
    index: u32,
    count: u32,
}

impl Shard {
    /// Which of the parts this is, from 0.
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many parts there are, at least 1.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Whether a pair is in this part. It is in exactly one.
    pub fn has(self, pair: &PairId) -> bool {
        // Ids are SHA-256 as hex digits; one that is none is in the first part.
        let first = pair
            .0
            .get(..16)
            .map(|digits| u64::from_str_radix(digits, 16));
        let first = first.and_then(Result::ok).unwrap_or(0);
        first % u64::from(self.count) == u64::from(self.index)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is no shard: give INDEX/COUNT, as 0/4 to 3/4 (at most {MOST} shards)")
        };
        let (index, count) = text.split_once('/').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        let (index, count) = (number(index)?, number(count)?);
        if count == 0 || count > MOST || index >= count {
            return Err(wrong());
        }
        Ok(Self { index, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_in_exactly_one_shard_and_shards_are_alike_in_size() {
        use sha2::{Digest, Sha256};
        let ids = (0..4000).map(|n: u32| PairId(hex::encode(Sha256::digest(n.to_le_bytes()))));
        let ids: Vec<PairId> = ids.collect();
        for count in [1u32, 2, 3, 7, 16, 64] {
            let shards = (0..count).map(|index| Shard { index, count });
            let sizes = shards
                .clone()
                .map(|shard| ids.iter().filter(|id| shard.has(id)).count());
            let sizes: Vec<usize> = sizes.collect();
            assert_eq!(sizes.iter().sum::<usize>(), ids.len());
            for id in &ids {
                assert_eq!(shards.clone().filter(|shard| shard.has(id)).count(), 1);
            }
            let even = ids.len() / count as usize;
            assert!(
                sizes
                    .iter()
                    .all(|size| *size > even / 2 && *size < even * 2),
                "{sizes:?}"
            );
        }
    }

    #[test]
    fn the_same_pair_is_in_the_same_shard_in_every_release() {
        let id = PairId("00ff".repeat(16));
        let found = (0u32..7).find(|index| {
            let shard: Shard = format!("{index}/7").parse().unwrap();
            shard.has(&id)
        });
        assert_eq!(found, Some(3));
    }

    #[test]
    fn what_is_no_shard_is_refused() {
        for text in ["", "1", "4/4", "0/0", "-1/4", "a/b", "0/100001", "1/2/3"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        assert_eq!("3/4".parse::<Shard>().unwrap().to_string(), "3/4");
    }
}
