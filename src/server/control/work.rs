//! What a running realignment tells the outside, and when it stands back for serving.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::context::Context;
use super::inputs::checkpoints;
use super::realign::Job;
use crate::state::{Report, ScoreRow};
use crate::telemetry::{Event, LossPart, Stage};
use realign_align::pipeline::{self, Cache, Known, Phase, RawScores, Scored};
use realign_align::train::examples::TokenPair;
use realign_align::train::memory::limit;
use realign_align::train::{self, StepReport, WeightScale};
use realign_core::clock::unix_seconds;
use realign_core::crash_point;
use realign_model::host_memory::Headroom;
use realign_model::{Backend, Recompute};

/// Longest wait for serving before one micro-batch: serving goes first, training never starves.
const LONGEST_YIELD: Duration = Duration::from_millis(500);
const YIELD_CHECK: Duration = Duration::from_millis(5);
/// Share that a round's steps are of what is left of training. Then its prompts are asked again, and another round may follow.
const STEPS: f64 = 0.7;
/// Share of a stage with an exam that its answers take.
pub(super) const EXAMINED: f64 = 0.7;
/// By how much a stage has to move to be told, because telling writes to disk.
const TOLD: f64 = 0.005;

/// One realignment's reporting.
pub(crate) struct Work<'a> {
    pub(crate) context: &'a Context,
    job: &'a Job,
    stage: Cell<Stage>,
    entered: Cell<Instant>,
    /// When training began.
    trains_since: Cell<Instant>,
    /// Rounds of training that ended.
    rounds: Cell<i32>,
    /// Whether a further round was due after its time.
    is_late: Cell<bool>,
    reached: Reached,
}

/// Share of a whole realignment that is done when a stage begins, and when it ends.
fn span(stage: Stage) -> (f64, f64) {
    match stage {
        Stage::Triage => (0.0, 0.02),
        Stage::Exam => (0.02, 0.1),
        Stage::Gather => (0.1, 0.2),
        Stage::Impact => (0.2, 0.4),
        Stage::Train => (0.4, 0.8),
        Stage::Gate => (0.8, 0.98),
        Stage::Publish => (0.98, 0.99),
        Stage::Swap => (0.99, 1.0),
    }
}

/// Done share of training when a round begins, when its steps end, and when its candidate is reviewed: what
/// a further round takes is not known before.
fn round(before: i32) -> (f64, f64, f64) {
    let begun = 1.0 - (1.0 - STEPS).powi(before);
    let stepped = begun + (1.0 - begun) * STEPS;
    (begun, stepped, stepped + (1.0 - stepped) * STEPS)
}

/// The done share of a stage, as it was told last.
#[derive(Default)]
struct Reached(Cell<f64>);

impl Reached {
    /// Whether a share is beyond it, far enough to be told.
    fn is_passed(&self, done: f64) -> bool {
        done >= self.0.get() + TOLD
    }
}

/// Done share of a stage, where `progress` is that of the whole realignment.
pub(super) fn within(stage: Stage, progress: f64) -> f64 {
    let (from, to) = span(stage);
    ((progress - from) / (to - from)).clamp(0.0, 1.0)
}

impl<'a> Work<'a> {
    pub(crate) fn new(context: &'a Context, job: &'a Job) -> Self {
        Self {
            context,
            job,
            stage: Cell::new(Stage::Triage),
            entered: Cell::new(Instant::now()),
            trains_since: Cell::new(Instant::now()),
            rounds: Cell::new(0),
            is_late: Cell::new(false),
            reached: Reached::default(),
        }
    }

    /// Leaves the stage before (if any) and enters this one.
    pub(crate) fn enter(&self, stage: Stage) {
        if stage != Stage::Triage {
            self.leave();
        }
        self.stage.set(stage);
        self.entered.set(Instant::now());
        self.context.emit(Event::StageEntered {
            id: self.job.id.clone(),
            stage,
        });
        self.tell(0.0);
    }

    /// The stage ended well.
    pub(crate) fn leave(&self) {
        self.context.emit(Event::StageFinished {
            id: self.job.id.clone(),
            stage: self.stage.get(),
            took: self.entered.get().elapsed(),
        });
    }

    /// Done share of the current stage, 0 to 1. It never goes back, and is told where it has moved.
    pub(crate) fn progress(&self, done: f64) {
        let done = done.clamp(0.0, 1.0);
        if self.reached.is_passed(done) {
            self.tell(done);
        }
    }

    fn tell(&self, done: f64) {
        self.reached.0.set(done);
        let stage = self.stage.get();
        let (from, to) = span(stage);
        let ratio = from + (to - from) * done;
        self.context.log(self.context.db.advance_realignment(
            &self.job.id,
            stage,
            ratio,
            unix_seconds(),
        ));
        self.context.emit(Event::Progress {
            id: self.job.id.clone(),
            stage,
            ratio,
        });
    }

    /// Counts answers, of which so many are due, as progress of the current stage between two shares.
    pub(super) fn counting(&self, due: usize, (from, to): (f64, f64)) -> impl Fn() + '_ {
        let answered = Cell::new(0);
        move || {
            answered.set(answered.get() + 1);
            let done = answered.get() as f64 / due.max(1) as f64;
            self.progress(from + (to - from) * done.min(1.0));
        }
    }

    /// The shares of training between which the round's candidate is reviewed.
    pub(super) fn review(&self) -> (f64, f64) {
        let (_, steps, review) = round(self.rounds.get());
        (steps, review)
    }

    /// Whether to go on; does not wait.
    pub(crate) fn go_on(&self) -> bool {
        self.job.flag.get().is_none()
    }

    /// `train.max_minutes`, if a further round was due after them.
    pub(super) fn left_out(&self) -> Option<u64> {
        let minutes = self.context.config.train.max_time.as_secs() / 60;
        self.is_late.get().then_some(minutes)
    }

    /// Lets serving go first for a while, then says whether to go on. Learning that
    /// yields to every step by itself does not, see [`TimeSlices`](realign_model::TimeSlices).
    pub(crate) fn stand_back(&self) -> bool {
        if self.context.loaded.backend.yields_to_steps() {
            return self.go_on();
        }
        let started = Instant::now();
        while self.context.engine.is_busy() && self.go_on() && started.elapsed() < LONGEST_YIELD {
            #[expect(
                clippy::disallowed_methods,
                reason = "the engine does not say when it becomes idle"
            )]
            std::thread::sleep(YIELD_CHECK);
        }
        self.go_on()
    }
}

impl train::Observer for Work<'_> {
    fn proceed(&self) -> bool {
        self.stand_back()
    }

    fn is_wanted(&self) -> bool {
        self.go_on()
    }

    fn memory(&self, backend: &dyn Backend) -> Option<Headroom> {
        limit(self.context.config.train.memory_mb, backend)
    }

    fn recompute(&self) -> Recompute {
        self.context.config.train.recompute
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
        self.context.log(
            self.context
                .db
                .put_report(&self.job.id, Report::Losses, &shown),
        );
        self.context.emit(Event::TrainLoss {
            id: self.job.id.clone(),
            step: report.step,
            steps: report.total,
            parts,
        });
        let (from, to, _) = round(self.rounds.get());
        let done = report.step as f64 / report.total.max(1) as f64;
        self.progress(from + (to - from) * done);
    }
}

impl pipeline::Observer for Work<'_> {
    fn enter(&self, phase: Phase, _units: usize) {
        match phase {
            Phase::Reference => self.enter(Stage::Impact),
            // The same stage of a realignment.
            Phase::Impact => {}
            Phase::Train => {
                self.enter(Stage::Train);
                self.trains_since.set(Instant::now());
            }
            // The same stage of a realignment.
            Phase::Again => self.rounds.set(self.rounds.get() + 1),
        }
    }

    fn on_pass(&self, phase: Phase, done: usize, units: usize) {
        if phase == Phase::Impact {
            crash_point(&format!("impact:after-pass-{done}"));
        }
        let weights = self.context.recipe.weight_scale;
        let (from, to) = match phase {
            Phase::Reference if weights == WeightScale::Uniform => (0.0, 1.0),
            Phase::Reference => (0.0, 0.3),
            Phase::Impact | Phase::Train | Phase::Again => (0.3, 1.0),
        };
        self.progress(from + (to - from) * done as f64 / units.max(1) as f64);
    }

    fn on_scored(&self, scored: &Scored) {
        tracing::info!(
            id = self.job.id,
            conflicts = scored.scores.len(),
            clamped = scored.clamped_ratio,
            "impact"
        );
        let row = |score: &pipeline::Score| ScoreRow {
            pair_id: scored.examples[score.index].id.clone(),
            raw: score.raw,
            weight: score.weight,
        };
        let rows: Vec<ScoreRow> = scored.scores.iter().map(row).collect();
        let db = &self.context.db;
        self.context
            .log(db.put_scores(&self.job.inputs.hash, &rows));
    }

    fn has_time(&self) -> bool {
        let limit = self.context.config.train.max_time;
        let is_late = self.trains_since.get().elapsed() >= limit;
        if is_late && !self.is_late.replace(true) {
            tracing::warn!(
                id = self.job.id,
                minutes = limit.as_secs() / 60,
                "the candidate still gets something wrong, and no further round of training begins: train.max_minutes has passed"
            );
        }
        !is_late
    }

    fn checkpoints(&self) -> Option<PathBuf> {
        Some(checkpoints(&self.context.config, &self.job.inputs))
    }

    fn cache(&self) -> &dyn Cache {
        self
    }
}

/// Scores of an interrupted realignment, by the hash of its inputs.
impl Cache for Work<'_> {
    fn scores(&self, pairs: &[TokenPair]) -> Option<Known<RawScores>> {
        let rows = self.context.db.scores(&self.job.inputs.hash);
        let rows = self.context.log(rows)?;
        Some(Known {
            value: known_scores(pairs, &rows)?,
            seconds: 0.0,
        })
    }
}

/// The stored scores of exactly these conflicts, or `None`.
fn known_scores(pairs: &[TokenPair], rows: &[ScoreRow]) -> Option<RawScores> {
    let by_id: HashMap<&str, f64> = rows.iter().map(|r| (r.pair_id.as_str(), r.raw)).collect();
    let conflicts = pairs
        .iter()
        .enumerate()
        .filter(|(_, pair)| pair.category.is_conflict());
    conflicts
        .map(|(i, pair)| by_id.get(pair.id.as_str()).map(|raw| (i, *raw)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_on_where_the_one_before_began_its_review() {
        let (first, second, third) = (round(0), round(1), round(2));
        assert_eq!((first.0, first.1), (0.0, STEPS));
        assert_eq!((first.1, second.1), (second.0, third.0));
        for (begun, stepped, reviewed) in [first, second, third] {
            assert!(begun < stepped && stepped < reviewed && reviewed < 1.0);
        }
    }

    #[test]
    fn progress_never_goes_back_and_is_told_where_it_moves() {
        let reached = Reached::default();
        assert!(!reached.is_passed(0.001), "written to disk for nothing");
        assert!(reached.is_passed(0.01));
        reached.0.set(0.5);
        assert!(!reached.is_passed(0.4));
        assert!(reached.is_passed(1.0));
    }
}
