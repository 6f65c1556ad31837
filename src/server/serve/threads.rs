//! The background threads of a server, and their shutdown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::supervisor::Supervisor;
use crate::api::AdminPort;
use crate::control::Control;
use crate::locks::Locks;
use crate::telemetry::{Compliance, Telemetry};
use realign_core::Thread;
use realign_core::supervision::Vital;
use realign_engine::EngineHandle;

/// Interval at which the alignment metric is updated.
const ALIGNMENT_INTERVAL: Duration = Duration::from_secs(1);

/// How long the control loop may take to end: a step of training, or a policy set that is being read.
const CONTROL_LIMIT: Duration = Duration::from_secs(30);
/// How long the engine may take to end: a step.
const ENGINE_LIMIT: Duration = Duration::from_secs(15);
/// How long the queued judgements, and sending the last traces, may take.
const TELEMETRY_LIMIT: Duration = Duration::from_secs(10);
/// How long the other threads may take to end, which only wait.
const SHORT_LIMIT: Duration = Duration::from_secs(5);
/// The longest that [`Threads::end`] takes.
pub(super) const END_LIMIT: Duration = Duration::from_secs(30 + 15 + 2 * 10 + 2 * 5);

/// Parts that did not stop in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("did not stop in time: {}", .0.join(", "))]
pub struct Stuck(pub(crate) Vec<String>);

/// Everything that runs for the lifetime of a server. Dropping it stops the threads and waits for
/// them, within bounds.
pub(super) struct Threads {
    pub(super) ready: Arc<AtomicBool>,
    pub(super) alignment: Arc<AlignmentWatch>,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) control: Arc<Control>,
    pub(super) engine: EngineHandle,
    pub(super) compliance: Option<Arc<Compliance>>,
    pub(super) telemetry: Arc<Telemetry>,
    /// Released when nothing is written any more.
    pub(super) locks: Locks,
}

/// Ends a part; may block.
type End = Arc<dyn Fn() + Send + Sync>;

impl Threads {
    /// Stops accepting requests and stops the threads. Each finishes its current work first: a
    /// training step, a forward pass, the queued judgements. Requests still running fail. A part that
    /// takes longer than its limit is left behind. Calling it again does nothing.
    ///
    /// # Errors
    /// [`Stuck`] with the parts that are left behind.
    pub(super) fn end(&self) -> Result<(), Stuck> {
        self.ready.store(false, Ordering::Release);
        let mut stuck = Vec::new();
        for (part, limit, end) in self.parts() {
            if !within(limit, &end) {
                tracing::error!(%part, seconds = limit.as_secs(), "did not stop in time");
                stuck.push(format!("{part} ({} s)", limit.as_secs()));
            }
        }
        if stuck.is_empty() {
            // What is left behind may still write: then the locks are held to the process' end.
            self.locks.release();
            Ok(())
        } else {
            Err(Stuck(stuck))
        }
    }

    /// What is ended, in this order, and how long each may take.
    fn parts(&self) -> Vec<(Thread, Duration, End)> {
        let (alignment, supervisor) = (self.alignment.clone(), self.supervisor.clone());
        let (control, engine) = (self.control.clone(), self.engine.clone());
        let (compliance, telemetry) = (self.compliance.clone(), self.telemetry.clone());
        vec![
            (
                Thread::Alignment,
                SHORT_LIMIT,
                Arc::new(move || alignment.end()),
            ),
            (
                Thread::Control,
                CONTROL_LIMIT,
                Arc::new(move || control.shutdown()),
            ),
            (
                Thread::Engine,
                ENGINE_LIMIT,
                Arc::new(move || engine.shutdown()),
            ),
            (
                Thread::Compliance,
                TELEMETRY_LIMIT,
                Arc::new(move || {
                    compliance.iter().for_each(|c| c.shutdown());
                }),
            ),
            (
                Thread::Traces,
                TELEMETRY_LIMIT,
                Arc::new(move || {
                    telemetry.exporter().into_iter().for_each(|e| e.shutdown());
                }),
            ),
            (
                Thread::Supervisor,
                SHORT_LIMIT,
                Arc::new(move || supervisor.end()),
            ),
        ]
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // What is left behind has been logged.
        let _stuck = self.end();
    }
}

/// Runs `end` on a thread of its own; false if it has not returned by then.
fn within(limit: Duration, end: &End) -> bool {
    let (done, ended) = channel();
    let run = end.clone();
    let thread = std::thread::Builder::new().name("ending".into());
    let spawned = thread.spawn(move || {
        run();
        let _nobody_waits = done.send(());
    });
    if spawned.is_err() {
        // Without a thread there is no limit but that of the whole shutdown.
        end();
        return true;
    }
    // Disconnected: it panicked, which ends it as well.
    ended.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
}

/// A thread that keeps the alignment metric up to date between events.
pub(super) struct AlignmentWatch {
    stop: Arc<StopSignal>,
    vital: Arc<Vital>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Wakes a waiting thread and tells it to stop.
#[derive(Default)]
pub(super) struct StopSignal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl StopSignal {
    pub(super) fn set(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for at most `timeout`; returns whether the signal is set.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(stopped, timeout, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl AlignmentWatch {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(control: Arc<Control>, telemetry: Arc<Telemetry>) -> std::io::Result<Self> {
        let stop = Arc::new(StopSignal::default());
        let vital = Arc::new(Vital::new(Thread::Alignment, 60 * ALIGNMENT_INTERVAL));
        let (stopped, own) = (stop.clone(), vital.clone());
        let run = move || {
            let update = || {
                own.beat();
                telemetry.metrics().set_alignment(control.alignment().state);
                telemetry.metrics().set_pin_lost(control.has_lost_pin());
            };
            own.run_restarting(
                || stopped.wait(Duration::ZERO),
                || {
                    update();
                    while !stopped.wait(ALIGNMENT_INTERVAL) {
                        update();
                    }
                },
            );
        };
        let thread = std::thread::Builder::new().name(Thread::Alignment.as_str().into());
        Ok(Self {
            stop,
            vital,
            thread: Mutex::new(Some(thread.spawn(run)?)),
        })
    }

    /// The signs of life of the thread.
    pub(super) fn vital(&self) -> Arc<Vital> {
        self.vital.clone()
    }

    fn end(&self) {
        self.stop.set();
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the alignment thread panicked");
        }
    }
}

impl Drop for AlignmentWatch {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_does_not_end_is_left_behind() {
        let quick: End = Arc::new(|| {});
        assert!(within(Duration::from_secs(60), &quick));
        let broken: End = Arc::new(|| panic!("on the way out"));
        assert!(within(Duration::from_secs(60), &broken));
        let stop = Arc::new(StopSignal::default());
        let waiting = stop.clone();
        let stuck: End = Arc::new(move || while !waiting.wait(Duration::from_secs(60)) {});
        assert!(!within(Duration::from_millis(20), &stuck));
        stop.set();
    }

    #[test]
    fn the_limit_of_all_is_the_sum() {
        let sum = CONTROL_LIMIT + ENGINE_LIMIT + 2 * TELEMETRY_LIMIT + 2 * SHORT_LIMIT;
        assert_eq!(END_LIMIT, sum);
    }
}
