//! The native engine: one thread, one copy of the weights, adapters applied row by row.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use realign_core::Thread;
use realign_core::supervision::{Life, Vital};
use realign_model::TimeSlices;

use crate::adapter::generation::Generation;
use crate::admission::{Admission, Shared};
use crate::driver::STOPPING;
use crate::engine::Engine;
use crate::health::Health;
use crate::merged::PrepareError;
use crate::request::{EngineStats, GenerateRequest, GenerateStream, SubmitError};
use crate::runner::Runner;
use crate::sequence::Sequence;

/// The longest that one step may take before the engine counts as hung. A step of a large model on
/// few cores, behind a piece of learning, takes a minute or two.
const LONGEST_STEP: Duration = Duration::from_secs(300);

/// How often a caller who waits for the engine's thread asks whether it still runs.
const LOOK: Duration = Duration::from_millis(250);

enum Command {
    Run(Box<Sequence>),
    /// Probe a generation, between two steps: it waits for no sequence.
    Probe(Arc<Generation>, Sender<Result<(), PrepareError>>),
    Stop,
}

/// The caller's side of the engine's thread.
#[derive(Debug)]
pub(crate) struct NativeEngine {
    admission: Admission,
    commands: Sender<Command>,
    vital: Arc<Vital>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl NativeEngine {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn start(
        admission: Admission,
        runner: Runner,
        slices: Arc<TimeSlices>,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = channel();
        let vital = Arc::new(Vital::new(Thread::Engine, LONGEST_STEP));
        let worker = Worker {
            runner,
            slices,
            shared: admission.shared.clone(),
            inbox,
            vital: vital.clone(),
        };
        let own = vital.clone();
        let thread = std::thread::Builder::new()
            .name(Thread::Engine.as_str().into())
            // A panic drops the sequences, whose callers then see the end of their streams.
            .spawn(move || own.run(|| worker.run()))?;
        Ok(Self {
            admission,
            commands,
            vital,
            thread: Mutex::new(Some(thread)),
        })
    }

    fn is_dead(&self) -> bool {
        matches!(self.vital.life(), Life::Dead(_))
    }
}

impl Engine for NativeEngine {
    fn submit(&self, request: GenerateRequest) -> Result<GenerateStream, SubmitError> {
        if self.is_dead() {
            return Err(SubmitError::Stopped);
        }
        self.admission.submit(request, |sequence| {
            self.commands
                .send(Command::Run(Box::new(sequence)))
                .map_err(|_| SubmitError::Stopped)
        })
    }

    fn prepare(
        &self,
        generation: &Arc<Generation>,
        _wait: &dyn Fn(Duration) -> bool,
    ) -> Result<(), PrepareError> {
        self.health().check(&generation.id)?;
        let (reply, answer) = channel();
        let probe = Command::Probe(generation.clone(), reply);
        self.commands
            .send(probe)
            .map_err(|_| PrepareError::Stopped)?;
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(result) => return result,
                // A thread that vanished answers nothing, and closes nothing.
                Err(RecvTimeoutError::Timeout) if !self.is_dead() => {}
                Err(_) => return Err(PrepareError::Stopped),
            }
        }
    }

    fn health(&self) -> &Arc<Health> {
        &self.admission.shared.health
    }

    fn stats(&self) -> EngineStats {
        if self.is_dead() {
            return EngineStats::default();
        }
        self.admission.stats()
    }

    fn is_busy(&self) -> bool {
        !self.is_dead() && self.admission.is_busy()
    }

    fn vital(&self) -> Option<Arc<Vital>> {
        Some(self.vital.clone())
    }

    fn max_model_len(&self) -> usize {
        self.admission.max_model_len
    }

    fn shutdown(&self) {
        let stopping = &self.admission.shared.stopping;
        stopping.store(true, Ordering::Release);
        let _already_stopped = self.commands.send(Command::Stop);
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the engine's thread panicked");
        }
    }
}

struct Worker {
    runner: Runner,
    slices: Arc<TimeSlices>,
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    vital: Arc<Vital>,
}

impl Worker {
    fn run(mut self) {
        while self.receive() {
            self.vital.beat();
            let waiting = self.runner.scheduler.waiting.len();
            let can_run = self.runner.schedule();
            self.count_waiting(waiting);
            self.publish();
            if can_run {
                let slice = self.slices.serving();
                self.runner.execute();
                self.publish();
                slice.end();
            }
        }
        let scheduler = &self.runner.scheduler;
        for sequence in scheduler.running.iter().chain(&scheduler.waiting) {
            sequence.fail(STOPPING);
        }
    }

    /// Queues newly submitted sequences; blocks for one when idle. `false` ends the engine.
    fn receive(&mut self) -> bool {
        if self.runner.scheduler.is_idle() {
            self.vital.rest();
            let Ok(command) = self.inbox.recv() else {
                return false;
            };
            if !self.obey(command) {
                return false;
            }
        }
        while let Ok(command) = self.inbox.try_recv() {
            if !self.obey(command) {
                return false;
            }
        }
        true
    }

    /// `false` ends the engine.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Run(sequence) => self.runner.scheduler.waiting.push_back(*sequence),
            Command::Probe(generation, reply) => {
                self.vital.beat();
                let slice = self.slices.serving();
                let result = self.runner.probe(&generation);
                slice.end();
                // The caller may have given up.
                let _gone = reply.send(result);
            }
            Command::Stop => return false,
        }
        true
    }

    /// Updates the counter that bounds accepted sequences which are not running.
    fn count_waiting(&self, before: usize) {
        let after = self.runner.scheduler.waiting.len();
        let waiting = &self.shared.waiting;
        if after < before {
            waiting.fetch_sub(before - after, Ordering::AcqRel);
        } else {
            waiting.fetch_add(after - before, Ordering::AcqRel);
        }
    }

    fn publish(&self) {
        let scheduler = &self.runner.scheduler;
        self.shared
            .running
            .store(scheduler.running.len(), Ordering::Relaxed);
        let usage = (scheduler.pool.usage() * 1e6) as u64;
        let totals = scheduler.totals;
        for (shared, value) in [
            (&self.shared.kv_usage_ppm, usage),
            (&self.shared.prefix_queries, totals.prefix_queries),
            (&self.shared.prefix_hits, totals.prefix_hits),
            (&self.shared.preemptions, totals.preemptions),
            (&self.shared.drafted, totals.drafted),
            (&self.shared.accepted, totals.accepted),
        ] {
            shared.store(value, Ordering::Relaxed);
        }
    }
}
