//! An engine of whole copies: one loaded model for each generation, its adapter merged in.
//!
//! This is how an engine that cannot swap an adapter under running sequences serves generations:
//! the next copy is built in the background ([`Copies::prepare`]), the registry's pointer store
//! sends new requests to it, running sequences finish on the copy that they lease, and a copy is
//! freed with its last lease. The price is a second copy of the weights during a swap, and seconds
//! to build one.
//!
//! The number of copies is bounded. A request for a generation without one waits until it is built,
//! or is refused if there is no room; the copy that serves, and the one prepared to serve next, are
//! never evicted for it.

mod engine;
mod error;

pub(crate) use engine::MergedEngine;
pub use error::{BuildError, PrepareError};

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::unbounded_channel;

use super::admission::Shared;
use super::driver::{Driver, STOPPING};
use super::request::{GenerateEvent, GenerateRequest, GenerateStream, SamplingParams, SubmitError};
use super::sequence::Sequence;
use crate::adapter::generation::{Generation, GenerationId};
use realign_core::supervision::panic_message;
use realign_model::Tokenizer;

/// How often a preparation that waits for room checks again.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A loaded model that serves one generation.
pub trait ModelCopy: Send + Sync {
    /// Computes a sequence: logits after the prompt, then after each token that the driver
    /// returns, until it returns none. Must not block. Dropping the driver fails the sequence.
    fn submit(&self, driver: Driver);
}

/// Builds copies of the model.
pub trait Builder: Send + Sync {
    /// Loads the base model with the generation's adapter merged in. Blocks for seconds.
    ///
    /// # Errors
    /// [`BuildError::Load`], with the reason and a remedy.
    fn build(&self, generation: &Generation) -> Result<Box<dyn ModelCopy>, BuildError>;
}

/// Permission for one of the bounded number of copies: acquired before a build begins, released
/// when the copy is freed.
struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A loaded copy of the weights; it is freed with its last `Arc`.
pub struct Loaded {
    generation: GenerationId,
    backend: Box<dyn ModelCopy>,
    _permit: Permit,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Loaded").field(&self.generation).finish()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        tracing::info!(generation = %self.generation, "its copy of the weights is freed");
    }
}

impl Loaded {
    fn submit(self: &Arc<Self>, mut driver: Driver) {
        driver.lease(Arc::clone(self));
        self.backend.submit(driver);
    }
}

enum Slot {
    /// Sequences that wait for the copy.
    Building(Vec<Driver>),
    Ready(Arc<Loaded>),
}

struct Entry {
    generation: GenerationId,
    slot: Slot,
    /// Prepared to serve next: requests for other generations do not evict it.
    pinned: bool,
}

#[derive(Default)]
struct State {
    serving: Option<GenerationId>,
    entries: Vec<Entry>,
    /// Copies that only running sequences hold.
    retired: Vec<(GenerationId, Weak<Loaded>)>,
}

/// All copies of an engine.
pub struct Copies {
    builder: Box<dyn Builder>,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    limit: usize,
    /// Copies that are loaded or being built.
    alive: Arc<AtomicUsize>,
    state: Mutex<State>,
    /// Signalled when a build ends.
    built: Condvar,
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies")
            .field("alive", &self.alive())
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// The result of looking a generation's copy up.
enum Lookup {
    Ready(Arc<Loaded>),
    Building,
    /// There was none: it is now registered as being built, and the caller must build it.
    Reserved(Permit),
    NoRoom,
}

impl Copies {
    pub(super) fn new(
        builder: Box<dyn Builder>,
        tokenizer: Arc<Tokenizer>,
        shared: Arc<Shared>,
        limit: usize,
    ) -> Self {
        Self {
            builder,
            tokenizer,
            shared,
            limit: limit.max(2),
            alive: Arc::default(),
            state: Mutex::default(),
            built: Condvar::new(),
        }
    }

    /// Copies that are loaded or being built.
    pub fn alive(&self) -> usize {
        self.alive.load(Ordering::Acquire)
    }

    /// Queues a sequence on its generation's copy. If there is none it is built in the background,
    /// and the sequence waits for it.
    ///
    /// # Errors
    /// [`SubmitError::NoCopy`] if there is no room for it; `driver` is not called then.
    pub(super) fn submit(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        driver: impl FnOnce() -> Driver,
    ) -> Result<(), SubmitError> {
        let mut freed = None;
        let mut state = self.state();
        match self.find(&mut state, &generation.id, false, &mut freed) {
            Lookup::Ready(copy) => {
                drop(state);
                copy.submit(driver());
            }
            Lookup::Building => state.enqueue(&generation.id, driver()),
            Lookup::Reserved(permit) => {
                state.enqueue(&generation.id, driver());
                drop(state);
                drop(freed);
                self.build_in_background(generation.clone(), permit);
            }
            Lookup::NoRoom => {
                return Err(SubmitError::NoCopy {
                    generation: generation.id.to_string(),
                    limit: self.limit,
                });
            }
        }
        Ok(())
    }

    /// Builds the generation's copy unless it exists, and pins it until the next [`Copies::serve`].
    /// Blocks until it is built. While there is no room for it, `wait` receives the time waited so
    /// far and returns whether to keep waiting.
    ///
    /// # Errors
    /// [`PrepareError`]; copies that were ready before still are.
    pub fn prepare(
        &self,
        generation: &Arc<Generation>,
        wait: &dyn Fn(Duration) -> bool,
    ) -> Result<(), PrepareError> {
        let started = Instant::now();
        loop {
            let mut freed = None;
            let found = self.find(&mut self.state(), &generation.id, true, &mut freed);
            drop(freed);
            match found {
                Lookup::Ready(_) => return Ok(()),
                Lookup::Reserved(permit) => return self.build(generation, permit),
                Lookup::Building => self.wait_for_build(),
                Lookup::NoRoom if wait(started.elapsed()) => self.wait_for_build(),
                Lookup::NoRoom => {
                    return Err(PrepareError::NoRoom {
                        generation: generation.id.clone(),
                        limit: self.limit,
                        seconds: started.elapsed().as_secs(),
                    });
                }
            }
        }
    }

    /// Waits for a build to end, at most [`POLL_INTERVAL`]: nothing signals that a copy is idle.
    fn wait_for_build(&self) {
        drop(self.built.wait_timeout(self.state(), POLL_INTERVAL));
    }

    /// Sets the generation that serves from now on. All other copies are freed as soon as no
    /// sequence runs on them.
    pub fn serve(&self, generation: &GenerationId) {
        let mut released = Vec::new();
        let mut state = self.state();
        state.serving = Some(generation.clone());
        for entry in std::mem::take(&mut state.entries) {
            match entry.slot {
                Slot::Ready(copy) if entry.generation != *generation => released.push(copy),
                slot => state.entries.push(Entry {
                    slot,
                    pinned: false,
                    ..entry
                }),
            }
        }
        state.retire(&released);
        drop(state);
        // Outside the lock: freeing a copy takes time.
        drop(released);
    }

    /// Frees the copy of a generation that was prepared and will not serve.
    pub fn release(&self, generation: &GenerationId) {
        let mut state = self.state();
        let serves = state.serving.as_ref() == Some(generation);
        let ready = |e: &Entry| e.generation == *generation && matches!(e.slot, Slot::Ready(_));
        let at = state.entries.iter().position(ready).filter(|_| !serves);
        let gone = at.map(|at| state.entries.remove(at));
        drop(state);
        drop(gone);
    }

    /// Frees all copies; sequences that wait for one fail.
    pub(super) fn stop(&self) {
        let entries = std::mem::take(&mut self.state().entries);
        for entry in entries {
            if let Slot::Building(waiting) = entry.slot {
                waiting.into_iter().for_each(|mut d| d.because(STOPPING));
            }
        }
    }

    /// Finds a copy, or registers one that the caller must build. `pinned` marks it as the one to
    /// serve next. A copy that is evicted to make room is left in `freed`, which the caller drops
    /// after releasing the lock.
    fn find(
        &self,
        state: &mut State,
        id: &GenerationId,
        pinned: bool,
        freed: &mut Option<Arc<Loaded>>,
    ) -> Lookup {
        if let Some(entry) = state.entries.iter_mut().find(|e| e.generation == *id) {
            entry.pinned |= pinned;
            return match &entry.slot {
                Slot::Ready(copy) => Lookup::Ready(copy.clone()),
                Slot::Building(_) => Lookup::Building,
            };
        }
        let insert = |state: &mut State, slot| {
            let generation = id.clone();
            state.entries.push(Entry {
                generation,
                slot,
                pinned,
            });
        };
        if let Some(copy) = state.still_running(id) {
            // Only a copy that is to serve outlives the sequences that run on it.
            if pinned {
                insert(state, Slot::Ready(copy.clone()));
            }
            return Lookup::Ready(copy);
        }
        if self.alive() >= self.limit {
            *freed = state.evict_idle(pinned);
        }
        // Permits are only acquired under the lock, so the count cannot rise in between.
        let going = usize::from(freed.is_some());
        if self.alive() - going >= self.limit {
            return Lookup::NoRoom;
        }
        self.alive.fetch_add(1, Ordering::AcqRel);
        insert(state, Slot::Building(Vec::new()));
        Lookup::Reserved(Permit(self.alive.clone()))
    }

    fn build_in_background(self: &Arc<Self>, generation: Arc<Generation>, permit: Permit) {
        let (copies, id) = (Arc::clone(self), generation.id.clone());
        let build = move || {
            if let Err(error) = copies.build(&generation, permit) {
                tracing::error!(%error, "requests for this generation fail");
            }
        };
        let thread = std::thread::Builder::new().name("build-engine".into());
        if let Err(error) = thread.spawn(build) {
            self.finish_build(&id, Err(error.into()));
        }
    }

    fn build(&self, generation: &Arc<Generation>, permit: Permit) -> Result<(), PrepareError> {
        let started = Instant::now();
        let id = &generation.id;
        let attempt = AssertUnwindSafe(|| {
            let backend = self.builder.build(generation)?;
            let copy = Arc::new(Loaded {
                generation: id.clone(),
                backend,
                _permit: permit,
            });
            self.warm(&copy, generation).map(|()| copy)
        });
        // Sequences wait for the copy: whatever becomes of it, they must be told.
        let warmed = catch_unwind(attempt)
            .unwrap_or_else(|panic| Err(BuildError::Panicked(panic_message(&*panic).into())));
        let result = warmed
            .as_ref()
            .map(|_| ())
            .map_err(|reason| PrepareError::Build {
                generation: id.clone(),
                reason: reason.to_string(),
            });
        let seconds = started.elapsed().as_secs_f64();
        match &result {
            Ok(()) => tracing::info!(generation = %id, seconds, "a copy of the weights is loaded"),
            Err(error) => tracing::error!(%error, seconds, "a copy could not be built"),
        }
        self.finish_build(id, warmed);
        result
    }

    /// Has the copy generate a token, so that a broken one is found before requests wait for it.
    fn warm(&self, copy: &Arc<Loaded>, generation: &Arc<Generation>) -> Result<(), BuildError> {
        let sampling = SamplingParams {
            max_tokens: 1,
            ..SamplingParams::default()
        };
        let (sender, events) = unbounded_channel();
        let request = GenerateRequest {
            prompt: vec![0],
            sampling,
            generation: generation.clone(),
        };
        let sequence = Sequence::new(request, &self.tokenizer, sender);
        self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        copy.submit(Driver::new(
            sequence,
            1,
            self.tokenizer.clone(),
            self.shared.clone(),
        ));
        let mut stream = GenerateStream::new(events);
        loop {
            match stream.blocking_next() {
                Some(GenerateEvent::Token { .. }) => {}
                Some(GenerateEvent::Finished { .. }) => return Ok(()),
                Some(GenerateEvent::Failed(reason)) => return Err(BuildError::Generate(reason)),
                None => return Err(BuildError::NoToken),
            }
        }
    }

    /// Starts the sequences that wait for a copy, or fails them with the reason.
    fn finish_build(&self, id: &GenerationId, result: Result<Arc<Loaded>, BuildError>) {
        let mut state = self.state();
        let at = state.entries.iter().position(|e| e.generation == *id);
        // A shutdown removes entries whose copies are still being built.
        let Some(at) = at else { return };
        let waiting = match (&mut state.entries[at].slot, &result) {
            (Slot::Building(waiting), _) => std::mem::take(waiting),
            (Slot::Ready(_), _) => Vec::new(),
        };
        match &result {
            Ok(copy) => state.entries[at].slot = Slot::Ready(copy.clone()),
            Err(_) => drop(state.entries.remove(at)),
        }
        drop(state);
        self.built.notify_all();
        for mut driver in waiting {
            match &result {
                Ok(copy) => copy.submit(driver),
                Err(reason) => {
                    driver.because(format!("this generation could not be loaded: {reason}"))
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held; if it did, the lists are still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets a sequence wait for a copy that is being built.
    fn enqueue(&mut self, id: &GenerationId, driver: Driver) {
        let entry = self.entries.iter_mut().find(|e| e.generation == *id);
        if let Some(Slot::Building(waiting)) = entry.map(|e| &mut e.slot) {
            waiting.push(driver);
        }
    }
    fn still_running(&mut self, id: &GenerationId) -> Option<Arc<Loaded>> {
        let found = self.retired.iter().filter(|(g, _)| g == id);
        found.filter_map(|(_, copy)| copy.upgrade()).next()
    }

    fn retire(&mut self, copies: &[Arc<Loaded>]) {
        self.retired.retain(|(_, copy)| copy.strong_count() > 0);
        let weak = |copy: &Arc<Loaded>| (copy.generation.clone(), Arc::downgrade(copy));
        self.retired.extend(copies.iter().map(weak));
    }

    /// Removes a copy that no sequence runs on and that does not serve. A pinned copy is only
    /// removed for another that is to be pinned (`for_swap`).
    fn evict_idle(&mut self, for_swap: bool) -> Option<Arc<Loaded>> {
        let idle = |entry: &Entry| match &entry.slot {
            Slot::Ready(copy) => Arc::strong_count(copy) == 1,
            Slot::Building(_) => false,
        };
        let may_go = |entry: &Entry| {
            let serves = self.serving.as_ref() == Some(&entry.generation);
            !serves && (!entry.pinned || for_swap) && idle(entry)
        };
        let at = self.entries.iter().position(may_go)?;
        match self.entries.remove(at).slot {
            Slot::Ready(copy) => Some(copy),
            Slot::Building(_) => None,
        }
    }
}
