//! Figures and calibration plots of `realign policy test`.

use std::fmt::Write as _;

use realign_align::oracle::RuleTrust;
use realign_align::oracle::measure::Bin;

/// Columns of a bar on the terminal.
const BAR: usize = 30;

/// Figures of every measured rule, one line each, with a plot below rules that give probabilities.
pub(super) fn table(trust: &[RuleTrust]) -> String {
    let names = trust.iter().map(|t| t.policy.len() + t.rule.len());
    let width = names.max().unwrap_or(0) + 1;
    let mut text = format!("{:width$}  examples  accuracy  precision  recall\n", "rule");
    for rule in trust {
        let name = format!("{}:{}", rule.policy, rule.rule);
        let how = if rule.cross_validated {
            "  (cross-validated)"
        } else {
            ""
        };
        // Writing to a string cannot fail.
        let _infallible = writeln!(
            text,
            "{name:width$}  {:8}  {:>8}  {:>9}  {:>6}{how}",
            rule.examples,
            figure(rule.accuracy),
            figure(rule.precision),
            figure(rule.recall),
        );
        if let Some(why) = rule.shortfall() {
            let _infallible = writeln!(text, "  {why}");
        }
        if !rule.calibration.is_empty() {
            text.push_str(&plot(&rule.calibration, rule.calibration_error));
        }
    }
    text
}

fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.3}"))
}

/// A bar per bin: how many of its responses violate, with a mark where a calibrated rule's would end.
fn plot(bins: &[Bin], error: f64) -> String {
    let mut text = String::from("  probability  violating\n");
    for bin in bins {
        let column = |share: f64| ((share * BAR as f64).round() as usize).min(BAR);
        let (end, mark) = (column(bin.observed), column(bin.predicted));
        let bar: String = (0..=BAR)
            .map(|i| {
                if i == mark {
                    '|'
                } else if i < end {
                    '█'
                } else {
                    '·'
                }
            })
            .collect();
        let _infallible = writeln!(
            text,
            "  {:.1} – {:.1}    {bar} {:.2} of {}",
            bin.from, bin.to, bin.observed, bin.count
        );
    }
    let _infallible = writeln!(
        text,
        "  | is where a calibrated rule's bar ends; mean distance {error:.3}"
    );
    text
}

/// A reliability diagram: the diagonal, and a circle per bin whose area shows its size.
pub(super) fn svg(trust: &RuleTrust) -> String {
    const SIDE: f64 = 320.0;
    const EDGE: f64 = 40.0;
    let x = |p: f64| EDGE + p * SIDE;
    let y = |p: f64| EDGE + (1.0 - p) * SIDE;
    let all = SIDE + 2.0 * EDGE;
    let total = trust
        .calibration
        .iter()
        .map(|bin| bin.count)
        .max()
        .unwrap_or(1) as f64;
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {all} {all}" font-family="sans-serif" font-size="12">
<rect width="{all}" height="{all}" fill="#fff"/>
<text x="{EDGE}" y="24">{}: predicted against observed, {} examples</text>
<rect x="{EDGE}" y="{EDGE}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>
<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="#999" stroke-dasharray="4 4"/>
"##,
        escape(&format!("{}:{}", trust.policy, trust.rule)),
        trust.examples,
        x(0.0),
        y(0.0),
        x(1.0),
        y(1.0)
    );
    for bin in &trust.calibration {
        let _infallible = writeln!(
            out,
            r##"<circle cx="{:.1}" cy="{:.1}" r="{:.1}" fill="#2563eb" fill-opacity="0.6"><title>{} examples, predicted {:.2}, observed {:.2}</title></circle>"##,
            x(bin.predicted),
            y(bin.observed),
            3.0 + 12.0 * (bin.count as f64 / total).sqrt(),
            bin.count,
            bin.predicted,
            bin.observed
        );
    }
    let _infallible = writeln!(
        out,
        r##"<text x="{EDGE}" y="{}">predicted probability of a violation, 0 to 1</text>
</svg>"##,
        all - 14.0
    );
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_align::oracle::measure::Confusion;
    use realign_align::policy::Minimum;

    fn trust() -> RuleTrust {
        let bin = |from: f64, count, predicted, observed| Bin {
            from,
            to: from + 0.1,
            count,
            predicted,
            observed,
        };
        RuleTrust {
            policy: "a<b".into(),
            rule: "r&d".into(),
            cross_validated: true,
            examples: 20,
            counts: Confusion::default(),
            accuracy: Some(0.85),
            precision: None,
            recall: Some(1.0),
            calibration: vec![bin(0.0, 4, 0.05, 0.25), bin(0.9, 16, 0.95, 1.0)],
            calibration_error: 0.08,
            minimum: Minimum::default(),
        }
    }

    /// Predicted runs to the right and observed upwards, a circle's area grows with its bin.
    #[test]
    fn a_picture_puts_every_bin_in_its_place() {
        let text = svg(&trust());
        assert!(text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
        assert!(text.trim_end().ends_with("</svg>"));
        assert!(text.contains("a&lt;b:r&amp;d: predicted against observed, 20 examples"));
        let circles: Vec<&str> = text.lines().filter(|l| l.starts_with("<circle")).collect();
        // x is 40 + 320 p, y is 40 + 320 (1 − observed), r is 3 + 12 √(count / 16).
        assert_eq!(circles.len(), 2);
        assert!(
            circles[0].starts_with(r#"<circle cx="56.0" cy="280.0" r="9.0""#),
            "{text}"
        );
        assert!(
            circles[1].starts_with(r#"<circle cx="344.0" cy="40.0" r="15.0""#),
            "{text}"
        );
        assert!(circles[0].contains("4 examples, predicted 0.05, observed 0.25"));
    }

    #[test]
    fn the_terminal_shows_figures_and_bars() {
        let text = table(&[trust()]);
        assert!(
            text.contains("0.850          –   1.000  (cross-validated)"),
            "{text}"
        );
        // A quarter of thirty columns is eight after rounding, with the mark at two.
        assert!(text.contains("██|█████·"), "{text}");
        assert!(text.contains("mean distance 0.080"), "{text}");
    }
}
