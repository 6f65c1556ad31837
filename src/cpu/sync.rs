//! What [`team`](super::team) is built on. `proofs/team` puts a model checker in its place.

pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
pub(crate) use std::thread::{JoinHandle, Thread, current, park};

/// Rounds of waiting before a thread sleeps: some tens of microseconds.
pub(crate) const SPINS: u32 = 1500;

/// Starts a thread.
pub(crate) fn spawn(
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(run)
}

/// Tells the processor that this thread waits.
pub(crate) fn wait_a_moment() {
    std::hint::spin_loop();
}

/// A value that one thread writes while no other reads.
pub(crate) struct Shared<T>(std::cell::UnsafeCell<T>);

impl<T> Shared<T> {
    /// A value.
    pub(crate) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Reads it, through a pointer that is valid in `read`.
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// Writes it, through a pointer that is valid in `write`.
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}
