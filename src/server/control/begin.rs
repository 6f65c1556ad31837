//! How realignments begin and end. One that cannot begin is owed: it is tried again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Event;
use super::attempts;
use super::error::{BeginError, StartError};
use super::realign::{self, Ended, Job, Stop};
use super::stop::StopFlag;
use super::worker::{Running, Worker};
use crate::state::StateError;
use crate::telemetry::{self, Outcome};
use realign_align::pipeline::Inputs;
use realign_core::clock::unix_seconds;
use realign_core::{StopReason, Trigger};

const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(120);

/// A realignment that could not begin.
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
        self.begin(Trigger::Operator)?
            .ok_or(StartError::NothingToDo)
    }

    /// Begins a realignment; if that fails, it is tried again until it begins.
    pub(super) fn begin_or_owe(&mut self, trigger: Trigger) {
        if let Some(pin) = self.context.pinned() {
            tracing::warn!(
                generation = pin.generation,
                "an operator pinned what serves: no realignment until `realign adapters unpin`"
            );
            self.owed = None;
            return;
        }
        let before = self.owed.take();
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
                    at: Instant::now() + wait,
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
        let active = self.context.active();
        let set = active.set;
        let inputs = self.context.inputs(&set)?;
        let unfinished = self.context.supersede_unfinished(&inputs.hash)?;
        let at_start = trigger == Trigger::Start && self.context.fallback().is_none();
        if unfinished.is_none() && at_start && self.context.has_ended(&inputs.hash) {
            return Ok(None);
        }
        attempts::check(&self.context, (&inputs.hash, trigger), unfinished.as_ref())?;
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
        let run = move || {
            let hash = job.inputs.hash.clone();
            let ended = attempts::attempt(&context, &hash, || realign::run(&context, job));
            // A closed channel means that the loop has ended; the unfinished row is resumed at the
            // next start.
            let _closed = events.send(Event::Ended(Box::new(ended)));
        };
        // Candle traverses a graph recursively, one stack frame per operation.
        let thread = std::thread::Builder::new()
            .name("realign".into())
            .stack_size(256 << 20)
            .spawn(run);
        let thread = match thread {
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
        self.running = Some(Running {
            id,
            trigger,
            revision,
            flag,
            started: Instant::now(),
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
        let (outcome, generation, detail) = match ended.result {
            Ok(done) => (done.outcome, Some(done.generation), done.detail),
            Err(Stop::Rejected { generation, reason }) => {
                (Outcome::Rejected, Some(generation), Some(reason))
            }
            Err(Stop::Failed(reason)) => (Outcome::Failed, None, Some(reason)),
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
            self.context.end_fallback();
        }
        self.close(closing, (running.trigger, running.started.elapsed()));
        self.collect();
        if let Some(trigger) = self.pending.take() {
            self.begin_or_owe(trigger);
        }
        self.examine_if_unknown();
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
    pub(super) fn close_rows(&mut self) {
        let db = self.context.db.clone();
        self.closing.retain(|row| {
            let result = (row.generation.as_deref(), row.detail.as_deref());
            let written = db.finish_realignment(&row.id, row.outcome, result, unix_seconds());
            matches!(written, Err(StateError::Sql(_)))
        });
    }
}
