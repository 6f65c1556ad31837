//! Panics of threads.

use std::sync::{Mutex, PoisonError};

use prometheus::{Error, IntCounterVec};
use realign_core::Thread;

use super::Build;
use crate::telemetry::names;

/// Counts the panics of each thread.
#[derive(Debug)]
pub(in crate::telemetry) struct Threads {
    /// Locked, so that concurrent scrapes do not both add the difference.
    panics: Mutex<IntCounterVec>,
}

impl Threads {
    pub(in crate::telemetry) fn register(build: &Build) -> Result<Self, Error> {
        let panics = build.counters(
            names::THREAD_PANICS_TOTAL,
            "Panics of threads that the server cannot do without.",
            &["thread"],
        )?;
        for thread in Thread::ALL {
            panics.with_label_values(&[thread.as_str()]);
        }
        Ok(Self {
            panics: Mutex::new(panics),
        })
    }

    /// Raises the counters to these totals.
    pub(in crate::telemetry) fn advance_to(&self, totals: &[(Thread, u64)]) {
        let panics = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
        for (thread, total) in totals {
            let counter = panics.with_label_values(&[thread.as_str()]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }
}
