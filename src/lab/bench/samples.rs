//! Repeated measurements of one quantity.

/// Measurements in the order in which they were taken.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[serde(transparent)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The value below which `share` (0 to 1) of the measurements lie, by nearest rank; 0 if there
    /// are none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1).min(last))
            .copied()
            .unwrap_or(0.0)
    }

    /// The middle measurement, the mean of the two middle ones of an even number.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let n = sorted.len();
        match n {
            0 => 0.0,
            _ if n % 2 == 1 => sorted[n / 2],
            _ => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    /// The smallest measurement; 0 if there are none.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().reduce(f64::min).unwrap_or(0.0)
    }

    /// The largest measurement; 0 if there are none.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().reduce(f64::max).unwrap_or(0.0)
    }

    /// Each measurement divided by the one of `other` from the same repetition.
    pub(crate) fn ratios(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measurements_and_the_median_is_in_the_middle() {
        let samples = Samples(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(samples.median(), 2.5);
        for (share, expect) in [(0.0, 1.0), (0.25, 1.0), (0.5, 2.0), (0.99, 4.0), (1.0, 4.0)] {
            assert_eq!(samples.quantile(share), expect, "{share}");
        }
        assert_eq!((samples.min(), samples.max()), (1.0, 4.0));
        let none = Samples::default();
        assert_eq!(
            (none.median(), none.quantile(0.5), none.max()),
            (0.0, 0.0, 0.0)
        );
    }

    #[test]
    fn ratios_pair_what_was_measured_together() {
        let a = Samples(vec![2.0, 6.0]);
        assert_eq!(a.ratios(&Samples(vec![1.0, 2.0])).0, [2.0, 3.0]);
    }
}
