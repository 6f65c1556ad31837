//! The threads of a server, and their end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::api::AdminPort;
use crate::control::Control;
use crate::telemetry::{Compliance, Telemetry};
use realign_engine::EngineHandle;

/// How often the alignment's state is looked at.
const ALIGNMENT_INTERVAL: Duration = Duration::from_secs(1);

/// Everything that runs as long as a server does. Dropping it ends the threads and waits for them.
pub(super) struct Threads {
    pub(super) ready: Arc<AtomicBool>,
    pub(super) alignment: AlignmentWatch,
    pub(super) control: Arc<Control>,
    pub(super) engine: EngineHandle,
    pub(super) compliance: Option<Arc<Compliance>>,
    pub(super) telemetry: Arc<Telemetry>,
}

impl Threads {
    /// Refuses new requests and ends the threads after their current piece of work: a training step,
    /// a forward pass, the judgements that wait. Requests that still run fail. Calling it again does
    /// nothing.
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

/// A thread that keeps the metric of the alignment up to date, also while nothing happens.
pub(super) struct AlignmentWatch {
    ending: Arc<Ending>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Tells a thread that waits to end.
#[derive(Default)]
struct Ending {
    requested: Mutex<bool>,
    changed: Condvar,
}

impl Ending {
    fn request(&self) {
        *self
            .requested
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for `time`, or less if the end is requested; whether it is.
    fn requested_within(&self, time: Duration) -> bool {
        let lock = self.requested.lock();
        let requested = lock.unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(requested, time, |requested| !*requested);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl AlignmentWatch {
    /// # Errors
    /// If the system refuses a thread.
    pub(super) fn start(control: Arc<Control>, telemetry: Arc<Telemetry>) -> std::io::Result<Self> {
        let ending = Arc::new(Ending::default());
        let told = ending.clone();
        let look = move || {
            loop {
                telemetry.metrics().set_aligned(control.aligned());
                if told.requested_within(ALIGNMENT_INTERVAL) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("alignment".into());
        Ok(Self {
            ending,
            thread: Mutex::new(Some(thread.spawn(look)?)),
        })
    }

    fn end(&self) {
        self.ending.request();
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the thread that looks at the alignment panicked");
        }
    }
}

impl Drop for AlignmentWatch {
    fn drop(&mut self) {
        self.end();
    }
}
