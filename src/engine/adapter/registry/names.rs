//! Adapters that answer under names of their own, beside what serves.
//!
//! A name is given once: it never comes to mean other content. What a name refers to is leased like
//! any generation, so removing the name ends no running sequence.

use super::{Arc, Generation, GenerationId, Registry, State};

/// Most names that a server gives at once; each holds an adapter in memory.
pub const MAX_NAMES: usize = 16;

/// An adapter with a name of its own.
#[derive(Clone, Debug)]
pub struct Named {
    /// What requests send as `model`.
    pub name: Arc<str>,
    /// Where it was read from, as the operator wrote it.
    pub path: String,
    /// What it computes with.
    pub generation: Arc<Generation>,
}

/// Why a name was not given or not taken away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name refers to something already.
    #[error("the LoRA adapter '{name}' is loaded already, with generation {holds}")]
    Taken {
        /// The name.
        name: String,
        /// What it refers to, and goes on to refer to.
        holds: GenerationId,
    },
    /// There are as many names as there may be.
    #[error("{MAX_NAMES} adapters are loaded by name, which is the limit; unload one first")]
    Full,
    /// Nothing has this name.
    #[error("no LoRA adapter is loaded under the name '{name}'; GET /v1/models lists them")]
    Unknown {
        /// The name, cut to 128 characters.
        name: String,
    },
    /// The name refers to something else than the caller expects.
    #[error("the LoRA adapter '{name}' is generation {holds}, not {expected}")]
    Other {
        /// The name.
        name: String,
        /// What it refers to.
        holds: GenerationId,
        /// What the caller expects.
        expected: String,
    },
}

impl Named {
    pub(super) fn is(&self, generation: *const Generation) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.generation), generation)
    }
}

impl State {
    /// How many names refer to this copy of a generation.
    pub(super) fn named_as(&self, generation: &Arc<Generation>) -> usize {
        let this = Arc::as_ptr(generation);
        self.named.iter().filter(|n| n.is(this)).count()
    }
}

impl Registry {
    /// A copy of a generation that is in memory already, whatever for.
    pub fn in_memory(&self, id: &GenerationId) -> Option<Arc<Generation>> {
        let mut state = self.state();
        let named = state.named.iter().find(|n| n.generation.id == *id);
        let named = named.map(|n| Arc::clone(&n.generation));
        named.or_else(|| self.find(&mut state, id))
    }

    /// Leases what has this name, if anything has.
    pub fn named(&self, name: &str) -> Option<Arc<Generation>> {
        let state = self.state();
        let named = state.named.iter().find(|n| &*n.name == name);
        named.map(|n| Arc::clone(&n.generation))
    }

    /// Everything that has a name of its own, oldest first.
    pub fn names(&self) -> Vec<Named> {
        self.state().named.clone()
    }

    /// Gives a generation a name. What serves stays as it is.
    ///
    /// # Errors
    /// [`NameError::Taken`], also if the name refers to the same content, or [`NameError::Full`].
    pub fn add_name(&self, named: Named) -> Result<(), NameError> {
        let mut state = self.state();
        if let Some(there) = state.named.iter().find(|n| n.name == named.name) {
            return Err(NameError::Taken {
                name: there.name.to_string(),
                holds: there.generation.id.clone(),
            });
        }
        if state.named.len() >= MAX_NAMES {
            return Err(NameError::Full);
        }
        state.named.push(named);
        Ok(())
    }

    /// Takes a name away; sequences that run go on. Returns what it referred to.
    ///
    /// # Errors
    /// [`NameError::Unknown`], or [`NameError::Other`] if `expected` is given and it is not that.
    pub fn remove_name(
        &self,
        name: &str,
        expected: Option<&str>,
    ) -> Result<Arc<Generation>, NameError> {
        let mut state = self.state();
        let at = state.named.iter().position(|n| &*n.name == name);
        let at = at.ok_or_else(|| NameError::Unknown {
            name: name.chars().take(128).collect(),
        })?;
        let holds = &state.named[at].generation.id;
        if let Some(expected) = expected.filter(|e| *e != holds.0) {
            return Err(NameError::Other {
                name: name.into(),
                holds: holds.clone(),
                expected: expected.chars().take(64).collect(),
            });
        }
        let gone = state.named.remove(at).generation;
        let this = Arc::as_ptr(&gone);
        let shared = state.named_as(&gone) > 0 || self.keeps(&state, this);
        if !shared {
            // Leases of it are still counted, and a request for it shares this copy.
            state.forgotten.push(Arc::downgrade(&gone));
        }
        Ok(gone)
    }

    /// Leases of copies that only names keep in memory.
    pub(super) fn leases_by_name(&self, state: &State) -> usize {
        let mut counted: Vec<*const Generation> = Vec::new();
        let mut leases = 0;
        for named in &state.named {
            let this = Arc::as_ptr(&named.generation);
            if counted.contains(&this) || self.keeps(state, this) {
                continue;
            }
            counted.push(this);
            let own = state.named_as(&named.generation);
            leases += Arc::strong_count(&named.generation).saturating_sub(own);
        }
        leases
    }

    /// Whether something else than a name keeps this copy or counts its leases.
    fn keeps(&self, state: &State, this: *const Generation) -> bool {
        let strong = [&self.base].into_iter().chain(&state.previous);
        let mut strong = strong.chain(&state.pinned).map(Arc::as_ptr);
        let current = self.lease_current();
        strong.any(|g| g == this)
            || Arc::as_ptr(&current) == this
            || state.forgotten.iter().any(|g| g.as_ptr() == this)
    }
}
