//! The control loop: it runs one realignment at a time, for the newest policy set.
//!
//! One thread owns the mutable state (the active policy set, the running realignment) and processes
//! one [`Event`] at a time. Events are hints: on a timer the loop compares what is wanted with what
//! is ([`worker`]). What serves has one writer ([`pointer`]).

mod admin;
mod again;
mod alignment;
mod attempts;
mod begin;
mod context;
mod data;
mod directory;
mod dryrun;
mod error;
mod exam;
mod examining;
mod fleet;
mod gathering;
mod gating;
mod inputs;
mod learn;
mod live;
mod manifest;
mod moderation;
mod named;
mod oracle;
mod pointer;
mod policies;
mod realign;
mod retention;
mod serving;
#[cfg(test)]
mod simulation;
mod stop;
mod supervised;
mod surroundings;
mod unhealthy;
mod work;
mod worker;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::api::CollectOptions;
use crate::api::answers::retention::Collected;
use crate::telemetry::compliance::Answer;
use realign_align::oracle::Matchers;
use realign_align::policy::{PolicySet, PolicyWatcher, WatchOptions};
use realign_engine::adapter::generation::GenerationId;

use context::Context;
pub use context::{Parts, initial_generation, load_generation};
pub use error::ControlError;
use error::{ClearError, StartError};
pub use exam::EngineAnswers;
pub(crate) use fleet::Member;
use fleet::MemberThread;
pub use inputs::{command_checkpoints, inputs};
pub use manifest::Origin;
use realign::Ended;
pub use retention::{CollectError, collect_offline};
use surroundings::System;
use worker::Worker;

/// Everything that the control loop reacts to.
enum Event {
    /// The policy directory's content may have changed.
    PoliciesChanged,
    /// An operator requested a reload: nothing has to rest first.
    Reload,
    /// An operator wants no policies; the reply is whether that is so now.
    ClearPolicies(Sender<Result<(), ClearError>>),
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
    /// An operator released what was pinned.
    Unpinned,
    /// The store that servers share names another generation, or lets this server publish.
    StoreChanged,
    /// An operator wants what exceeds the limits removed; the reply is what went.
    Collect(CollectOptions, Sender<Result<Collected, StartError>>),
    /// Live answers stopped complying; holds what was seen.
    Drifted(String),
    /// A generation keeps computing what is no number.
    Unhealthy(GenerationId),
    /// The server is shutting down.
    Shutdown,
}

/// Handle of a running control loop, used by the operator routes.
pub(crate) struct Control {
    events: Sender<Event>,
    context: Arc<Context>,
    thread: Mutex<Option<JoinHandle<()>>>,
    watcher: Mutex<Option<PolicyWatcher>>,
    /// Looks at the store that servers share, if this server has one.
    member: Option<MemberThread>,
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
        context.pointer.resume(|id| context.load_generation(id));
        context.stand_in();
        let (events, inbox) = channel();
        let watcher_events = events.clone();
        let watch = |directory| {
            PolicyWatcher::start(directory, watch, move || {
                // A closed channel means that the loop is shutting down.
                let _closed = watcher_events.send(Event::PoliciesChanged);
            })
        };
        let watched = (!context.follows()).then_some(directory);
        let watcher = watched.map(watch).transpose()?;
        let unhealthy = events.clone();
        context.engine.health().on_unhealthy(move |generation| {
            // A closed channel means that the loop is shutting down.
            let _closed = unhealthy.send(Event::Unhealthy(generation.clone()));
        });
        let worker = Worker::new(context.clone(), events.clone(), inbox, Box::new(System));
        let member = context.member.clone();
        let start = |member| MemberThread::start(member, context.clone(), events.clone());
        let member = member.map(start).transpose()?;
        let own = context.vital.clone();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || own.run(|| worker.run()))?;
        Ok(Self {
            events,
            context,
            thread: Mutex::new(Some(thread)),
            watcher: Mutex::new(watcher),
            member,
        })
    }

    /// Asks the loop to read the policy directory again, as if it had changed. Returns at once.
    pub(crate) fn request_reload(&self) {
        // One that waits already reads what is there by then: a storm of signals asks for one.
        if !self.context.reload_waits.swap(true, Ordering::AcqRel) {
            // A closed channel means that the loop is shutting down.
            let _closed = self.events.send(Event::Reload);
        }
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
        self.close_attempts();
        // The loop itself may wait for a judge.
        self.context.closing.store(true, Ordering::Release);
        drop(self.watcher.lock().ok().and_then(|mut w| w.take()));
        let _already_ended = self.events.send(Event::Shutdown);
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the control loop's thread panicked");
        }
        // Last: until here, what ran may still have had something to publish.
        self.member.iter().for_each(MemberThread::end);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}
