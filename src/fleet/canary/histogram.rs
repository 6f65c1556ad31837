//! Times, counted in buckets that grow by a fifth.

/// Buckets per doubling.
const PER_DOUBLING: f64 = 4.0;
/// More than a day.
const MOST: usize = 110;

/// How often times of each length were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// Counts a time, in milliseconds.
    pub(crate) fn add(&mut self, ms: u64) {
        let at = bucket(ms);
        if self.counts.len() <= at {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += 1;
        self.total += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The time that this share of what was seen does not exceed, up to a bucket's width.
    pub(crate) fn quantile(&self, share: f64) -> Option<u64> {
        let rank = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        let at = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(upper(at))
    }
}

fn bucket(ms: u64) -> usize {
    let at = ((ms as f64 + 1.0).log2() * PER_DOUBLING).floor() as usize;
    at.min(MOST)
}

/// The longest time in a bucket.
fn upper(at: usize) -> u64 {
    ((at as f64 + 1.0) / PER_DOUBLING).exp2().ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_fifth() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        let mut seen = Histogram::default();
        let mut all: Vec<u64> = (0..1000).map(|n| n * n % 7919).collect();
        all.iter().for_each(|ms| seen.add(*ms));
        all.sort_unstable();
        for share in [0.1, 0.5, 0.9, 0.99] {
            let exact = all[(share * 1000.0) as usize - 1] as f64;
            let found = seen.quantile(share).unwrap() as f64;
            assert!(
                found >= exact && found <= exact * 1.2 + 3.0,
                "{share}: {exact} {found}"
            );
        }
        seen.add(u64::MAX);
        assert_eq!((seen.total(), seen.counts.len()), (1001, MOST + 1));
    }
}
