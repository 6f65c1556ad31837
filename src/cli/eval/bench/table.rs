//! The table on stdout: shares of 0 to 1.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::figures::{Figures, Measure, Row, Summary};

/// The line of headings, and what they mean.
pub(super) fn head() -> String {
    let mut text = String::from(
        "Compliance with held-out prompts: plain, after a system prompt, as a second turn (2nd), at \
         temperature 1 (temp1), after a violating turn (after).\n\
         Of answers that must not change, the share that is diverted (near-misses, everyday prompts) or \
         violates a rule (-v). Facts that are right.\n\n",
    );
    let _ = write!(text, "{:<17} {:<6}", "policy", "seed");
    for measure in Measure::ALL {
        let _ = write!(text, " {:>7}", measure.heading());
    }
    let _ = write!(text, " {:>6} {:>6}", "steps", "s");
    text
}

/// The lines of one policy: its base, each seed, mean and worst.
pub(super) fn rows(rows: &[Row], summary: &Summary) -> String {
    let mut text = String::new();
    let name = &summary.policy;
    if let Some(first) = rows.first() {
        line(&mut text, (name, "base"), &ratios(&first.base), None);
    }
    for row in rows {
        let seed = row.seed.to_string();
        match &row.failed {
            Some(why) => {
                let _ = writeln!(text, "{name:<17} {seed:<6} failed: {why}");
            }
            None => {
                let effort = Some((row.steps as f64, row.seconds));
                line(&mut text, (name, &seed), &ratios(&row.candidate), effort);
            }
        }
    }
    if summary.candidates > 0 {
        let effort = Some((summary.steps, summary.seconds));
        line(&mut text, (name, "mean"), &summary.mean, effort);
        line(&mut text, (name, "worst"), &summary.worst, None);
    }
    text
}

fn ratios(figures: &Figures) -> BTreeMap<Measure, f64> {
    let measured = figures.iter();
    measured
        .filter_map(|(measure, share)| Some((*measure, share.ratio?)))
        .collect()
}

fn line(
    text: &mut String,
    (name, seed): (&str, &str),
    shares: &BTreeMap<Measure, f64>,
    effort: Option<(f64, f64)>,
) {
    // Writing to a string cannot fail.
    let _ = write!(text, "{name:<17} {seed:<6}");
    for measure in Measure::ALL {
        let shown = shares.get(&measure).map(|share| format!("{share:.3}"));
        let _ = write!(text, " {:>7}", shown.unwrap_or_else(|| "–".into()));
    }
    if let Some((steps, seconds)) = effort {
        let _ = write!(text, " {steps:>6.0} {seconds:>6.0}");
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_align::exam::Share;

    #[test]
    fn a_policy_has_its_base_its_seeds_mean_and_worst() {
        let row = Row {
            policy: "brevity".into(),
            seed: 17,
            steps: 40,
            seconds: 61.4,
            base: Figures::from([(Measure::Plain, Share::of(1, 40))]),
            candidate: Figures::from([(Measure::Plain, Share::of(39, 40))]),
            ..Row::default()
        };
        let failed = Row {
            seed: 18,
            failed: Some("it diverged".into()),
            ..row.clone()
        };
        let all = [row, failed];
        let text = rows(&all, &Summary::of(&all));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        for (line, parts) in [
            (0, ["base", "0.025"]),
            (1, ["17", "0.975"]),
            (2, ["18", "failed: it diverged"]),
            (3, ["mean", "0.975"]),
            (4, ["worst", "0.975"]),
        ] {
            assert!(
                parts.iter().all(|part| lines[line].contains(part)),
                "{text}"
            );
        }
        assert_eq!(
            head().lines().last().map(str::len),
            Some(17 + 1 + 6 + 80 + 14)
        );
    }
}
