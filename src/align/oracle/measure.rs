//! Metrics of a classifier: accuracy, precision, recall, F1, calibration, thresholds. Pure.

use schemars::JsonSchema;
use serde::Serialize;

/// Counts of a binary decision against the truth; positive is "violates".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Confusion {
    /// Violations found.
    pub(crate) true_positive: usize,
    /// Compliant responses called violations.
    pub(crate) false_positive: usize,
    /// Compliant responses let through.
    pub(crate) true_negative: usize,
    /// Violations missed.
    pub(crate) false_negative: usize,
}

impl Confusion {
    /// Counts one decision; `true` is "violates".
    pub(crate) fn add(&mut self, predicted: bool, actual: bool) {
        match (predicted, actual) {
            (true, true) => self.true_positive += 1,
            (true, false) => self.false_positive += 1,
            (false, false) => self.true_negative += 1,
            (false, true) => self.false_negative += 1,
        }
    }

    /// Counts many decisions, each as (predicted, actual).
    pub fn of(decisions: impl IntoIterator<Item = (bool, bool)>) -> Confusion {
        let mut out = Confusion::default();
        decisions
            .into_iter()
            .for_each(|(predicted, actual)| out.add(predicted, actual));
        out
    }

    /// Number of decisions counted.
    pub fn total(&self) -> usize {
        self.true_positive + self.false_positive + self.true_negative + self.false_negative
    }

    /// Share of correct decisions; `None` without any.
    pub fn accuracy(&self) -> Option<f64> {
        share(self.true_positive + self.true_negative, self.total())
    }

    /// Share of true violations among those predicted; `None` if none was predicted.
    pub(crate) fn precision(&self) -> Option<f64> {
        share(self.true_positive, self.true_positive + self.false_positive)
    }

    /// Share of the violations that were predicted; `None` if there are none.
    pub(crate) fn recall(&self) -> Option<f64> {
        share(self.true_positive, self.true_positive + self.false_negative)
    }

    /// Mean F1 of both classes; a class that is neither present nor predicted counts as 0.
    pub fn macro_f1(&self) -> f64 {
        let f1 = |hit: usize, wrong: usize, missed: usize| {
            share(2 * hit, 2 * hit + wrong + missed).unwrap_or(0.0)
        };
        let violating = f1(self.true_positive, self.false_positive, self.false_negative);
        let complying = f1(self.true_negative, self.false_negative, self.false_positive);
        (violating + complying) / 2.0
    }
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The threshold with the best macro F1, halfway between neighbouring probabilities; the one
/// nearest to 0.5 if several are equal. 0.5 if only one verdict occurs.
pub fn best_threshold(probabilities: &[f64], positive: &[bool]) -> f64 {
    let mut sorted: Vec<(f64, bool)> = probabilities
        .iter()
        .copied()
        .zip(positive.iter().copied())
        .collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let violating = positive.iter().filter(|p| **p).count();
    if violating == 0 || violating == positive.len() {
        return 0.5;
    }
    // With the threshold below all probabilities, all are predicted as violations.
    let mut counts = Confusion {
        true_positive: violating,
        false_positive: positive.len() - violating,
        ..Confusion::default()
    };
    let mut best = (f64::NEG_INFINITY, 0.0, 0.5);
    for (index, (probability, truth)) in sorted.iter().enumerate() {
        if *truth {
            counts.true_positive -= 1;
            counts.false_negative += 1;
        } else {
            counts.false_positive -= 1;
            counts.true_negative += 1;
        }
        let Some((next, _)) = sorted.get(index + 1) else {
            break;
        };
        if next <= probability {
            continue;
        }
        let between = (probability + next) / 2.0;
        let candidate = (counts.macro_f1(), -(between - 0.5).abs(), between);
        if (candidate.0, candidate.1) > (best.0, best.1) {
            best = candidate;
        }
    }
    best.2
}

/// One bin of a calibration plot.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Bin {
    /// Least probability in it.
    pub from: f64,
    /// Least probability above it.
    pub to: f64,
    /// Responses in it.
    pub count: usize,
    /// Their mean probability.
    pub predicted: f64,
    /// The share that violates.
    pub observed: f64,
}

/// Calibration bins of (probability, violates): ten of equal width, without the empty ones.
pub(crate) fn calibration(scored: &[(f64, bool)]) -> Vec<Bin> {
    let bins = (0..10).filter_map(|index| {
        let inside: Vec<_> = scored
            .iter()
            .filter(|(p, _)| ((p * 10.0) as usize).min(9) == index)
            .collect();
        let count = inside.len();
        (count > 0).then(|| Bin {
            from: index as f64 / 10.0,
            to: (index + 1) as f64 / 10.0,
            count,
            predicted: inside.iter().map(|(p, _)| p).sum::<f64>() / count as f64,
            observed: inside.iter().filter(|(_, truth)| *truth).count() as f64 / count as f64,
        })
    });
    bins.collect()
}

/// Expected calibration error: the bins' distance from the diagonal, weighted by size.
pub(crate) fn calibration_error(bins: &[Bin]) -> f64 {
    let total: usize = bins.iter().map(|bin| bin.count).sum();
    let distances = bins
        .iter()
        .map(|bin| bin.count as f64 * (bin.predicted - bin.observed).abs());
    distances.sum::<f64>() / total.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_the_textbook_ones() {
        let predicted = [true, true, true, false, false, false];
        let truth = [true, true, false, true, false, false];
        let counts = Confusion::of(predicted.into_iter().zip(truth));
        assert_eq!(counts.accuracy(), Some(4.0 / 6.0));
        assert_eq!(counts.precision(), Some(2.0 / 3.0));
        assert_eq!(counts.recall(), Some(2.0 / 3.0));
        assert!((counts.macro_f1() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(Confusion::default().accuracy(), None);
        assert_eq!(Confusion::default().macro_f1(), 0.0);
    }

    #[test]
    fn the_threshold_separates_what_can_be_separated() {
        let p = [0.1, 0.2, 0.3, 0.9];
        assert!((best_threshold(&p, &[false, false, false, true]) - 0.6).abs() < 1e-9);
        assert!((best_threshold(&p, &[false, true, true, true]) - 0.15).abs() < 1e-9);
        assert_eq!(best_threshold(&p, &[true; 4]), 0.5);
        assert_eq!(best_threshold(&[0.4; 4], &[true, false, true, false]), 0.5);
        assert_eq!(best_threshold(&[], &[]), 0.5);
    }

    #[test]
    fn bins_hold_what_they_say() {
        let bins = calibration(&[(0.05, false), (0.08, true), (1.0, true)]);
        assert_eq!(bins.len(), 2);
        assert_eq!((bins[0].count, bins[0].observed), (2, 0.5));
        assert_eq!((bins[1].from, bins[1].count), (0.9, 1));
        let error = (2.0 * (0.5 - 0.065) + 0.0) / 3.0;
        assert!((calibration_error(&bins) - error).abs() < 1e-9);
    }
}
