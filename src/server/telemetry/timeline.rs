//! Stages and losses of recent realignments, kept in memory for the operators' page. The database
//! keeps only the outcome of each.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use schemars::JsonSchema;
use serde::Serialize;

use super::event::{Event, LossPart, Stage};

/// Number of realignments kept.
const REALIGNMENTS: usize = 8;
/// Maximum number of points in a loss curve, about one per pixel of the chart.
const POINTS: usize = 400;

/// The stages and losses of a realignment.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(crate) struct Timeline {
    #[serde(skip)]
    id: String,
    /// The stages entered, in order.
    pub(crate) stages: Vec<StageTime>,
    /// Training steps, thinned out evenly.
    pub(crate) losses: Vec<LossPoint>,
    /// One in this many steps is kept.
    #[serde(skip)]
    stride: usize,
}

/// The losses of a training step.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct LossPoint {
    /// From 1.
    pub(crate) step: usize,
    /// Steps in all.
    pub(crate) steps: usize,
    /// Value of each part; `null` in JSON if it is not finite.
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Option<f64>>")]
    pub(crate) parts: BTreeMap<LossPart, f64>,
}

/// When a stage began and how long it took.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct StageTime {
    /// The stage.
    #[schemars(schema_with = "super::schemas::stage")]
    pub(crate) stage: Stage,
    /// When it began, in Unix seconds.
    pub(crate) started_at: u64,
    /// `None` while it runs, or if it failed.
    pub(crate) took_seconds: Option<f64>,
}

/// The timelines of recent realignments.
#[derive(Debug, Default)]
pub(crate) struct Timelines {
    all: Mutex<VecDeque<Timeline>>,
}

impl Timelines {
    /// Applies an event that happened at `now`, in Unix seconds.
    pub(super) fn record(&self, event: &Event, now: u64) {
        match event {
            Event::RealignmentStarted { id, .. } => self.begin(id),
            Event::StageEntered { id, stage } => self.with(id, |timeline| {
                timeline.stages.push(StageTime {
                    stage: *stage,
                    started_at: now,
                    took_seconds: None,
                });
            }),
            Event::StageFinished { id, stage, took } => self.with(id, |timeline| {
                let entered = timeline.stages.iter_mut().rev().find(|s| s.stage == *stage);
                if let Some(entered) = entered {
                    entered.took_seconds = Some(took.as_secs_f64());
                }
            }),
            Event::TrainLoss {
                id,
                step,
                steps,
                parts,
            } => self.with(id, |timeline| {
                timeline.add(LossPoint {
                    step: *step,
                    steps: *steps,
                    parts: parts.iter().copied().collect(),
                });
            }),
            _ => {}
        }
    }

    /// A realignment's timeline; `None` if it ran before this process started or too long ago.
    pub(crate) fn get(&self, id: &str) -> Option<Timeline> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|timeline| timeline.id == id).cloned()
    }

    fn begin(&self, id: &str) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|timeline| timeline.id != id);
        all.push_back(Timeline {
            id: id.into(),
            stride: 1,
            ..Timeline::default()
        });
        if all.len() > REALIGNMENTS {
            all.pop_front();
        }
    }

    fn with(&self, id: &str, change: impl FnOnce(&mut Timeline)) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(timeline) = all.iter_mut().find(|timeline| timeline.id == id) {
            change(timeline);
        }
    }
}

impl Timeline {
    fn add(&mut self, point: LossPoint) {
        let last = point.step == point.steps;
        if !last && !point.step.is_multiple_of(self.stride) {
            return;
        }
        self.losses.push(point);
        if self.losses.len() > POINTS {
            self.stride *= 2;
            let stride = self.stride;
            self.losses
                .retain(|point| point.step.is_multiple_of(stride));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stages_and_losses_are_kept_and_bounded() {
        let timelines = Timelines::default();
        let id = || "r1".to_string();
        let started = |id: String| Event::RealignmentStarted {
            id,
            policy_revision: "rev".into(),
        };
        timelines.record(&started(id()), 10);
        let stage = Stage::Train;
        timelines.record(&Event::StageEntered { id: id(), stage }, 12);
        for step in 1..=5000 {
            let parts = vec![(LossPart::Total, 1.0 / step as f64)];
            let (id, steps) = (id(), 5000);
            timelines.record(
                &Event::TrainLoss {
                    id,
                    step,
                    steps,
                    parts,
                },
                13,
            );
        }
        let took = Duration::from_secs(3);
        timelines.record(
            &Event::StageFinished {
                id: id(),
                stage,
                took,
            },
            15,
        );
        let timeline = timelines.get("r1").unwrap();
        assert_eq!(timeline.stages[0].took_seconds, Some(3.0));
        let points = timeline.losses.len();
        assert!((POINTS / 2..=POINTS).contains(&points), "{points}");
        assert_eq!(timeline.losses.last().unwrap().step, 5000);
        let first = serde_json::to_value(&timeline.losses[0]).unwrap();
        assert!(first["step"].is_u64() && first["total"].is_f64(), "{first}");
        (0..REALIGNMENTS).for_each(|n| timelines.record(&started(format!("x{n}")), 20));
        assert!(timelines.get("r1").is_none());
    }
}
