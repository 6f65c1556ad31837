//! The losses of a run, step by step: as lines of JSON, and as a plot.

use serde::{Deserialize, Serialize};

use super::objective::LossParts;
use realign_plot::{Labels, Line};

/// File name of the lines beside an adapter.
pub const LINES_FILE: &str = "losses.jsonl";
/// File name of the plot beside an adapter.
pub const PLOT_FILE: &str = "losses.svg";

/// One optimiser step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done, this one included.
    pub step: usize,
    /// The loss, summed over a batch's pairs and averaged over the step's batches.
    pub total: f64,
    /// Its INVERT part.
    pub invert: f64,
    /// Its PUNISH part.
    pub punish: f64,
    /// Its KL part.
    pub kl: f64,
    /// Its likelihood part.
    pub sft: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Rows that went through the layers.
    pub tokens: usize,
    /// Seconds the step took, waiting for serving included.
    pub seconds: f64,
}

impl StepRecord {
    /// Values in a record.
    pub const FIELDS: usize = 10;

    /// The loss by parts.
    pub fn loss(&self) -> LossParts {
        LossParts {
            invert: self.invert,
            punish: self.punish,
            retain: self.kl,
            sft: self.sft,
        }
    }

    /// As numbers, for a checkpoint.
    pub fn to_values(self) -> [f64; Self::FIELDS] {
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

    /// From the numbers of [`StepRecord::to_values`].
    pub fn from_values(values: [f64; Self::FIELDS]) -> Self {
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

/// All steps of a run, those before an interruption included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve(pub Vec<StepRecord>);

impl Curve {
    /// One JSON object a line.
    pub fn jsonl(&self) -> String {
        let line = |record: &StepRecord| {
            // Numbers and names alone: this cannot fail.
            let text = serde_json::to_string(record).unwrap_or_default();
            format!("{text}\n")
        };
        self.0.iter().map(line).collect()
    }

    /// Rows per second over the whole run; 0 without steps.
    pub fn tokens_per_second(&self) -> f64 {
        let tokens: usize = self.0.iter().map(|r| r.tokens).sum();
        let seconds: f64 = self.0.iter().map(|r| r.seconds).sum();
        match seconds > 0.0 {
            true => tokens as f64 / seconds,
            false => 0.0,
        }
    }

    /// The total and its parts over the steps.
    pub fn svg(&self) -> String {
        type Part = (&'static str, fn(&StepRecord) -> f64);
        let parts: [Part; 5] = [
            ("total", |r| r.total),
            ("invert", |r| r.invert),
            ("punish", |r| r.punish),
            ("KL of retain", |r| r.kl),
            ("likelihood", |r| r.sft),
        ];
        let line = |(name, value): &Part| Line {
            name: (*name).to_owned(),
            points: self.0.iter().map(|r| (r.step as f64, value(r))).collect(),
        };
        // A part that never occurs would be a line on the axis.
        let shown = parts
            .iter()
            .filter(|(_, value)| self.0.iter().any(|r| value(r) != 0.0));
        let lines: Vec<Line> = shown.map(line).collect();
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
