//! What a long-lived thread says about itself, and what becomes of it when it panics.
//!
//! Every thread that a server cannot do without holds a [`Vital`]: it counts panics, knows whether
//! the thread still runs, and when it last gave a sign of life.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Thread;
use crate::crash::panic_point;

/// Restarts after panics that follow closely; one more and the thread stays dead.
const MAX_RESTARTS: u32 = 5;
/// Pause before the first restart; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A thread that has run for so long without a panic has its restarts back.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
/// How often a pause asks whether the thread should end.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// In place of the time of the last heartbeat: the thread waits for work and owes none.
const RESTING: u64 = u64::MAX;

const NOT_STARTED: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;
const DEAD: u8 = 3;

/// How a thread is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// It works, or waits for work.
    Alive,
    /// It has been working for so long without a heartbeat, longer than its bound.
    Silent(Duration),
    /// It was asked to end and did, or has not started.
    Ended,
    /// It panicked or vanished, and does not come back. Holds the reason.
    Dead(String),
}

/// The signs of life of one thread, shared with its watcher.
#[derive(Debug)]
pub struct Vital {
    thread: Thread,
    patience: Duration,
    origin: Instant,
    /// Milliseconds since `origin` of the last heartbeat.
    beat: AtomicU64,
    state: AtomicU8,
    panics: AtomicU64,
    /// Message of the last panic.
    message: Mutex<String>,
    /// Where the system lists the thread while it exists (Linux).
    listed: Mutex<Option<PathBuf>>,
}

impl Vital {
    /// Of a thread that has not started. Without a heartbeat for `patience` while it works it counts
    /// as hung; this must exceed the longest piece of work between two heartbeats.
    pub fn new(thread: Thread, patience: Duration) -> Self {
        Self {
            thread,
            patience,
            origin: Instant::now(),
            beat: AtomicU64::new(RESTING),
            state: AtomicU8::new(NOT_STARTED),
            panics: AtomicU64::new(0),
            message: Mutex::default(),
            listed: Mutex::default(),
        }
    }

    /// Which thread it is.
    pub fn thread(&self) -> Thread {
        self.thread
    }

    /// Panics so far.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// The thread is at work and got this far. Called by the thread itself.
    pub fn beat(&self) {
        let now = self.origin.elapsed().as_millis();
        self.beat
            .store(u64::try_from(now).unwrap_or(0), Ordering::Release);
        panic_point(self.thread.as_str());
    }

    /// The thread has nothing to do and waits for work; until its next heartbeat it cannot hang.
    pub fn rest(&self) {
        self.beat.store(RESTING, Ordering::Release);
    }

    /// How the thread is now.
    pub fn life(&self) -> Life {
        match self.state.load(Ordering::Acquire) {
            RUNNING if !self.is_listed() && self.state.load(Ordering::Acquire) == RUNNING => {
                Life::Dead("its thread has vanished".into())
            }
            RUNNING => self.silence(),
            DEAD => {
                let message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
                Life::Dead(format!("it panicked: {message}"))
            }
            _ => Life::Ended,
        }
    }

    /// Runs a thread's work that cannot be repeated. A panic is caught, counted and logged, and
    /// leaves the thread dead.
    pub fn run(&self, work: impl FnOnce()) {
        self.enter();
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(()) => self.state.store(ENDED, Ordering::Release),
            Err(panic) => {
                self.count(&*panic);
                self.state.store(DEAD, Ordering::Release);
                tracing::error!(thread = %self.thread, "the thread stays dead: restart the server");
            }
        }
    }

    /// Runs a thread's work until it returns. After a panic, which is caught, counted and logged, it
    /// begins again following a pause; too many panics in a row leave the thread dead. `stopping`
    /// ends a pause.
    pub fn run_restarting(&self, stopping: impl Fn() -> bool, mut work: impl FnMut()) {
        self.enter();
        let mut restarts = 0;
        loop {
            let began = Instant::now();
            let Err(panic) = catch_unwind(AssertUnwindSafe(&mut work)) else {
                return self.state.store(ENDED, Ordering::Release);
            };
            self.count(&*panic);
            if began.elapsed() >= FORGIVEN_AFTER {
                restarts = 0;
            }
            if restarts == MAX_RESTARTS {
                self.state.store(DEAD, Ordering::Release);
                tracing::error!(thread = %self.thread, restarts, "the thread stays dead: restart the server");
                return;
            }
            self.rest();
            if pause(FIRST_PAUSE * 2u32.pow(restarts), &stopping) {
                return self.state.store(ENDED, Ordering::Release);
            }
            restarts += 1;
            tracing::warn!(thread = %self.thread, restarts, "the thread is restarted");
        }
    }

    fn enter(&self) {
        // Names the calling thread; resolved now, since it means another one to another reader
        // later.
        let own = std::fs::read_link("/proc/thread-self").ok();
        let listed = own.map(|own| PathBuf::from("/proc").join(own));
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = listed;
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Whether the system still has the thread, where it tells.
    fn is_listed(&self) -> bool {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.as_ref().is_none_or(|path| path.exists())
    }

    fn silence(&self) -> Life {
        let beat = self.beat.load(Ordering::Acquire);
        if beat == RESTING {
            return Life::Alive;
        }
        let silent = self
            .origin
            .elapsed()
            .saturating_sub(Duration::from_millis(beat));
        if silent > self.patience {
            Life::Silent(silent)
        } else {
            Life::Alive
        }
    }

    fn count(&self, panic: &(dyn std::any::Any + Send)) {
        let message = panic_message(panic).to_owned();
        self.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(thread = %self.thread, message, "a thread panicked");
        *self.message.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }
}

/// The text that a panic was raised with.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// Waits; true if `stopping` said so meanwhile.
fn pause(time: Duration, stopping: &impl Fn() -> bool) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if stopping() || left.is_zero() {
            return stopping();
        }
        std::thread::park_timeout(left.min(STOP_CHECK));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    fn vital(patience: Duration) -> Arc<Vital> {
        Arc::new(Vital::new(Thread::Engine, patience))
    }

    #[test]
    fn a_panic_leaves_a_thread_dead_or_restarts_it() {
        let once = vital(Duration::MAX);
        assert_eq!(once.life(), Life::Ended, "it has not started");
        once.run(|| panic!("of {}", "wear"));
        assert_eq!(once.life(), Life::Dead("it panicked: of wear".into()));
        assert_eq!(once.panics(), 1);

        let restarted = vital(Duration::MAX);
        let mut runs = 0;
        restarted.run_restarting(
            || false,
            || {
                runs += 1;
                assert!(runs > 2, "not yet");
            },
        );
        assert_eq!((restarted.life(), restarted.panics()), (Life::Ended, 2));
    }

    #[test]
    fn restarts_are_bounded_and_stop_at_shutdown() {
        let hopeless = vital(Duration::MAX);
        hopeless.run_restarting(|| false, || panic!("again"));
        assert_eq!(hopeless.panics(), u64::from(MAX_RESTARTS) + 1);
        assert!(matches!(hopeless.life(), Life::Dead(_)));

        let stopping = vital(Duration::MAX);
        stopping.run_restarting(|| true, || panic!("last"));
        assert_eq!((stopping.life(), stopping.panics()), (Life::Ended, 1));
    }

    #[test]
    fn work_without_a_heartbeat_is_silence_and_waiting_is_not() {
        let vital = vital(Duration::ZERO);
        let (go, gone) = channel::<()>();
        let (told, tell) = channel();
        let inner = vital.clone();
        let thread = std::thread::spawn(move || {
            inner.run(|| {
                inner.beat();
                told.send(()).unwrap();
                gone.recv().unwrap();
                inner.rest();
                told.send(()).unwrap();
                gone.recv().unwrap();
            });
        });
        tell.recv().unwrap();
        std::thread::park_timeout(Duration::from_millis(5));
        assert!(matches!(vital.life(), Life::Silent(_)));
        go.send(()).unwrap();
        tell.recv().unwrap();
        assert_eq!(vital.life(), Life::Alive);
        go.send(()).unwrap();
        thread.join().unwrap();
        assert_eq!(vital.life(), Life::Ended);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_that_vanished_is_dead() {
        let vital = vital(Duration::MAX);
        std::thread::scope(|scope| scope.spawn(|| vital.enter()).join()).unwrap();
        // The system takes a moment to forget it.
        let until = Instant::now() + Duration::from_secs(10);
        while vital.life() == Life::Alive && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        assert!(matches!(vital.life(), Life::Dead(_)), "{:?}", vital.life());
    }
}
