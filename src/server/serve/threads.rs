//! The background threads of a server, and their shutdown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::api::AdminPort;
use crate::control::Control;
use crate::telemetry::{Compliance, Telemetry};
use realign_engine::EngineHandle;

/// Interval at which the alignment metric is updated.
const ALIGNMENT_INTERVAL: Duration = Duration::from_secs(1);

/// Everything that runs for the lifetime of a server. Dropping it stops the threads and waits for
/// them.
pub(super) struct Threads {
    pub(super) ready: Arc<AtomicBool>,
    pub(super) alignment: AlignmentWatch,
    pub(super) control: Arc<Control>,
    pub(super) engine: EngineHandle,
    pub(super) compliance: Option<Arc<Compliance>>,
    pub(super) telemetry: Arc<Telemetry>,
}

impl Threads {
    /// Stops accepting requests and stops the threads. Each finishes its current work first: a
    /// training step, a forward pass, the queued judgements. Requests still running fail. Calling
    /// it again does nothing.
    pub(super) fn end(&self) {
        self.ready.store(false, Ordering::Release);
        self.alignment.end();
        self.control.shutdown();
        self.engine.shutdown();
        if let Some(compliance) = &self.compliance {
            compliance.shutdown();
        }
        if let Some(exporter) = self.telemetry.exporter() {
            exporter.shutdown();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}

/// A thread that keeps the alignment metric up to date between events.
pub(super) struct AlignmentWatch {
    stop: Arc<StopSignal>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Wakes a waiting thread and tells it to stop.
#[derive(Default)]
struct StopSignal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl StopSignal {
    fn set(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for at most `timeout`; returns whether the signal is set.
    fn wait(&self, timeout: Duration) -> bool {
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
        let stopped = stop.clone();
        let update = move || {
            loop {
                telemetry.metrics().set_alignment(control.alignment().state);
                if stopped.wait(ALIGNMENT_INTERVAL) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("alignment".into());
        Ok(Self {
            stop,
            thread: Mutex::new(Some(thread.spawn(update)?)),
        })
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
