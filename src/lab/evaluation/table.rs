//! The comparison as a Markdown table. Pure.

use std::fmt::Write as _;

use super::report::{Report, VariantRow};
use super::statistics::{Interval, Spread};

/// A column's heading, and the text of its cell in a row.
type Column = (&'static str, fn(&VariantRow) -> String);

const QUALITY: [Column; 11] = [
    ("variant", |r| r.variant.clone()),
    ("seeds", |r| r.seeds.to_string()),
    ("agreement", |r| percent(r.agreement)),
    ("invert", |r| percent(r.invert)),
    ("punish", |r| percent(r.punish)),
    ("retain", |r| percent(r.retain)),
    ("over-refusal", |r| percent(r.over_refusal)),
    ("perplexity", |r| number(r.perplexity, 2)),
    ("retained NLL", |r| signed(r.retain_nll_rise, 3)),
    ("accuracy", |r| percent(r.accuracy)),
    ("margin change (95 %)", |r| interval(r.margin_change)),
];

const LIKELIHOOD: [Column; 5] = [
    ("variant", |r| r.variant.clone()),
    ("INVERT: preferred", |r| {
        percent(r.invert_preference.prefers)
    }),
    ("gained", |r| percent(r.invert_preference.gained)),
    ("RETAIN: preferred", |r| {
        percent(r.retain_preference.prefers)
    }),
    ("gained", |r| percent(r.retain_preference.gained)),
];

const COST: [Column; 6] = [
    ("variant", |r| r.variant.clone()),
    ("reference and impact, s", |r| number(r.impact_seconds, 0)),
    ("training, s", |r| number(r.train_seconds, 0)),
    ("training tokens/s", |r| number(r.tokens_per_second, 0)),
    ("peak memory, MB", |r| match r.peak_bytes {
        Some(bytes) => (bytes >> 20).to_string(),
        None => NONE.into(),
    }),
    ("failed runs", |r| match &r.failed {
        Some((count, why)) => format!("{count}: {}", why.replace('|', "/")),
        None => "0".into(),
    }),
];

const NONE: &str = "–";

/// Tables of quality, of likelihoods and of costs, and a sentence about each variant.
pub fn markdown(report: &Report) -> String {
    let mut text = table(&report.rows, &QUALITY);
    text.push_str(
        "\nHeld-out pairs, without a judge: the share whose right response (INVERT: the rejected one, RETAIN: the chosen \
         one) is more likely per token than the other, and the share where it gained on the other since the base.\n\n",
    );
    text.push_str(&table(&report.rows, &LIKELIHOOD));
    text.push('\n');
    text.push_str(&table(&report.rows, &COST));
    text.push('\n');
    for row in &report.rows {
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "- `{}`: {}.", row.variant, row.about);
    }
    text
}

fn table(rows: &[VariantRow], columns: &[Column]) -> String {
    let mut text = String::new();
    let mut line = |cells: Vec<String>| {
        let _infallible = writeln!(text, "| {} |", cells.join(" | "));
    };
    line(columns.iter().map(|(name, _)| (*name).to_owned()).collect());
    line(vec!["---".to_owned(); columns.len()]);
    for row in rows {
        line(columns.iter().map(|(_, cell)| cell(row)).collect());
    }
    text
}

fn percent(spread: Option<Spread>) -> String {
    let scaled = spread.map(|s| Spread {
        mean: 100.0 * s.mean,
        deviation: s.deviation.map(|d| 100.0 * d),
        count: s.count,
    });
    match number(scaled, 0).as_str() {
        NONE => NONE.into(),
        text => format!("{text} %"),
    }
}

fn number(spread: Option<Spread>, digits: usize) -> String {
    match spread {
        None => NONE.into(),
        Some(Spread {
            mean,
            deviation: None,
            ..
        }) => format!("{mean:.digits$}"),
        Some(Spread {
            mean,
            deviation: Some(deviation),
            ..
        }) => format!("{mean:.digits$} ± {deviation:.digits$}"),
    }
}

fn signed(spread: Option<Spread>, digits: usize) -> String {
    match spread {
        Some(s) if s.mean >= 0.0 => format!("+{}", number(spread, digits)),
        other => number(other, digits),
    }
}

fn interval(interval: Option<Interval>) -> String {
    match interval {
        None => NONE.into(),
        Some(Interval { mean, low, high }) => format!("{mean:+.3} ({low:+.3} to {high:+.3})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::report::tests::cells;

    #[test]
    fn the_table_shows_means_spreads_intervals_and_failures() {
        let text = markdown(&Report::of(&cells()));
        let line = |name: &str, nth: usize| {
            let wanted = format!("| {name} |");
            text.lines()
                .filter(|l| l.starts_with(&wanted))
                .nth(nth)
                .unwrap_or_else(|| panic!("{name} is missing in {text}"))
        };
        assert!(line("base", 0).contains("| 20 % |"), "{text}");
        let trace = line("trace", 0);
        assert!(trace.contains("| 90 ± 14 % |"), "{trace}");
        assert!(trace.contains("21.50 ± 0.71"), "{trace}");
        assert!(trace.contains("-0.200 (-0.200 to -0.200)"), "{trace}");
        assert!(line("trace", 1).contains("| 67 ± 0 % | 67 ± 0 % | – | – |"));
        assert!(line("npo", 2).contains("1: the loss is NaN at step 3"));
        let widths: Vec<usize> = text
            .lines()
            .take(5)
            .map(|l| l.matches(" | ").count())
            .collect();
        assert!(widths.iter().all(|w| *w == widths[0]), "{widths:?}");
        assert!(text.contains("- `trace`: the recipe, our likelihood term included"));
    }
}
