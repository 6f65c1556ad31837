//! Means, spreads and bootstrap intervals. Pure.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// A mean over seeds with its spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Arithmetic mean of the values.
    pub(crate) mean: f64,
    /// Sample standard deviation; `None` for a single value.
    pub(crate) deviation: Option<f64>,
    /// Number of values.
    pub(crate) count: usize,
}

impl Spread {
    /// The spread of some values; `None` if there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let values: Vec<f64> = values.into_iter().collect();
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Some(Spread {
            mean,
            deviation: (count > 1).then(|| (squares / (count - 1) as f64).sqrt()),
            count,
        })
    }
}

/// A mean with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    /// Mean of the sample.
    pub(crate) mean: f64,
    /// Lower end of the interval.
    pub(crate) low: f64,
    /// Upper end of the interval.
    pub(crate) high: f64,
}

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;

/// The percentile bootstrap of a mean over items, always with the same random numbers. `None`
/// without items.
pub(crate) fn bootstrap(values: &[f64]) -> Option<Interval> {
    if values.is_empty() {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0xb007);
    let n = values.len();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..n).map(|_| values[rng.random_range(0..n)]);
            drawn.sum::<f64>() / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((RESAMPLES - 1) as f64 * share).round() as usize];
    Some(Interval {
        mean: values.iter().sum::<f64>() / n as f64,
        low: at(0.025),
        high: at(0.975),
    })
}

/// The mean over several rows of each column; rows shorter than the first are left out.
pub(crate) fn column_means(rows: &[Vec<f64>]) -> Vec<f64> {
    let Some(width) = rows.first().map(Vec::len) else {
        return Vec::new();
    };
    let full: Vec<&Vec<f64>> = rows.iter().filter(|r| r.len() == width).collect();
    (0..width)
        .map(|i| full.iter().map(|row| row[i]).sum::<f64>() / full.len() as f64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_sample_deviations() {
        let spread = Spread::of([1.0, 2.0, 3.0]).unwrap();
        assert_eq!(
            (spread.mean, spread.deviation, spread.count),
            (2.0, Some(1.0), 3)
        );
        assert_eq!(Spread::of([5.0]).unwrap().deviation, None);
        assert_eq!(Spread::of([]), None);
    }

    /// The interval of a mean of 400 values of deviation 1 is ± 1.96 / 20.
    #[test]
    fn the_bootstrap_agrees_with_the_normal_interval() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let values: Vec<f64> = (0..400)
            .map(|_| (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0 + 0.5)
            .collect();
        let interval = bootstrap(&values).unwrap();
        let half = (interval.high - interval.low) / 2.0;
        assert!((half - 0.098).abs() < 0.012, "{interval:?}");
        assert!(interval.low < interval.mean && interval.mean < interval.high);
        assert_eq!(bootstrap(&values), Some(interval), "the same every time");
        assert_eq!(bootstrap(&[]), None);
        let constant = bootstrap(&[2.0; 9]).unwrap();
        assert_eq!((constant.low, constant.high), (2.0, 2.0));
    }

    #[test]
    fn columns_are_averaged_over_complete_rows() {
        let rows = [vec![1.0, 2.0], vec![3.0, 4.0], vec![9.0]];
        assert_eq!(column_means(&rows), [2.0, 3.0]);
    }
}
