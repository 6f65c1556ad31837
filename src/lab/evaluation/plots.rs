//! Policy agreement plotted against its cost, as SVG. Pure.

use super::report::{Report, VariantRow};
use super::statistics::Spread;
use realign_plot::{Labels, Mark, marks};

/// File names and plots: agreement against the rise of perplexity, and against the change of
/// multiple-choice margins.
pub fn all(report: &Report) -> [(&'static str, String); 2] {
    [
        (
            "agreement-perplexity.svg",
            plot(
                report,
                "Policy agreement against perplexity",
                "rise of perplexity over the base (%)",
                |row| scaled(row.perplexity_rise, 100.0),
            ),
        ),
        (
            "agreement-capability.svg",
            plot(
                report,
                "Policy agreement against capability",
                "change of the multiple-choice margin against the base (nats per token)",
                |row| row.margin_spread,
            ),
        ),
    ]
}

fn scaled(spread: Option<Spread>, by: f64) -> Option<Spread> {
    spread.map(|s| Spread {
        mean: by * s.mean,
        deviation: s.deviation.map(|d| by * d),
        count: s.count,
    })
}

fn plot(
    report: &Report,
    title: &str,
    x: &str,
    across: fn(&VariantRow) -> Option<Spread>,
) -> String {
    let mark = |row: &VariantRow| {
        let (across, up) = (across(row)?, scaled(row.agreement, 100.0)?);
        Some(Mark {
            name: row.variant.clone(),
            at: (across.mean, up.mean),
            spread: (across.deviation.unwrap_or(0.0), up.deviation.unwrap_or(0.0)),
        })
    };
    let placed: Vec<Mark> = report.rows.iter().filter_map(mark).collect();
    let told: Vec<String> = placed
        .iter()
        .map(|m| format!("{}: {:.0} % at {:.3}", m.name, m.at.1, m.at.0))
        .collect();
    let description = format!(
        "One mark per variant, the mean over seeds; bars are one standard deviation. {}.",
        told.join("; ")
    );
    let labels = Labels {
        title,
        description: &description,
        x,
        y: "target policy agreement (%)",
    };
    marks(&labels, &placed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::report::tests::cells;

    #[test]
    fn every_variant_with_figures_has_a_mark_and_is_described() {
        let [(name, perplexity), (_, capability)] = all(&Report::of(&cells()));
        assert_eq!(name, "agreement-perplexity.svg");
        for svg in [&perplexity, &capability] {
            assert!(svg.contains(">base</text>") && svg.contains(">trace</text>"));
            assert!(!svg.contains(">npo</text>"), "it has no figures");
        }
        assert!(perplexity.contains("trace: 90 % at 7.500"), "{perplexity}");
        assert!(capability.contains("trace: 90 % at -0.200"));
    }
}
