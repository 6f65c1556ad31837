//! What the loop's decisions depend on besides memory and the state directory: the clock, the
//! operator's files, the services that prepare policies, and threads.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Instant;

use super::Event;
use super::attempts;
use super::context::Context;
use super::data::{self, Listing};
use super::error::ReadPoliciesError;
use super::examining::Examining;
use super::realign::{self, Job};
use super::retention;
use crate::api::CollectOptions;
use realign_align::oracle::{Prepared, needs_services, prepare_trusted};
use realign_align::pipeline::Inputs;
use realign_align::policy::{PolicySet, Snapshot};
use realign_align::preferences::DatasetError;

/// Everything outside that the control loop asks or starts.
pub(super) trait Surroundings: Send {
    /// The monotonic clock.
    fn now(&self) -> Instant;

    /// The policy directory.
    fn policies(&self, context: &Context) -> io::Result<Snapshot>;

    /// The files of preference data.
    fn data(&self, context: &Context) -> Listing;

    /// Runs a set's examples, fits its probes and asks its judges.
    fn prepare(&self, context: &Context, set: &PolicySet) -> Result<Prepared, ReadPoliciesError>;

    /// What a realignment to a set is a function of.
    fn inputs(&self, context: &Context, set: &PolicySet) -> Result<Inputs, DatasetError>;

    /// Starts a realignment; its end comes as [`Event::Ended`].
    fn realign(
        &self,
        context: Arc<Context>,
        events: Sender<Event>,
        job: Job,
    ) -> io::Result<JoinHandle<()>>;

    /// Starts an exam; its end comes as [`Event::Examined`].
    fn examine(&self, context: Arc<Context>, events: Sender<Event>) -> io::Result<Examining>;

    /// Removes what exceeds `[retention]`.
    fn collect(&self, context: &Context);
}

/// The real ones.
pub(super) struct System;

impl Surroundings for System {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn policies(&self, context: &Context) -> io::Result<Snapshot> {
        Snapshot::read(&context.config.paths.policies)
    }

    fn data(&self, context: &Context) -> Listing {
        data::list(&context.config.paths.preferences)
    }

    fn prepare(&self, context: &Context, set: &PolicySet) -> Result<Prepared, ReadPoliciesError> {
        let services = context.services(set)?;
        prepare_trusted(set, &services).map_err(|errors| match needs_services(set) {
            (false, false) => errors.into(),
            // A judge may answer again, and so may a device.
            _ => ReadPoliciesError::Unreadable(errors),
        })
    }

    fn inputs(&self, context: &Context, set: &PolicySet) -> Result<Inputs, DatasetError> {
        context.inputs(set)
    }

    fn realign(
        &self,
        context: Arc<Context>,
        events: Sender<Event>,
        job: Job,
    ) -> io::Result<JoinHandle<()>> {
        let run = move || {
            let hash = job.inputs.hash.clone();
            let ended = attempts::attempt(&context, &hash, || realign::run(&context, job));
            // A closed channel means that the loop has ended; the unfinished row is resumed at the
            // next start.
            let _closed = events.send(Event::Ended(Box::new(ended)));
        };
        // Candle traverses a graph recursively, one stack frame per operation.
        std::thread::Builder::new()
            .name("realign".into())
            .stack_size(256 << 20)
            .spawn(run)
    }

    fn examine(&self, context: Arc<Context>, events: Sender<Event>) -> io::Result<Examining> {
        Examining::start(context, move || {
            // A closed channel means that the loop has ended.
            let _closed = events.send(Event::Examined);
        })
    }

    fn collect(&self, context: &Context) {
        if let Err(error) = retention::collect(context, CollectOptions::default()) {
            tracing::warn!(%error, "what exceeds [retention] was not removed");
        }
    }
}
