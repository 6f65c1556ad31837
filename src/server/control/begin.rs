//! How realignments begin and end. One that cannot begin is owed: it is tried again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempts;
use super::error::{BeginError, StartError};
use super::realign::{Ended, Job, Stop};
use super::stop::StopFlag;
use super::worker::{Running, Worker};
use crate::state::{RealignmentRow, StateError};
use crate::telemetry::{self, Outcome};
use realign_align::pipeline::Inputs;
use realign_core::clock::unix_seconds;
use realign_core::{StopReason, Trigger};

const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(120);
/// How long after a realignment that failed for a reason that may pass the next one begins.
pub(super) const FIRST_RERUN: Duration = Duration::from_secs(5);
pub(super) const LAST_RERUN: Duration = Duration::from_secs(600);

/// A realignment that could not begin, or failed for a reason that may pass.
pub(super) struct Owed {
    trigger: Trigger,
    at: Instant,
    wait: Duration,
}

/// How a realignment ended, while that cannot be written.
pub(super) struct Closing {
    id: String,
    outcome: Outcome,
    generation: Option<String>,
    detail: Option<String>,
}

impl Worker {
    pub(super) fn start_on_request(&mut self) -> Result<String, StartError> {
        if let Some(running) = &self.running {
            return Err(StartError::Running(running.id.clone()));
        }
        if let Some(pin) = self.context.pinned() {
            return Err(StartError::Pinned(pin.generation));
        }
        if !self.context.active().loaded {
            return Err(StartError::NoPolicies);
        }
        self.begin(Trigger::Operator)?
            .ok_or(StartError::NothingToDo)
    }

    /// The store that servers share names another generation, or lets this server publish.
    pub(super) fn store_changed(&mut self) {
        if self.running.is_none() {
            self.collect();
        }
        self.examine_if_unknown();
        if self.running.is_none() && self.context.may_not_realign().is_none() {
            let owed = self.owed.as_ref().map(|owed| owed.trigger);
            self.begin_or_owe(owed.unwrap_or(Trigger::Start));
        }
    }

    /// What was pinned may be replaced: a realignment that is due begins.
    pub(super) fn unpinned(&mut self) {
        if self.running.is_some() {
            // The pin may have kept the running one from serving what it led to.
            self.pending.get_or_insert(Trigger::Operator);
        } else {
            self.begin_or_owe(Trigger::Operator);
        }
    }

    /// Begins a realignment; if that fails, it is tried again until it begins.
    pub(super) fn begin_or_owe(&mut self, trigger: Trigger) {
        if let Some(pin) = self.context.pinned() {
            tracing::warn!(
                generation = pin.generation,
                "an operator pinned a generation: no realignment until `realign adapters unpin`"
            );
            self.owed = None;
            return;
        }
        let before = self.owed.take();
        if !self.context.active().loaded {
            // The set that becomes active first begins it.
            return;
        }
        match self.begin(trigger) {
            Ok(_) => self.context.set_blocked(None),
            // Trying again would end the process again.
            Err(BeginError::Died(why)) => self.context.set_blocked(Some(why)),
            Err(error) => {
                let wait = before.map_or(FIRST_RETRY, |owed| (owed.wait * 2).min(LAST_RETRY));
                let why = format!("a realignment could not begin: {error}; it is tried again");
                self.context.set_blocked(Some(why));
                self.owed = Some(Owed {
                    trigger,
                    at: self.surroundings.now() + wait,
                    wait,
                });
            }
        }
    }

    /// Tries again what could not begin.
    pub(super) fn begin_owed(&mut self, now: Instant) {
        if self.running.is_none()
            && let Some(trigger) = self
                .owed
                .as_ref()
                .filter(|owed| owed.at <= now)
                .map(|owed| owed.trigger)
        {
            self.begin_or_owe(trigger);
        }
    }

    /// Starts the realignment that the active set requires. At the server's start, one that has
    /// already ended is not run again, unless what it led to cannot be served.
    fn begin(&mut self, trigger: Trigger) -> Result<Option<String>, BeginError> {
        // Listed first: what changes while it is read is a change afterwards.
        let listing = self.surroundings.data(&self.context);
        let begun = self.begin_with_data(trigger);
        if matches!(begun, Ok(_) | Err(BeginError::Died(_))) {
            self.data.acted_on(listing);
        }
        begun
    }

    fn begin_with_data(&mut self, trigger: Trigger) -> Result<Option<String>, BeginError> {
        if let Some(why) = self.context.may_not_realign() {
            return Err(BeginError::Elsewhere(why));
        }
        self.context.db.check_place()?;
        let active = self.context.active();
        let set = active.set;
        let inputs = self.surroundings.inputs(&self.context, &set)?;
        // One that has ended is not resumed, even if its end could not be written before.
        self.close_rows()?;
        let unfinished = self.supersede_unfinished(&inputs.hash)?;
        let at_start = trigger == Trigger::Start && self.context.fallback().is_none();
        if unfinished.is_none() && at_start && self.context.has_ended(&inputs.hash) {
            return Ok(None);
        }
        let allowed = attempts::check(&self.context, (&inputs.hash, trigger), unfinished.as_ref());
        if let Err(error) = allowed {
            if let (BeginError::Died(why), Some(row)) = (&error, unfinished) {
                self.close_interrupted(row, (Outcome::Failed, why), trigger);
            }
            return Err(error);
        }
        // A realignment begins with the same exam.
        if let Some(examining) = self.examining.take() {
            examining.cancel();
        }
        let id = match unfinished {
            Some(row) => row.id,
            None => self.record(&inputs, set.revision())?,
        };
        let flag = Arc::new(StopFlag::default());
        let revision = set.revision().to_string();
        let job = Job {
            id: id.clone(),
            policies: set,
            matchers: active.matchers,
            inputs,
            flag: flag.clone(),
        };
        self.run_job(job, (trigger, revision))?;
        Ok(Some(id))
    }

    fn run_job(
        &mut self,
        job: Job,
        (trigger, revision): (Trigger, String),
    ) -> Result<(), BeginError> {
        let (id, flag) = (job.id.clone(), job.flag.clone());
        self.context.emit(telemetry::Event::RealignmentStarted {
            id: id.clone(),
            policy_revision: revision.clone(),
        });
        let (context, events) = (self.context.clone(), self.events.clone());
        let thread = match self.surroundings.realign(context, events, job) {
            Ok(thread) => thread,
            Err(error) => {
                let detail = Some(format!("its thread could not be started: {error}"));
                let closing = Closing {
                    id,
                    outcome: Outcome::Failed,
                    generation: None,
                    detail,
                };
                self.close(closing, (trigger, Duration::ZERO));
                return Err(error.into());
            }
        };
        self.context.set_realigning(true);
        self.owed = None;
        self.context.set_blocked(None);
        self.running = Some(Running {
            id,
            trigger,
            revision,
            flag,
            started: self.surroundings.now(),
            thread,
        });
        Ok(())
    }

    fn record(&self, inputs: &Inputs, revision: &str) -> Result<String, StateError> {
        let db = &self.context.db;
        let attempt = db.next_realignment()?;
        let id = format!("ra-{attempt:04}-{}", &inputs.hash[..8]);
        db.begin_realignment(&id, &inputs.hash, revision, unix_seconds())?;
        Ok(id)
    }

    pub(super) fn cancel(&mut self, id: &str) -> bool {
        match &self.running {
            Some(running) if running.id == id => {
                running.flag.set(StopReason::Cancelled);
                true
            }
            _ => false,
        }
    }

    pub(super) fn ended(&mut self, ended: Ended) {
        let Some(running) = self.running.take() else {
            return;
        };
        self.context.set_realigning(false);
        if self.context.is_closing()
            && matches!(ended.result, Err(Stop::Hindered(_) | Stop::Failed(_)))
        {
            // It was given up for the shutdown: the row stays unfinished, and the next start resumes it.
            return;
        }
        let hindered = matches!(ended.result, Err(Stop::Hindered(_)));
        let (outcome, generation, detail) = match ended.result {
            Ok(done) => (done.outcome, Some(done.generation), done.detail),
            Err(Stop::Rejected { generation, reason }) => {
                (Outcome::Rejected, Some(generation), Some(reason))
            }
            Err(Stop::Failed(reason)) => (Outcome::Failed, None, Some(reason)),
            Err(Stop::Hindered(reason)) => {
                let reason = format!("{reason}; it is tried again");
                (Outcome::Failed, None, Some(reason))
            }
            Err(Stop::Asked) => match running.flag.get() {
                // The row stays unfinished: the next start resumes it.
                Some(StopReason::Shutdown) => return,
                Some(StopReason::Superseded) => {
                    let why = "a newer policy set took its place";
                    (Outcome::Superseded, None, Some(why.into()))
                }
                Some(StopReason::Cancelled) => {
                    let why = "stopped by an operator";
                    (Outcome::Cancelled, None, Some(why.into()))
                }
                None => {
                    let why = "internal error: a stage stopped without being asked to";
                    (Outcome::Failed, None, Some(why.into()))
                }
            },
        };
        let closing = Closing {
            id: ended.id,
            outcome,
            generation,
            detail,
        };
        if matches!(outcome, Outcome::Succeeded | Outcome::NoConflict) {
            // The policies led to what serves, whether that is another generation or not.
            self.context.registry.offer();
            self.context.pointer.end_fallback();
        }
        let took = self.surroundings.now() - running.started;
        let why = closing.detail.clone().filter(|_| hindered);
        self.close(closing, (running.trigger, took));
        self.collect();
        self.rerun_later(running.trigger, why);
        if let Some(trigger) = self.pending.take() {
            self.begin_or_owe(trigger);
        }
        self.examine_if_unknown();
    }

    /// A realignment ended; one that failed for a reason that may pass is owed.
    fn rerun_later(&mut self, trigger: Trigger, why: Option<String>) {
        let Some(why) = why else {
            return self.hindered.settled();
        };
        let now = self.surroundings.now();
        let at = now + self.hindered.failed(now);
        self.context
            .set_blocked(Some(format!("the last realignment failed: {why}")));
        self.owed = Some(Owed {
            trigger,
            at,
            wait: FIRST_RETRY,
        });
    }

    /// Records an end; what cannot be written now is written later.
    fn close(&mut self, closing: Closing, how: (Trigger, Duration)) {
        let result = (closing.generation.clone(), closing.detail.clone());
        let written = self
            .context
            .finish(&closing.id, closing.outcome, result, how);
        if !written {
            self.closing.push(closing);
        }
    }

    /// Writes the ends that could not be written before.
    fn close_rows(&mut self) -> Result<(), StateError> {
        let db = self.context.db.clone();
        let mut failed = None;
        self.closing.retain(|row| {
            let result = (row.generation.as_deref(), row.detail.as_deref());
            // A row that is gone or closed needs nothing more.
            let written = db.finish_realignment(&row.id, row.outcome, result, unix_seconds());
            let retry = matches!(written, Err(StateError::Sql(_)));
            failed = written.err().filter(|_| retry).or(failed.take());
            retry
        });
        failed.map_or(Ok(()), Err)
    }

    /// No row stays open for which nothing runs, and which nothing is going to resume.
    pub(super) fn close_what_does_not_run(&mut self) {
        let closed = self.close_rows();
        if self.context.log(closed).is_none()
            || self.running.is_some()
            // What is owed is resumed, unless an operator pinned what serves meanwhile.
            || (self.owed.is_some() && self.context.pinned().is_none())
            || !self.context.active().loaded
        {
            return;
        }
        let rows = self.context.log(self.context.db.unfinished_realignments());
        for row in rows.unwrap_or_default() {
            let why = "the server stopped, and it was not resumed";
            self.close_interrupted(row, (Outcome::Superseded, why), Trigger::Start);
        }
    }

    /// The interrupted realignment with these inputs, if any; all other interrupted ones are closed
    /// as superseded.
    fn supersede_unfinished(
        &mut self,
        inputs_hash: &str,
    ) -> Result<Option<RealignmentRow>, StateError> {
        let mut rows = self.context.db.unfinished_realignments()?;
        let wanted = rows.iter().rposition(|row| row.inputs_hash == inputs_hash);
        let wanted = wanted.map(|at| rows.remove(at));
        for row in rows {
            let why = "the server stopped, and other policies or data are there now";
            self.close_interrupted(row, (Outcome::Superseded, why), Trigger::Start);
        }
        Ok(wanted)
    }

    fn close_interrupted(
        &mut self,
        row: RealignmentRow,
        (outcome, why): (Outcome, &str),
        trigger: Trigger,
    ) {
        let closing = Closing {
            id: row.id,
            outcome,
            generation: None,
            detail: Some(why.into()),
        };
        self.close(closing, (trigger, Duration::ZERO));
    }
}
