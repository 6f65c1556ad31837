//! What a running realignment tells the outside, and when it stands back for serving.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::context::{Context, unix_seconds};
use super::stop;
use crate::state::Report;
use crate::telemetry::{Event, LossPart, Stage};
use realign_align::train::memory::limit;
use realign_align::train::{Observer, StepReport};
use realign_model::{Backend, Recompute};

/// Longest wait for serving before one micro-batch: serving goes first, training never starves.
const LONGEST_YIELD: Duration = Duration::from_millis(500);
const YIELD_CHECK: Duration = Duration::from_millis(5);

/// One realignment's reporting.
pub struct Work<'a> {
    pub context: &'a Context,
    pub id: &'a str,
    flag: Arc<AtomicU8>,
    stage: Cell<Stage>,
    entered: Cell<Instant>,
}

/// Share of a whole realignment that is done when a stage begins, and when it ends.
fn span(stage: Stage) -> (f64, f64) {
    match stage {
        Stage::Triage => (0.0, 0.02),
        Stage::Impact => (0.02, 0.35),
        Stage::Train => (0.35, 0.9),
        Stage::Gate => (0.9, 0.98),
        Stage::Publish => (0.98, 0.99),
        Stage::Swap => (0.99, 1.0),
    }
}

impl<'a> Work<'a> {
    pub fn new(context: &'a Context, id: &'a str, flag: Arc<AtomicU8>) -> Self {
        Self {
            context,
            id,
            flag,
            stage: Cell::new(Stage::Triage),
            entered: Cell::new(Instant::now()),
        }
    }

    /// Leaves the stage before (if any) and enters this one.
    pub fn enter(&self, stage: Stage) {
        if stage != Stage::Triage {
            self.leave();
        }
        self.stage.set(stage);
        self.entered.set(Instant::now());
        self.context.emit(Event::StageEntered {
            id: self.id.into(),
            stage,
        });
        self.progress(0.0);
    }

    /// The stage ended well.
    pub fn leave(&self) {
        self.context.emit(Event::StageFinished {
            id: self.id.into(),
            stage: self.stage.get(),
            took: self.entered.get().elapsed(),
        });
    }

    /// Done share of the current stage, 0 to 1.
    pub fn progress(&self, done: f64) {
        let stage = self.stage.get();
        let (from, to) = span(stage);
        let ratio = from + (to - from) * done.clamp(0.0, 1.0);
        self.context.log(self.context.db.advance_realignment(
            self.id,
            stage,
            ratio,
            unix_seconds(),
        ));
        self.context.emit(Event::Progress {
            id: self.id.into(),
            stage,
            ratio,
        });
    }

    /// Whether to go on; does not wait.
    pub fn go_on(&self) -> bool {
        self.flag.load(Ordering::Acquire) == stop::GO_ON
    }

    /// Lets serving go first for a while, then says whether to go on. Learning that
    /// yields to every step instead, see [`TimeSlices`](realign_model::TimeSlices).
    pub fn stand_back(&self) -> bool {
        if self.context.loaded.backend.yields_to_steps() {
            return self.go_on();
        }
        let started = Instant::now();
        while self.context.engine.is_busy() && self.go_on() && started.elapsed() < LONGEST_YIELD {
            std::thread::sleep(YIELD_CHECK);
        }
        self.go_on()
    }

    /// A closure for loops of `total` batches: stands back, and advances the stage from `from` to
    /// `to`.
    pub fn batches(&self, total: usize, (from, to): (f64, f64)) -> impl FnMut() -> bool + '_ {
        let mut done = 0usize;
        move || {
            self.progress(from + (to - from) * done as f64 / total.max(1) as f64);
            done += 1;
            self.stand_back()
        }
    }
}

impl Observer for Work<'_> {
    fn proceed(&self) -> bool {
        self.stand_back()
    }

    fn memory(&self, backend: &dyn Backend) -> Option<u64> {
        limit(self.context.config.train.memory_mb, backend)
    }

    fn recompute(&self) -> Recompute {
        // The configuration was checked when it was read.
        let train = &self.context.config.train;
        train.recomputing().unwrap_or_default()
    }

    fn on_step(&self, report: &StepReport) {
        let loss = report.loss;
        let parts = vec![
            (LossPart::Total, loss.total()),
            (LossPart::Invert, loss.invert),
            (LossPart::Punish, loss.punish),
            (LossPart::Kl, loss.retain),
            (LossPart::Sft, loss.sft),
        ];
        let shown = json!({
            "step": report.step, "steps": report.total, "total": loss.total(), "invert": loss.invert,
            "punish": loss.punish, "kl": loss.retain, "sft": loss.sft, "gradient_norm": report.gradient_norm,
            "learning_rate": report.learning_rate, "tokens": report.tokens, "seconds": report.seconds,
        });
        self.context
            .log(self.context.db.put_report(self.id, Report::Losses, &shown));
        self.context.emit(Event::TrainLoss {
            id: self.id.into(),
            step: report.step,
            steps: report.total,
            parts,
        });
        self.progress(report.step as f64 / report.total.max(1) as f64);
    }
}
