//! Generations in memory: the one that serves, the one before it, and the swap.
//!
//! Readers never wait: `lease_current` is one atomic load. Writers are serialised by a mutex, and
//! the last step of a swap is one atomic pointer store, which cannot fail.

use std::fmt;

use super::AdapterError;
use super::generation::{Generation, GenerationId};
use super::sync::{Arc, ArcSwap, Mutex, MutexGuard, PoisonError, Weak};
use realign_core::LeaseCounts;

// Named, because `proofs/registry` reads this file from another folder.
#[path = "registry/names.rs"]
mod names;

pub use names::{MAX_NAMES, NameError, Named};

/// Digits of a generation id.
const ID_DIGITS: usize = 12;

/// Fetches a generation that is not in memory, ready to serve: read, validated, on its device.
pub(crate) type Loader =
    Box<dyn Fn(&GenerationId) -> Result<Generation, AdapterError> + Send + Sync>;

/// A swap that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swapped {
    /// Served until now, and is what a rollback returns to.
    pub from: GenerationId,
    /// Serves now.
    pub to: GenerationId,
    /// Was previous until now and is neither current nor previous any more.
    pub retired: Option<GenerationId>,
}

/// Why a swap did not happen. What served keeps serving.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// Another swap happened in between.
    #[error("expected generation {expected} to be serving, but {actual} is; look again and retry")]
    Conflict {
        /// The generation that the caller expected to serve.
        expected: GenerationId,
        /// The generation that serves.
        actual: GenerationId,
    },
    /// There is nothing to roll back to.
    #[error(
        "there is no previous generation to roll back to: {current} has served since the start"
    )]
    NoPrevious {
        /// The generation that serves.
        current: GenerationId,
    },
}

/// Why a selector names no generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Neither `base`, `current` nor an id of a generation.
    #[error(
        "unknown generation {selector:?}: allowed are `base`, `current` and the {ID_DIGITS} hex digits \
         of a published generation"
    )]
    Unknown {
        /// The given selector, cut to 64 characters.
        selector: String,
    },
    /// The generation exists, but could not be loaded.
    #[error("generation {id} could not be loaded: {reason}")]
    Load {
        /// The generation that was asked for.
        id: GenerationId,
        /// The loader's reason.
        reason: String,
    },
    /// Nothing may answer for `current`.
    #[error("no generation serves: {reason}")]
    Withheld {
        /// Why, and what ends it.
        reason: Arc<str>,
    },
}

/// All generations that a server has in memory.
pub struct Registry {
    current: ArcSwap<Generation>,
    base: Arc<Generation>,
    state: Mutex<State>,
    capacity: usize,
    loader: Option<Loader>,
}

/// What changes with the pointer. The lock is never held while a loader runs.
struct State {
    previous: Option<Arc<Generation>>,
    /// Why requests for what serves are refused, if they are.
    withheld: Option<Arc<str>>,
    /// Most recently used last; holds neither current, previous nor base.
    pinned: Vec<Arc<Generation>>,
    /// Forgotten generations that running sequences may still hold.
    forgotten: Vec<Weak<Generation>>,
    /// The candidate of a realignment, as long as that holds it.
    candidate: Weak<Generation>,
    /// Adapters that answer under names of their own, in the order in which they were added.
    named: Vec<Named>,
}

impl Registry {
    /// A registry in which the base model serves. `capacity` bounds the generations kept in memory
    /// besides the base; current and previous count and always stay.
    pub fn new(base: Arc<Generation>, capacity: usize) -> Self {
        Self {
            current: ArcSwap::new(Arc::clone(&base)),
            base,
            state: Mutex::new(State {
                previous: None,
                withheld: None,
                pinned: Vec::new(),
                forgotten: Vec::new(),
                candidate: Weak::new(),
                named: Vec::new(),
            }),
            capacity: capacity.max(2),
            loader: None,
        }
    }

    /// Lets `resolve` fetch generations that are not in memory.
    pub fn with_loader(mut self, loader: Loader) -> Self {
        self.loader = Some(loader);
        self
    }

    /// Leases the generation that serves: the lease lasts as long as the `Arc`.
    pub fn lease_current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// The base model, as a generation.
    pub fn base(&self) -> &Arc<Generation> {
        &self.base
    }

    /// Refuses requests for what serves, until a swap or [`Registry::offer`]. Requests that name the
    /// base or a generation are answered.
    pub fn withhold(&self, reason: &str) {
        self.state().withheld = Some(reason.into());
    }

    /// Ends [`Registry::withhold`]: what serves may answer.
    pub fn offer(&self) {
        self.state().withheld = None;
    }

    /// Why requests for what serves are refused; `None` if they are not.
    pub fn withheld(&self) -> Option<Arc<str>> {
        self.state().withheld.clone()
    }

    /// Whether a generation serves, can be rolled back to, or is held by a request.
    pub fn is_needed(&self, id: &GenerationId) -> bool {
        let state = self.state();
        let roles = [Some(self.lease_current()), state.previous.clone()];
        // References to a kept generation that are the registry's own are none of a request.
        let kept = state.pinned.iter();
        let kept = kept.filter(|g| Arc::strong_count(g) > 1 + state.named_as(g));
        let forgotten = state.forgotten.iter().filter_map(Weak::upgrade);
        let mut needed = roles.into_iter().flatten().chain(kept.cloned());
        needed.any(|g| g.id == *id) || forgotten.map(|g| g.id.clone()).any(|held| held == *id)
    }

    /// Drops a generation that was only kept in memory for later requests: its files are gone.
    pub fn forget(&self, id: &GenerationId) {
        let mut state = self.state();
        let gone = state.pinned.extract_if(.., |g| g.id == *id);
        let gone: Vec<_> = gone.map(|g| Arc::downgrade(&g)).collect();
        state.forgotten.extend(gone);
        self.forget_surplus(&mut state);
    }

    /// Shows a candidate that sits its exam to operators. Selectors of [`Registry::resolve`] do not
    /// name it: no gate has let it serve yet.
    pub fn show_candidate(&self, candidate: &Arc<Generation>) {
        self.state().candidate = Arc::downgrade(candidate);
    }

    /// The candidate that was shown last, while its realignment holds it and it does not serve.
    pub fn candidate(&self) -> Option<Arc<Generation>> {
        let candidate = self.state().candidate.upgrade()?;
        (candidate.id != self.lease_current().id).then_some(candidate)
    }

    /// What a rollback would return to.
    pub fn previous(&self) -> Option<Arc<Generation>> {
        self.state().previous.clone()
    }

    /// Sets what a rollback would return to, as an earlier process left it.
    pub fn remember_previous(&self, previous: Arc<Generation>) {
        let mut state = self.state();
        let base = previous.id == self.base.id;
        let previous = if base { self.base.clone() } else { previous };
        if previous.id != self.lease_current().id {
            state.previous = Some(previous);
        }
    }

    /// The generations in memory, base first, current last.
    pub fn loaded(&self) -> Vec<Arc<Generation>> {
        let state = self.state();
        let mut all = vec![Arc::clone(&self.base)];
        let others = state.pinned.iter().chain(&state.previous).cloned();
        for generation in others.chain([self.lease_current()]) {
            if all.iter().all(|g| g.id != generation.id) {
                all.push(generation);
            }
        }
        all
    }

    /// Leases what a request asked for: `None` or `current`, `base`, or a generation's id.
    /// May read from disk through the loader: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`ResolveError`] for a selector that names nothing, or a generation that does not load.
    pub fn resolve(&self, selector: Option<&str>) -> Result<Arc<Generation>, ResolveError> {
        match selector {
            None | Some("current") => match self.withheld() {
                Some(reason) => Err(ResolveError::Withheld { reason }),
                None => Ok(self.lease_current()),
            },
            Some("base") => Ok(Arc::clone(&self.base)),
            Some(text) if is_generation_id(text) => self.lease(&GenerationId(text.to_string())),
            Some(text) => Err(ResolveError::Unknown {
                selector: text.chars().take(64).collect(),
            }),
        }
    }

    fn lease(&self, id: &GenerationId) -> Result<Arc<Generation>, ResolveError> {
        if let Some(found) = self.find(&mut self.state(), id) {
            return Ok(found);
        }
        let unknown = || ResolveError::Unknown {
            selector: id.0.clone(),
        };
        let loader = self.loader.as_ref().ok_or_else(unknown)?;
        let loaded = loader(id).map_err(|error| match error {
            AdapterError::Unknown { .. } => unknown(),
            error => ResolveError::Load {
                id: id.clone(),
                reason: error.to_string(),
            },
        })?;
        let mut state = self.state();
        // Another thread may have loaded it in the meantime; one copy is enough.
        if let Some(found) = self.find(&mut state, id) {
            return Ok(found);
        }
        let loaded = Arc::new(loaded);
        state.pinned.push(Arc::clone(&loaded));
        self.forget_surplus(&mut state);
        Ok(loaded)
    }

    fn find(&self, state: &mut State, id: &GenerationId) -> Option<Arc<Generation>> {
        let current = self.lease_current();
        if let Some(found) = [&current, &self.base]
            .into_iter()
            .chain(&state.previous)
            .find(|g| g.id == *id)
        {
            return Some(Arc::clone(found));
        }
        if let Some(at) = state.pinned.iter().position(|g| g.id == *id) {
            let found = state.pinned.remove(at);
            state.pinned.push(Arc::clone(&found));
            return Some(found);
        }
        // Still held by a running sequence: share that copy rather than load another.
        state
            .forgotten
            .iter()
            .filter_map(Weak::upgrade)
            .find(|g| g.id == *id)
    }

    /// Makes `to` serve. Requests accepted from now on lease it; running ones keep theirs.
    ///
    /// # Errors
    /// [`SwapError::Conflict`] if `expected` is given and does not serve.
    pub fn swap(
        &self,
        to: Arc<Generation>,
        expected: Option<&GenerationId>,
    ) -> Result<Swapped, SwapError> {
        self.swap_locked(&mut self.state(), to, expected)
    }

    #[cfg(test)]
    /// Makes the previous generation serve again.
    ///
    /// # Errors
    /// [`SwapError::NoPrevious`], or as [`Registry::swap`].
    pub(crate) fn rollback(&self, expected: Option<&GenerationId>) -> Result<Swapped, SwapError> {
        let mut state = self.state();
        let Some(to) = state.previous.clone() else {
            return Err(SwapError::NoPrevious {
                current: self.lease_current().id.clone(),
            });
        };
        self.swap_locked(&mut state, to, expected)
    }

    fn swap_locked(
        &self,
        state: &mut State,
        to: Arc<Generation>,
        expected: Option<&GenerationId>,
    ) -> Result<Swapped, SwapError> {
        let from = self.lease_current();
        if let Some(expected) = expected.filter(|e| **e != from.id) {
            return Err(SwapError::Conflict {
                expected: expected.clone(),
                actual: from.id.clone(),
            });
        }
        state.withheld = None;
        let (from_id, to_id) = (from.id.clone(), to.id.clone());
        if from_id == to_id {
            // The same adapter for another policy set: only the label changes.
            if from.policy_revision != to.policy_revision {
                state.forgotten.push(Arc::downgrade(&from));
                self.current.store(to);
            }
            return Ok(Swapped {
                from: from_id,
                to: to_id,
                retired: None,
            });
        }
        // From now on it has served, and is no candidate if it serves no longer.
        if state.candidate.upgrade().is_some_and(|c| c.id == to_id) {
            state.candidate = Weak::new();
        }
        let was_previous = state.previous.replace(from);
        let same = state.pinned.extract_if(.., |g| g.id == to_id);
        // Requests may hold another copy of it, which was loaded for them.
        let others = same.filter(|g| !Arc::ptr_eq(g, &to));
        let others: Vec<_> = others.map(|g| Arc::downgrade(&g)).collect();
        state.forgotten.extend(others);
        state
            .forgotten
            .retain(|g| !std::ptr::eq(g.as_ptr(), Arc::as_ptr(&to)));
        let retired = was_previous.filter(|g| g.id != to_id);
        let retired_id = retired.as_ref().map(|g| g.id.clone());
        if let Some(retired) = retired.filter(|g| g.id != self.base.id) {
            state.pinned.push(retired);
        }
        self.current.store(to);
        self.forget_surplus(state);
        Ok(Swapped {
            from: from_id,
            to: to_id,
            retired: retired_id,
        })
    }

    /// Drops the least recently used generations beyond the bound. Sequences that hold one keep it.
    fn forget_surplus(&self, state: &mut State) {
        let keep = self.capacity - 2; // current and previous
        while state.pinned.len() > keep {
            let gone = state.pinned.remove(0);
            state.forgotten.push(Arc::downgrade(&gone));
        }
        state.forgotten.retain(|g| g.strong_count() > 0);
    }

    /// Sequences that hold generations. A snapshot: requests come and go while it is taken.
    pub fn leases(&self) -> LeaseCounts {
        let state = self.state();
        let current = self.current.load_full();
        let held_by_base = |g: &Arc<Generation>| usize::from(Arc::ptr_eq(g, &self.base));
        // In addition to leases, an `Arc` is counted once for the registry's own reference, once
        // for `current` in this function, and once more if it is also the base.
        let own = 2 + held_by_base(&current) + state.named_as(&current);
        let current_leases = Arc::strong_count(&current).saturating_sub(own);
        let mut counts = LeaseCounts {
            current: current_leases,
            ..LeaseCounts::default()
        };
        if let Some(previous) = &state.previous {
            let own = 1 + held_by_base(previous) + state.named_as(previous);
            counts.previous = Arc::strong_count(previous).saturating_sub(own);
        }
        let base_has_role = Arc::ptr_eq(&current, &self.base)
            || state
                .previous
                .as_ref()
                .is_some_and(|p| Arc::ptr_eq(p, &self.base));
        if !base_has_role {
            counts.base = Arc::strong_count(&self.base).saturating_sub(1);
        }
        let pinned = state
            .pinned
            .iter()
            .map(|g| Arc::strong_count(g).saturating_sub(1 + state.named_as(g)));
        let forgotten = state.forgotten.iter().map(|g| {
            let own = state.named.iter().filter(|n| n.is(g.as_ptr())).count();
            g.strong_count().saturating_sub(own)
        });
        let retired: usize = pinned.chain(forgotten).sum();
        counts.retired = retired + self.leases_by_name(&state);
        counts
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held; if it did, the lists are still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("current", &self.lease_current().id)
            .field("base", &self.base.id)
            .finish_non_exhaustive()
    }
}

/// Whether a text has the form of a generation id. Clients send these, and they become paths.
pub(crate) fn is_generation_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
