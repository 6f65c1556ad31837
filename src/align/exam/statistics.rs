//! Shares with confidence intervals, and paired comparisons. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The 97.5 % point of the normal distribution: intervals hold with a confidence of 95 %.
const Z: f64 = 1.959_963_985;

/// A count out of a total, with its Wilson interval at 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Share {
    /// How many did.
    pub count: usize,
    /// Of how many.
    pub of: usize,
    /// The share, 0 to 1; `None` of none.
    pub ratio: Option<f64>,
    /// Lower end of the interval, 0 to 1.
    pub low: f64,
    /// Upper end of the interval, 0 to 1.
    pub high: f64,
}

impl Share {
    /// The share of `count` in `of`; of none, the interval is everything.
    pub fn of(count: usize, of: usize) -> Share {
        if of == 0 {
            return Share {
                count,
                of,
                ratio: None,
                low: 0.0,
                high: 1.0,
            };
        }
        let n = of as f64;
        let p = count as f64 / n;
        let z2 = Z * Z;
        let centre = p + z2 / (2.0 * n);
        let spread = Z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z2 / n;
        Share {
            count,
            of,
            ratio: Some(p),
            low: ((centre - spread) / scale).max(0.0),
            high: ((centre + spread) / scale).min(1.0),
        }
    }

    /// The share of the items that are true.
    pub fn among(items: impl IntoIterator<Item = bool>) -> Share {
        let (mut count, mut of) = (0, 0);
        for item in items {
            count += usize::from(item);
            of += 1;
        }
        Share::of(count, of)
    }
}

/// Outcomes of two sittings of the same questions that differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paired {
    /// Right before and wrong after.
    pub lost: usize,
    /// Wrong before and right after.
    pub gained: usize,
}

impl Paired {
    /// Counts pairs of (before, after).
    pub fn of(pairs: impl IntoIterator<Item = (bool, bool)>) -> Paired {
        let mut paired = Paired::default();
        for (before, after) in pairs {
            paired.lost += usize::from(before && !after);
            paired.gained += usize::from(!before && after);
        }
        paired
    }

    /// Whether it got worse by more than chance: the exact one-sided sign test at 5 %. Fewer than
    /// five losses never are.
    pub fn is_worse(self) -> bool {
        self.chance() < 0.05
    }

    /// The probability of at least this many losses if losses and gains were equally likely.
    fn chance(self) -> f64 {
        let n = self.lost + self.gained;
        // The sum of C(n, k) / 2^n over k ≥ lost, term by term in logarithms.
        let mut term = -(n as f64) * std::f64::consts::LN_2;
        let mut sum = 0.0;
        for k in 0..=n {
            if k >= self.lost {
                sum += term.exp();
            }
            term += ((n - k) as f64 / (k + 1) as f64).ln();
        }
        sum.min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 5e-4
    }

    #[test]
    fn intervals_are_wilsons() {
        for (count, of, low, high) in [
            (0, 10, 0.0, 0.2775),
            (8, 10, 0.4902, 0.9433),
            (40, 40, 0.9124, 1.0),
            (38, 40, 0.8350, 0.9862),
            (0, 3, 0.0, 0.5615),
        ] {
            let share = Share::of(count, of);
            assert!(near(share.low, low) && near(share.high, high), "{share:?}");
        }
        assert_eq!(Share::of(0, 0).ratio, None);
        assert_eq!(Share::among([true, false, true]).count, 2);
    }

    #[test]
    fn losses_count_only_beyond_chance() {
        for (lost, gained, worse) in [
            (0, 0, false),
            (4, 0, false),
            (5, 0, true),
            (6, 1, false),
            (7, 1, true),
            (20, 30, false),
            (60, 30, true),
        ] {
            let paired = Paired { lost, gained };
            assert_eq!(paired.is_worse(), worse, "{paired:?} {}", paired.chance());
        }
        let paired = Paired::of([(true, false), (false, true), (true, true)]);
        assert_eq!(paired, Paired { lost: 1, gained: 1 });
    }
}
