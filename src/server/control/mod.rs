//! The control loop: it runs one realignment at a time, for the newest policy set.
//!
//! One thread owns the mutable state (the active policy set, the running realignment) and processes
//! one [`Event`] at a time. Realignments run on a thread of their own and report back with an
//! event; the policy watcher only signals that the directory should be read again.

mod admin;
mod alignment;
mod context;
mod error;
mod exam;
mod examining;
mod gating;
mod inputs;
mod learn;
mod live;
mod manifest;
mod moderation;
mod oracle;
mod realign;
mod stop;
mod work;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::state::StateError;
use crate::telemetry::compliance::Answer;
use crate::telemetry::{self, Outcome};
use realign_align::oracle::{Matchers, Prepared, prepare_trusted};
use realign_align::pipeline::Inputs;
use realign_align::policy::{PolicySet, PolicyWatcher, WatchOptions};
use realign_core::clock::unix_seconds;
use realign_core::{StopReason, Trigger};

use context::Context;
pub use context::{Parts, initial_generation, load_generation};
pub use error::ControlError;
use error::{BeginError, ReadPoliciesError, StartError};
pub use exam::EngineAnswers;
use examining::Examining;
pub use inputs::{checkpoints, inputs};
pub use manifest::Origin;
use realign::{Ended, Job, Stop};
use stop::StopFlag;

/// Everything that the control loop reacts to.
enum Event {
    /// The policy directory's content changed, or an operator requested a reload.
    PoliciesChanged,
    /// An operator requests a realignment to the active set; the reply is its id.
    Start(Sender<Result<String, StartError>>),
    /// An operator cancels a realignment; the reply is whether it was running.
    Cancel(String, Sender<bool>),
    /// The running realignment ended.
    Ended(Box<Ended>),
    /// An operator wants what serves to sit the exam; the reply is whether it does.
    Examine(Sender<Result<(), StartError>>),
    /// The exam by itself ended.
    Examined,
    /// An operator made another generation serve.
    ServingChanged,
    /// Live answers stopped complying; holds what was seen.
    Drifted(String),
    /// The server is shutting down.
    Shutdown,
}

/// Handle of a running control loop, used by the operator routes.
pub(crate) struct Control {
    events: Sender<Event>,
    context: Arc<Context>,
    thread: Mutex<Option<JoinHandle<()>>>,
    watcher: Mutex<Option<PolicyWatcher>>,
}

impl Control {
    /// Starts the loop and the policy watcher, and realigns to the current policies unless that has
    /// been done already.
    ///
    /// # Errors
    /// [`ControlError`] if the recipe is unusable, or the watcher or the thread cannot be started.
    pub(crate) fn start(parts: Parts) -> Result<Self, ControlError> {
        let watch = WatchOptions {
            debounce: Duration::from_millis(parts.config.watch.debounce_ms),
            poll_interval: Duration::from_millis(parts.config.watch.poll_ms),
            ..WatchOptions::default()
        };
        let directory = parts.config.paths.policies.clone();
        let context = Arc::new(Context::new(parts)?);
        let (events, inbox) = channel();
        let watcher_events = events.clone();
        let watcher = PolicyWatcher::start(directory, watch, move || {
            // A closed channel means that the loop is shutting down.
            let _closed = watcher_events.send(Event::PoliciesChanged);
        })?;
        let worker = Loop {
            context: context.clone(),
            events: events.clone(),
            inbox,
            running: None,
            examining: None,
            pending: None,
            at_start: true,
        };
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || worker.run())?;
        Ok(Self {
            events,
            context,
            thread: Mutex::new(Some(thread)),
            watcher: Mutex::new(Some(watcher)),
        })
    }

    /// Asks the loop to read the policy directory again, as if it had changed. Returns at once.
    pub(crate) fn request_reload(&self) {
        // A closed channel means that the loop is shutting down.
        let _closed = self.events.send(Event::PoliciesChanged);
    }

    /// The active policies and the matchers their rules use.
    pub(crate) fn active_policies(&self) -> (Arc<PolicySet>, Arc<Matchers>) {
        let active = self.context.active();
        (active.set, active.matchers)
    }

    /// Counts a judged answer of a client; live answers that stop complying start a realignment.
    pub(crate) fn judged(&self, answer: &Answer, complies: bool) {
        let context = &self.context;
        let serving = context.registry.lease_current();
        // Answers of pinned generations say nothing about what serves.
        if answer.generation.as_deref() != Some(serving.id.0.as_str()) {
            return;
        }
        let policies = context.policies();
        let target = policies
            .gate()
            .min_compliance()
            .unwrap_or(context.config.gate.min_compliance);
        let asked = (serving.id.0.as_str(), answer.prompt.as_str());
        if let Some(share) = context.live.judged(asked, complies, target) {
            let why = format!(
                "{} of the last {} judged answers comply, and {:.0} % are asked for",
                share.count,
                share.of,
                target * 100.0
            );
            // A closed channel means that the loop is shutting down.
            let _closed = self.events.send(Event::Drifted(why));
        }
    }

    /// Stops a running realignment at its next step, to be resumed at the next start, and stops the
    /// loop and the policy watcher. Calling it again does nothing.
    pub(crate) fn shutdown(&self) {
        drop(self.watcher.lock().ok().and_then(|mut w| w.take()));
        let _already_ended = self.events.send(Event::Shutdown);
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the control loop's thread panicked");
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// The realignment in progress.
struct Running {
    id: String,
    trigger: Trigger,
    revision: String,
    flag: Arc<StopFlag>,
    started: Instant,
    thread: JoinHandle<()>,
}

struct Loop {
    context: Arc<Context>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    running: Option<Running>,
    /// The exam that is being sat by itself.
    examining: Option<Examining>,
    /// What waits for the running realignment to stop.
    pending: Option<Trigger>,
    at_start: bool,
}

impl Loop {
    fn run(mut self) {
        self.reload_policies();
        self.at_start = false;
        let mut next_exam = self.next_exam();
        loop {
            let event = match next_exam {
                Some(at) => match self
                    .inbox
                    .recv_timeout(at.saturating_duration_since(Instant::now()))
                {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => {
                        next_exam = self.next_exam();
                        self.examine();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                },
                None => match self.inbox.recv() {
                    Ok(event) => event,
                    Err(_) => break,
                },
            };
            match event {
                Event::PoliciesChanged => self.reload_policies(),
                Event::Start(reply) => {
                    // The caller may have disconnected; the realignment runs regardless.
                    let _disconnected = reply.send(self.start_on_request());
                }
                Event::Cancel(id, reply) => {
                    let _disconnected = reply.send(self.cancel(&id));
                }
                Event::Ended(ended) => self.ended(*ended),
                Event::Examine(reply) => {
                    let _disconnected = reply.send(self.examine_on_request());
                }
                Event::Examined => {
                    if let Some(examining) = self.examining.take() {
                        examining.join();
                    }
                }
                Event::ServingChanged => self.examine_if_unknown(),
                Event::Drifted(why) => self.drifted(&why),
                Event::Shutdown => break,
            }
        }
        if let Some(examining) = self.examining.take() {
            examining.cancel();
        }
        if let Some(running) = self.running.take() {
            running.flag.set(StopReason::Shutdown);
            if running.thread.join().is_err() {
                tracing::error!("the realignment's thread panicked");
            }
        }
    }

    /// Reads the directory and prepares the matchers of its rules.
    fn read_policies(&self) -> Result<(PolicySet, Prepared), ReadPoliciesError> {
        let set = PolicySet::load_dir(&self.context.config.paths.policies)?;
        let services = self.context.services(&set)?;
        let prepared = prepare_trusted(&set, &services)?;
        Ok((set, prepared))
    }

    /// Reads and activates the policies of the directory. A set that is invalid, fails its examples
    /// or has a rule below its minimum trust is refused and changes nothing.
    fn reload_policies(&mut self) {
        let (set, prepared) = match self.read_policies() {
            Ok(read) => read,
            Err(error) => {
                self.context.refuse_policies(error.to_string());
                return;
            }
        };
        let revision = set.revision().to_string();
        let unchanged = self.context.policies().revision() == revision && !self.at_start;
        self.context.activate_policies(set, prepared);
        self.context.keep_dryrun(self.context.report_dryrun());
        if unchanged {
            // Its examples or prompts may have changed, and with them the exam.
            self.examine();
            return;
        }
        self.context.clear_board();
        match &self.running {
            Some(running) if running.revision == revision => {}
            Some(running) => {
                running.flag.set(StopReason::Superseded);
                self.pending = Some(Trigger::Policy);
            }
            None => {
                let trigger = if self.at_start {
                    Trigger::Start
                } else {
                    Trigger::Policy
                };
                self.begin_or_report(trigger);
            }
        }
        self.examine_if_unknown();
    }

    fn start_on_request(&mut self) -> Result<String, StartError> {
        match &self.running {
            Some(running) => Err(StartError::Running(running.id.clone())),
            None => self
                .begin(Trigger::Operator)?
                .ok_or(StartError::NothingToDo),
        }
    }

    /// Live answers of what serves stopped complying.
    fn drifted(&mut self, why: &str) {
        tracing::warn!(why, "live answers drift");
        if self.running.is_none() {
            self.begin_or_report(Trigger::Drift);
        }
    }

    /// When the clock next starts an exam.
    fn next_exam(&self) -> Option<Instant> {
        let interval = self.context.config.exam.interval_s;
        (interval > 0).then(|| Instant::now() + Duration::from_secs(interval))
    }

    /// Has what serves sit the exam, unless that is going on anyway.
    fn examine(&mut self) {
        if self.running.is_some() || self.examining.is_some() {
            return;
        }
        let events = self.events.clone();
        let ended = move || {
            let _closed = events.send(Event::Examined);
        };
        match Examining::start(self.context.clone(), ended) {
            Ok(examining) => self.examining = Some(examining),
            Err(error) => self.context.keep_failure(error.to_string()),
        }
    }

    /// Has what serves sit the exam if it has not.
    fn examine_if_unknown(&mut self) {
        if self.context.serving_report().is_none() {
            self.examine();
        }
    }

    fn examine_on_request(&mut self) -> Result<(), StartError> {
        match &self.running {
            Some(running) => Err(StartError::Running(running.id.clone())),
            None => {
                self.examine();
                Ok(())
            }
        }
    }

    fn begin_or_report(&mut self, trigger: Trigger) {
        if let Err(error) = self.begin(trigger) {
            self.report_begin_error(&error);
        }
    }

    fn cancel(&mut self, id: &str) -> bool {
        match &self.running {
            Some(running) if running.id == id => {
                running.flag.set(StopReason::Cancelled);
                true
            }
            _ => false,
        }
    }

    /// Starts the realignment that the active set requires. At the server's start, one that has
    /// already ended is not run again: an operator may have rolled it back.
    fn begin(&mut self, trigger: Trigger) -> Result<Option<String>, BeginError> {
        let active = self.context.active();
        let set = active.set;
        let inputs = self.context.inputs(&set)?;
        let unfinished = self.context.supersede_unfinished(&inputs.hash);
        let at_start = trigger == Trigger::Start;
        if unfinished.is_none() && at_start && self.context.has_ended(&inputs.hash) {
            return Ok(None);
        }
        // A realignment begins with the same exam.
        if let Some(examining) = self.examining.take() {
            examining.cancel();
        }
        let id = match unfinished {
            Some(row) => row.id,
            None => self.record(&inputs, set.revision())?,
        };
        self.context.emit(telemetry::Event::RealignmentStarted {
            id: id.clone(),
            policy_revision: set.revision().into(),
        });
        let flag = Arc::new(StopFlag::default());
        let revision = set.revision().to_string();
        let job = Job {
            id: id.clone(),
            policies: set,
            matchers: active.matchers,
            inputs,
            flag: flag.clone(),
        };
        let (context, events) = (self.context.clone(), self.events.clone());
        let run = move || {
            let ended = realign::run(&context, job);
            // A closed channel means that the loop has ended; the unfinished row is resumed at the
            // next start.
            let _closed = events.send(Event::Ended(Box::new(ended)));
        };
        // Candle traverses a graph recursively, one stack frame per operation.
        let thread = std::thread::Builder::new()
            .name("realign".into())
            .stack_size(256 << 20)
            .spawn(run)?;
        self.context.set_realigning(true);
        self.running = Some(Running {
            id: id.clone(),
            trigger,
            revision,
            flag,
            started: Instant::now(),
            thread,
        });
        Ok(Some(id))
    }

    fn record(&self, inputs: &Inputs, revision: &str) -> Result<String, StateError> {
        let db = &self.context.db;
        let attempt = db.count_realignments()? + 1;
        let id = format!("ra-{attempt:04}-{}", &inputs.hash[..8]);
        db.begin_realignment(&id, &inputs.hash, revision, unix_seconds())?;
        Ok(id)
    }

    fn ended(&mut self, ended: Ended) {
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
        self.context.finish(
            &ended.id,
            outcome,
            generation,
            detail,
            (running.trigger, running.started.elapsed()),
        );
        if let Some(trigger) = self.pending.take() {
            self.begin_or_report(trigger);
        }
        self.examine_if_unknown();
    }

    fn report_begin_error(&self, error: &BeginError) {
        let error = error.to_string();
        self.context
            .emit(telemetry::Event::PolicyReloadFailed { error });
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}
