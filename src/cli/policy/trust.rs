//! Figures and calibration plots of `realign policy test`.

use std::fmt::Write as _;

use crate::oracle::RuleTrust;
use crate::oracle::measure::Bin;

/// Columns of a bar on the terminal.
const BAR: usize = 30;

/// Figures of every measured rule, one line each, with a plot under those that gave probabilities.
pub(super) fn table(trust: &[RuleTrust]) -> String {
    let names = trust.iter().map(|t| t.policy.len() + t.rule.len());
    let width = names.max().unwrap_or(0) + 1;
    let mut text = format!("{:width$}  examples  accuracy  precision  recall\n", "rule");
    for rule in trust {
        let name = format!("{}:{}", rule.policy, rule.rule);
        let how = match rule.cross_validated {
            true => "  (cross-validated)",
            false => "",
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
        let place = |share: f64| ((share * BAR as f64).round() as usize).min(BAR);
        let (end, mark) = (place(bin.observed), place(bin.predicted));
        let bar: String = (0..=BAR)
            .map(|i| match i {
                i if i == mark => '|',
                i if i < end => '█',
                _ => '·',
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
