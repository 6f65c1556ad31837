//! loom's lock in place of the standard library's, and a pointer of which each load and store is one step.

pub(crate) use std::sync::{Arc, PoisonError, Weak};

pub(crate) use loom::sync::{Mutex, MutexGuard};

/// A pointer that is loaded and stored as a whole.
pub(crate) struct ArcSwap<T>(Mutex<Arc<T>>);

impl<T> ArcSwap<T> {
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn store(&self, value: Arc<T>) {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _dropped_after = std::mem::replace(&mut *place, value);
    }
}
