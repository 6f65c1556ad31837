//! Which generations compute numbers: sequences whose logits were not finite are counted, and a
//! generation that keeps computing such is reported, so that the server can take it out of service.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::adapter::generation::{Generation, GenerationId};
use crate::merged::PrepareError;

/// Sequences in a row that a generation may fail before it is unhealthy.
pub const TOLERATED: usize = 3;

type Watcher = Arc<dyn Fn(&GenerationId) + Send + Sync>;

/// The record of an engine's generations, shared with everything that computes with them.
#[derive(Default)]
pub struct Health {
    state: Mutex<State>,
    failures: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Failed sequences since the last that ended well, of generations that have any.
    streaks: HashMap<GenerationId, usize>,
    /// Adapters that may not serve again while this process runs.
    unhealthy: HashSet<GenerationId>,
    watcher: Option<Watcher>,
}

impl Health {
    /// Calls `watcher` when [`TOLERATED`] sequences of a generation in a row, or more, came to logits
    /// that are not finite. It is called on the thread that computes: it must return at once.
    pub fn on_unhealthy(&self, watcher: impl Fn(&GenerationId) + Send + Sync + 'static) {
        self.state().watcher = Some(Arc::new(watcher));
    }

    /// Sequences and embeddings that came to values that are not finite, since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Refuses an adapter that has become unhealthy. The base model is never refused: there is
    /// nothing else to go back to.
    pub(crate) fn check(&self, generation: &GenerationId) -> Result<(), PrepareError> {
        if self.state().unhealthy.contains(generation) {
            return Err(PrepareError::TakenOut {
                generation: generation.clone(),
            });
        }
        Ok(())
    }

    /// Counts a sequence that came to logits that are not finite.
    pub(crate) fn failed(&self, generation: &Generation) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let id = &generation.id;
        let mut state = self.state();
        let streak = state.streaks.entry(id.clone()).or_default();
        *streak += 1;
        let sequences = *streak;
        tracing::error!(generation = %id, sequences, "computed values that are not finite numbers");
        if sequences < TOLERATED {
            return;
        }
        if generation.adapter.is_some() {
            state.unhealthy.insert(id.clone());
        }
        let watcher = state.watcher.clone();
        drop(state);
        if let Some(watcher) = watcher {
            watcher(id);
        }
    }

    /// Notes a sequence that ended well.
    pub(crate) fn ended_well(&self, generation: &GenerationId) {
        self.state().streaks.remove(generation);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held; if it did, the maps are still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("failures", &self.failures())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::fake::generation;

    #[test]
    fn failures_in_a_row_are_reported_and_a_good_sequence_ends_the_row() {
        let health = Health::default();
        let reported = Arc::new(Mutex::new(Vec::new()));
        let into = reported.clone();
        health.on_unhealthy(move |id| into.lock().unwrap().push(id.clone()));
        let (broken, other) = (generation(1), generation(2));
        for _ in 0..TOLERATED - 1 {
            health.failed(&broken);
        }
        health.ended_well(&other.id);
        health.ended_well(&broken.id);
        for _ in 0..TOLERATED - 1 {
            health.failed(&broken);
        }
        assert!(reported.lock().unwrap().is_empty() && health.check(&broken.id).is_ok());
        health.failed(&broken);
        assert_eq!(*reported.lock().unwrap(), std::slice::from_ref(&broken.id));
        assert!(health.check(&broken.id).is_err() && health.check(&other.id).is_ok());
        assert_eq!(health.failures(), 2 * TOLERATED as u64 - 1);
    }

    #[test]
    fn the_base_is_reported_and_never_refused() {
        let (health, base) = (Health::default(), generation(0));
        for _ in 0..TOLERATED {
            health.failed(&base);
        }
        assert!(health.check(&base.id).is_ok());
    }
}
