//! The control loop's thread: events, and a timer on which what is wanted is compared with what is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Event;
use super::again::Again;
use super::begin::{self, Closing, Owed};
use super::context::Context;
use super::data::DataWatch;
use super::directory::Directory;
use super::dryrun::DryRun;
use super::error::{BeginError, StartError};
use super::examining::Examining;
use super::stop::StopFlag;
use super::surroundings::Surroundings;
use realign_align::policy::Snapshot;
use realign_core::{StopReason, Trigger};

/// How long after an exam that came to no result the next one is sat.
const FIRST_EXAM_RETRY: Duration = Duration::from_secs(30);
const LAST_EXAM_RETRY: Duration = Duration::from_secs(1800);

/// The realignment in progress.
pub(super) struct Running {
    pub(super) id: String,
    pub(super) trigger: Trigger,
    pub(super) revision: String,
    pub(super) flag: Arc<StopFlag>,
    pub(super) started: Instant,
    pub(super) thread: JoinHandle<()>,
}

/// The loop's state, owned by its thread.
pub(super) struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) events: Sender<Event>,
    inbox: Receiver<Event>,
    pub(super) surroundings: Box<dyn Surroundings>,
    pub(super) directory: Directory,
    pub(super) data: DataWatch,
    /// The files of the set that was accepted last; `None` if none ever was.
    pub(super) accepted: Option<Snapshot>,
    /// Whether it could be read which set that is.
    pub(super) accepted_read: bool,
    pub(super) running: Option<Running>,
    /// The exam that is being sat by itself.
    pub(super) examining: Option<Examining>,
    /// The report on `dryrun` policies that is being made.
    pub(super) dryrun: Option<DryRun>,
    /// Whether an exam was put off because a realignment was running.
    exam_due: bool,
    /// An exam that came to no result for a reason that may pass.
    exam_again: Again,
    /// What waits for the running realignment to stop.
    pub(super) pending: Option<Trigger>,
    /// A realignment that could not begin, or failed for a reason that may pass.
    pub(super) owed: Option<Owed>,
    /// Realignments that failed for a reason that may pass.
    pub(super) hindered: Again,
    /// Ended realignments whose rows could not be written.
    pub(super) closing: Vec<Closing>,
}

impl Worker {
    pub(super) fn new(
        context: Arc<Context>,
        events: Sender<Event>,
        inbox: Receiver<Event>,
        surroundings: Box<dyn Surroundings>,
    ) -> Self {
        let settle = Duration::from_millis(context.config.watch.settle_ms);
        let data = DataWatch::new(surroundings.data(&context), settle);
        Self {
            data,
            context,
            events,
            inbox,
            surroundings,
            directory: Directory::new(settle),
            accepted: None,
            accepted_read: false,
            running: None,
            examining: None,
            dryrun: None,
            exam_due: false,
            exam_again: Again::new(FIRST_EXAM_RETRY, LAST_EXAM_RETRY),
            pending: None,
            owed: None,
            hindered: Again::new(begin::FIRST_RERUN, begin::LAST_RERUN),
            closing: Vec::new(),
        }
    }

    pub(super) fn run(mut self) {
        let vital = self.context.vital.clone();
        vital.beat();
        self.start();
        let poll = Duration::from_millis(self.context.config.watch.poll_ms);
        let mut next_exam = self.next_exam();
        let mut next_poll = Instant::now() + poll;
        loop {
            let wake = [next_exam, Some(next_poll), self.directory.next()];
            let wake = wake.into_iter().flatten().min().unwrap_or(next_poll);
            let wait = wake.saturating_duration_since(Instant::now());
            vital.rest();
            let received = self.inbox.recv_timeout(wait);
            vital.beat();
            match received {
                Ok(Event::Shutdown) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if next_exam.is_some_and(|at| at <= now) {
                next_exam = self.next_exam();
                self.examine();
            }
            if next_poll <= now {
                next_poll = now + poll;
                self.reconcile(now);
            } else if self.directory.next().is_some_and(|at| at <= now) {
                self.look_at_policies(false);
            }
        }
        self.stop();
    }

    /// Begins from what the last process left.
    pub(super) fn start(&mut self) {
        if self.context.follows() {
            // Which policies its generations were made for is the controller's matter.
            self.context.has_looked.store(true, Ordering::Release);
            return self.collect();
        }
        self.look_at_policies(true);
        if self.accepted_read && self.accepted.is_none() {
            // Refused, and there is nothing to go back to: waiting longer changes nothing.
            self.context.has_looked.store(true, Ordering::Release);
        }
        if self.running.is_none() {
            self.collect();
        }
    }

    /// Compares what is wanted with what is: policies, the pointer, and what could not be done.
    pub(super) fn reconcile(&mut self, now: Instant) {
        if self.context.follows() {
            return self.context.pointer.restore();
        }
        self.look_at_policies(false);
        self.look_at_data(now);
        self.context.pointer.restore();
        self.close_what_does_not_run();
        self.begin_owed(now);
        self.examine_again(now);
    }

    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::PoliciesChanged => self.look_at_policies(false),
            Event::Reload => {
                // Before the look: what is asked for from now on is another one.
                self.context.reload_waits.store(false, Ordering::Release);
                self.look_at_policies(true);
            }
            Event::ClearPolicies(reply) => {
                let _disconnected = reply.send(self.clear_policies());
            }
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
                // The policies may have changed while it was sat.
                if self.exam_due {
                    self.examine();
                }
            }
            Event::ServingChanged => self.examine_if_unknown(),
            Event::Unpinned => self.unpinned(),
            Event::StoreChanged => self.store_changed(),
            Event::Collect(options, reply) => {
                let _disconnected = reply.send(self.collect_on_request(options));
            }
            Event::Drifted(why) => self.drifted(&why),
            Event::Unhealthy(generation) => self.leave(&generation),
            // The loop ends on it.
            Event::Shutdown => {}
        }
    }

    pub(super) fn stop(&mut self) {
        self.dryrun = None;
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

    /// Live answers of what serves stopped complying.
    fn drifted(&mut self, why: &str) {
        tracing::warn!(why, "live answers drift");
        if self.running.is_none() {
            self.begin_or_owe(Trigger::Drift);
        }
    }

    /// When the clock next starts an exam.
    fn next_exam(&self) -> Option<Instant> {
        let interval = self.context.config.exam.interval_s;
        (interval > 0).then(|| Instant::now() + Duration::from_secs(interval))
    }

    /// Has what serves sit the exam; after the running realignment, if there is one.
    pub(super) fn examine(&mut self) {
        if self.context.follows() {
            return;
        }
        if self.running.is_some() || self.examining.is_some() {
            self.exam_due = true;
            return;
        }
        self.exam_due = false;
        let (context, events) = (self.context.clone(), self.events.clone());
        match self.surroundings.examine(context, events) {
            Ok(examining) => self.examining = Some(examining),
            Err(error) => self.context.keep_failure(error.to_string()),
        }
    }

    /// Has what serves sit the exam if it has not, or if that was put off.
    pub(super) fn examine_if_unknown(&mut self) {
        if self.exam_due || self.context.serving_report().is_none() {
            self.examine();
        }
    }

    /// Has what serves sit the exam again if a judge or the engine did not answer: waiting for the
    /// clock would leave what is so unknown for an hour.
    fn examine_again(&mut self, now: Instant) {
        if self.running.is_some() || self.examining.is_some() {
            return;
        }
        if !self.context.exam_was_hindered() {
            self.exam_again.settled();
        } else if !self.exam_again.has_failed() {
            self.exam_again.failed(now);
        } else if self.exam_again.is_due(now) {
            self.exam_again.failed(now);
            self.examine();
        }
    }

    fn examine_on_request(&mut self) -> Result<(), StartError> {
        if self.context.follows() {
            let why =
                "this server follows a store and has no policies; exams run on the controller";
            return Err(BeginError::Elsewhere(why.into()).into());
        }
        match &self.running {
            Some(running) => Err(StartError::Running(running.id.clone())),
            None => {
                self.examine();
                Ok(())
            }
        }
    }
}
