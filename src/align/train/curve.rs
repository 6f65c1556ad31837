//! The losses of a run, step by step, as JSON lines and as a plot.

use serde::{Deserialize, Serialize};

use super::objective::LossParts;
use realign_plot::{Labels, Line};

/// File name of the JSON lines in an adapter's directory.
pub const LINES_FILE: &str = "losses.jsonl";
/// File name of the plot in an adapter's directory.
pub const PLOT_FILE: &str = "losses.svg";

/// One optimiser step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: usize,
    /// The loss, summed over a batch's pairs and averaged over the step's batches; nats.
    pub total: f64,
    /// INVERT part of the loss.
    pub invert: f64,
    /// PUNISH part of the loss.
    pub punish: f64,
    /// KL part of the loss, from RETAIN pairs.
    pub kl: f64,
    /// Likelihood (SFT) part of the loss.
    pub sft: f64,
    /// L2 norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Token rows that went through the layers.
    pub tokens: usize,
    /// Duration in seconds, including time spent waiting for serving.
    pub seconds: f64,
}

impl StepRecord {
    /// Number of values in a record.
    pub(crate) const FIELDS: usize = 10;

    /// The loss, split into its parts.
    pub fn loss(&self) -> LossParts {
        LossParts {
            invert: self.invert,
            punish: self.punish,
            retain: self.kl,
            sft: self.sft,
        }
    }

    /// The fields as numbers in declaration order, for a checkpoint.
    pub(crate) fn to_values(self) -> [f64; Self::FIELDS] {
        [
            self.step as f64,
            self.total,
            self.invert,
            self.punish,
            self.kl,
            self.sft,
            self.gradient_norm,
            self.learning_rate,
            self.tokens as f64,
            self.seconds,
        ]
    }

    /// The inverse of [`StepRecord::to_values`].
    pub(crate) fn from_values(values: [f64; Self::FIELDS]) -> Self {
        let [
            step,
            total,
            invert,
            punish,
            kl,
            sft,
            gradient_norm,
            learning_rate,
            tokens,
            seconds,
        ] = values;
        Self {
            step: step as usize,
            total,
            invert,
            punish,
            kl,
            sft,
            gradient_norm,
            learning_rate,
            tokens: tokens as usize,
            seconds,
        }
    }
}

/// All steps of a run, including those before an interruption.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve(pub Vec<StepRecord>);

impl Curve {
    /// One JSON object per line.
    pub fn jsonl(&self) -> String {
        let mut lines = String::new();
        for record in &self.0 {
            // A record holds only numbers, so this cannot fail.
            lines += &serde_json::to_string(record).unwrap_or_default();
            lines.push('\n');
        }
        lines
    }

    /// Token rows per second over the whole run; 0 without steps.
    pub fn tokens_per_second(&self) -> f64 {
        let tokens: usize = self.0.iter().map(|r| r.tokens).sum();
        let seconds: f64 = self.0.iter().map(|r| r.seconds).sum();
        if seconds > 0.0 {
            tokens as f64 / seconds
        } else {
            0.0
        }
    }

    /// An SVG plot of the total loss and its parts over the steps.
    pub fn svg(&self) -> String {
        type Part = (&'static str, fn(&StepRecord) -> f64);
        let parts: [Part; 5] = [
            ("total", |r| r.total),
            ("invert", |r| r.invert),
            ("punish", |r| r.punish),
            ("KL of retain", |r| r.kl),
            ("likelihood", |r| r.sft),
        ];
        let lines: Vec<Line> = parts
            .iter()
            // A part that never occurs would be a line along the axis.
            .filter(|(_, value)| self.0.iter().any(|r| value(r) != 0.0))
            .map(|(name, value)| Line {
                name: (*name).to_owned(),
                points: self.0.iter().map(|r| (r.step as f64, value(r))).collect(),
            })
            .collect();
        let labels = Labels {
            title: "Training losses",
            description: &self.description(),
            x: "optimiser step",
            y: "weighted loss per step (nats)",
        };
        realign_plot::lines(&labels, &lines)
    }

    fn description(&self) -> String {
        match (self.0.first(), self.0.last()) {
            (Some(first), Some(last)) => format!(
                "The total loss goes from {:.3} at step {} to {:.3} at step {}.",
                first.total, first.step, last.total, last.step
            ),
            _ => "No step was made.".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> Curve {
        let record = |step: usize| StepRecord {
            step,
            total: 3.0 / step as f64,
            invert: 2.0 / step as f64,
            kl: 1.0 / step as f64,
            tokens: 100,
            seconds: 0.5,
            ..StepRecord::default()
        };
        Curve((1..=3).map(record).collect())
    }

    #[test]
    fn records_survive_lines_and_checkpoints() {
        let curve = curve();
        let lines = curve.jsonl();
        let back: Vec<StepRecord> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(Curve(back), curve);
        let values = curve
            .0
            .iter()
            .map(|r| StepRecord::from_values(r.to_values()));
        assert_eq!(Curve(values.collect()), curve);
        assert_eq!(curve.tokens_per_second(), 200.0);
    }

    #[test]
    fn the_plot_names_the_parts_that_occur() {
        let svg = curve().svg();
        assert!(svg.contains(">invert</text>") && svg.contains(">KL of retain</text>"));
        assert!(!svg.contains(">punish</text>"), "there was none");
        assert!(svg.contains("from 3.000 at step 1 to 1.000 at step 3"));
    }
}
