//! Aggregates cells into rows: means and spreads over seeds, differences from the base. Pure.

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Measured, Share};
use super::statistics::{Interval, Spread, bootstrap, column_means};
use super::variants::Variant;

/// The figures of one variant over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantRow {
    /// Name of the variant.
    pub(crate) variant: String,
    /// The variant in a sentence.
    pub(crate) about: String,
    /// Seeds with figures.
    pub(crate) seeds: usize,
    /// Seeds whose run failed, with the reason of the first.
    pub(crate) failed: Option<(usize, String)>,
    /// Target policy agreement on all held-out prompts.
    pub(crate) agreement: Option<Spread>,
    /// Agreement on the prompts of INVERT pairs.
    pub(crate) invert: Option<Spread>,
    /// Agreement on the prompts of PUNISH pairs.
    pub(crate) punish: Option<Spread>,
    /// Agreement on the prompts of RETAIN pairs.
    pub(crate) retain: Option<Spread>,
    /// Share of general questions that were refused or referred elsewhere.
    pub(crate) over_refusal: Option<Spread>,
    /// Perplexity on the held-out text.
    pub(crate) perplexity: Option<Spread>,
    /// Rise of perplexity over the base, as a share.
    pub(crate) perplexity_rise: Option<Spread>,
    /// Rise of the negative log-likelihood of retained responses, per token.
    pub(crate) retain_nll_rise: Option<Spread>,
    /// Which of two given responses the model prefers, on INVERT pairs.
    pub(crate) invert_preference: Preference,
    /// The same on RETAIN pairs.
    pub(crate) retain_preference: Preference,
    /// Multiple-choice accuracy.
    pub(crate) accuracy: Option<Spread>,
    /// Change of the mean margin against the base, items paired, seeds averaged.
    pub(crate) margin_change: Option<Interval>,
    /// Spread over seeds of the mean margin change.
    pub(crate) margin_spread: Option<Spread>,
    /// Seconds for reference and impact.
    pub(crate) impact_seconds: Option<Spread>,
    /// Seconds of training.
    pub(crate) train_seconds: Option<Spread>,
    /// Rows per second of training.
    pub(crate) tokens_per_second: Option<Spread>,
    /// Largest resident size of any seed's run, in bytes.
    pub(crate) peak_bytes: Option<u64>,
}

/// How likely the preferred response of a held-out pair is beside the other one. No judge is needed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Preference {
    /// Pairs whose preferred response has the higher probability per token.
    pub(crate) prefers: Option<Spread>,
    /// Pairs whose preferred response gained on the other one since the base.
    pub(crate) gained: Option<Spread>,
}

impl Preference {
    fn of(
        cells: &[(&Cell, &Measured)],
        base: Option<&Measured>,
        margins: fn(&Measured) -> &[f64],
    ) -> Self {
        let over = |of: &Measured, zero: &[f64]| {
            let pairs = margins(of).iter().zip(zero);
            Share::of(pairs.map(|(now, before)| now > before)).ratio()
        };
        let gained = |m: &Measured| over(m, margins(base?));
        Self {
            prefers: Spread::of(
                cells
                    .iter()
                    .filter_map(|(_, m)| over(m, &vec![0.0; margins(m).len()])),
            ),
            gained: Spread::of(cells.iter().filter_map(|(_, m)| gained(m))),
        }
    }
}

/// The whole comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// One row per variant, in the suite's order.
    pub rows: Vec<VariantRow>,
}

impl Report {
    /// The rows of all variants that have a cell.
    pub fn of(cells: &[Cell]) -> Report {
        let base = cells
            .iter()
            .find(|cell| cell.variant == Variant::Base.name())
            .and_then(|cell| cell.measured.as_ref());
        let row = |variant: Variant| {
            let of: Vec<&Cell> = cells
                .iter()
                .filter(|cell| cell.variant == variant.name())
                .collect();
            (!of.is_empty()).then(|| VariantRow::of(variant, &of, base))
        };
        Report {
            rows: Variant::ALL.into_iter().filter_map(row).collect(),
        }
    }
}

impl VariantRow {
    fn of(variant: Variant, cells: &[&Cell], base: Option<&Measured>) -> VariantRow {
        let done: Vec<(&Cell, &Measured)> = cells
            .iter()
            .filter_map(|cell| Some((*cell, cell.measured.as_ref()?)))
            .collect();
        let share =
            |of: fn(&Measured) -> Share| Spread::of(done.iter().filter_map(|(_, m)| of(m).ratio()));
        let number = |of: &dyn Fn(&Measured) -> Option<f64>| {
            Spread::of(done.iter().filter_map(|(_, m)| of(m)))
        };
        let rise = |m: &Measured| Some(m.perplexity? / base?.perplexity? - 1.0);
        let nll = |m: &Measured| Some(m.retain_nll? - base?.retain_nll?);
        let trained = variant.trains();
        let time = |of: fn(&Cell) -> f64| {
            Spread::of(done.iter().filter(|_| trained).map(|(cell, _)| of(cell)))
        };
        let changes: Vec<Vec<f64>> = done
            .iter()
            .filter_map(|(_, m)| margin_changes(m, base?))
            .collect();
        let means = changes.iter().map(|row| mean(row));
        VariantRow {
            variant: variant.name().into(),
            about: variant.about().into(),
            seeds: done.len(),
            failed: failures(cells),
            agreement: share(|m| m.agreement),
            invert: share(|m| m.invert),
            punish: share(|m| m.punish),
            retain: share(|m| m.retain),
            over_refusal: share(|m| m.over_refusal),
            perplexity: number(&|m| m.perplexity),
            perplexity_rise: number(&rise),
            retain_nll_rise: number(&nll),
            invert_preference: Preference::of(&done, base, |m| &m.invert_margins),
            retain_preference: Preference::of(&done, base, |m| &m.retain_margins),
            accuracy: share(Measured::accuracy),
            margin_change: bootstrap(&column_means(&changes)),
            margin_spread: Spread::of(means),
            impact_seconds: time(|cell| cell.seconds.reference + cell.seconds.impact),
            train_seconds: time(|cell| cell.seconds.train),
            tokens_per_second: Spread::of(
                done.iter()
                    .filter_map(|(cell, _)| Some(cell.training.as_ref()?.tokens_per_second)),
            ),
            peak_bytes: done.iter().filter_map(|(cell, _)| cell.peak_bytes).max(),
        }
    }
}

fn failures(cells: &[&Cell]) -> Option<(usize, String)> {
    let mut failed = cells.iter().filter_map(|cell| cell.failure.clone());
    let first = failed.next()?;
    Some((1 + failed.count(), first))
}

/// Margin changes item by item; `None` unless both have the same number of items, at least one.
fn margin_changes(of: &Measured, base: &Measured) -> Option<Vec<f64>> {
    let paired = !of.margins.is_empty() && of.margins.len() == base.margins.len();
    paired.then(|| {
        let both = of.margins.iter().zip(&base.margins);
        both.map(|(now, before)| now - before).collect()
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A base, two seeds of TRACE and a failed NPO.
    pub(in crate::evaluation) fn cells() -> Vec<Cell> {
        let cell = |variant: &str, seed: u64, count: usize, perplexity: f64, margin: f64| Cell {
            variant: variant.into(),
            seed,
            measured: Some(Measured {
                agreement: Share { count, of: 10 },
                perplexity: Some(perplexity),
                margins: vec![margin, margin + 1.0, margin + 2.0],
                invert_margins: vec![-margin, 0.05, -1.0 - margin],
                ..Measured::default()
            }),
            peak_bytes: Some(seed << 30),
            ..Cell::default()
        };
        let failed = Cell {
            variant: "npo".into(),
            failure: Some("the loss is NaN at step 3".into()),
            ..Cell::default()
        };
        vec![
            cell("base", 1, 2, 20.0, 0.0),
            cell("trace", 1, 8, 22.0, -0.1),
            cell("trace", 2, 10, 21.0, -0.3),
            failed,
        ]
    }

    #[test]
    fn rows_average_seeds_and_compare_with_the_base() {
        let report = Report::of(&cells());
        assert_eq!(report.rows.len(), 3);
        let trace = &report.rows[1];
        assert_eq!((trace.variant.as_str(), trace.seeds), ("trace", 2));
        assert!((trace.agreement.unwrap().mean - 0.9).abs() < 1e-12);
        assert!((trace.perplexity_rise.unwrap().mean - 0.075).abs() < 1e-12);
        let change = trace.margin_change.unwrap();
        assert!((change.mean + 0.2).abs() < 1e-12, "{change:?}");
        assert_eq!(trace.peak_bytes, Some(2 << 30));
        let share = |of: Option<Spread>| (of.unwrap().mean * 3.0).round();
        let (trace, base) = (&trace.invert_preference, &report.rows[0].invert_preference);
        assert_eq!((share(base.prefers), share(trace.prefers)), (1.0, 2.0));
        assert_eq!((share(base.gained), share(trace.gained)), (0.0, 2.0));
        assert_eq!(report.rows[1].retain_preference, Preference::default());
        assert_eq!(report.rows[0].perplexity_rise.unwrap().mean, 0.0);
        let npo = &report.rows[2];
        assert_eq!((npo.seeds, npo.failed.as_ref().unwrap().0), (0, 1));
        assert_eq!(npo.agreement, None);
    }
}
