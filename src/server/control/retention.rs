//! Removes what exceeds `[retention]`: adapters, checkpoints, records and cached results.
//!
//! It runs when no realignment does, and only where the directories are locked. A kill at any point
//! leaves nothing that points to missing files: first the database forgets a generation, then its
//! directory loses its name, then its files go.

mod checkpoints;
mod plan;
mod probes;

use std::collections::BTreeMap;

use super::context::Context;
use super::error::StartError;
use super::worker::Worker;
use crate::api::CollectOptions;
use crate::api::answers::retention::{Collected, CollectedAdapter, Reason};
use crate::config::Config;
use crate::locks::Locks;
use crate::state::{DbLimits, StateDb, StateError};
use crate::telemetry::Event;
use plan::{Candidate, Decision, Facts, Limits};
use realign_core::Collectable;
use realign_core::clock::unix_seconds;
use realign_core::lock::LockError;
use realign_engine::adapter::generation::GenerationId;
use realign_engine::adapter::{AdapterError, AdapterStore};

/// Activations that are looked at: all that are kept.
const HISTORY: usize = 10_000;

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The adapter directory cannot be read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// What is needed cannot be told.
    #[error(transparent)]
    State(#[from] StateError),
    /// A server runs on the directories.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// What may not go, as far as memory knows it.
struct InUse<'a> {
    /// The generation that serves.
    current: Option<GenerationId>,
    /// What a rollback returns to, if memory knows it.
    previous: Option<GenerationId>,
    /// Revision of the active policy set.
    revision: String,
    /// Whether memory needs a generation.
    is_needed: &'a dyn Fn(&GenerationId) -> bool,
}

/// What is collected from.
#[derive(Clone, Copy)]
struct Places<'a> {
    config: &'a Config,
    store: &'a AdapterStore,
    db: &'a StateDb,
}

impl Worker {
    /// Removes what exceeds the limits. A failure costs space, nothing else.
    pub(super) fn collect(&self) {
        self.surroundings.collect(&self.context);
    }

    /// The same for an operator. A running realignment removes it at its end by itself.
    pub(super) fn collect_on_request(
        &self,
        options: CollectOptions,
    ) -> Result<Collected, StartError> {
        match &self.running {
            Some(running) if !options.dry_run => Err(StartError::Running(running.id.clone())),
            _ => Ok(collect(&self.context, options)?),
        }
    }
}

/// Removes what exceeds the limits in a running server, while no realignment runs.
pub(super) fn collect(
    context: &Context,
    options: CollectOptions,
) -> Result<Collected, CollectError> {
    let registry = &context.registry;
    let in_use = InUse {
        current: Some(registry.lease_current().id.clone()),
        previous: registry.previous().map(|previous| previous.id.clone()),
        revision: context.policies().revision().into(),
        is_needed: &|id| registry.is_needed(id),
    };
    let places = Places {
        config: &context.config,
        store: &context.store,
        db: &context.db,
    };
    let collected = places.collect(&in_use, options)?;
    if !options.dry_run {
        for adapter in collected.adapters.iter().filter(|adapter| adapter.removed) {
            registry.forget(&GenerationId(adapter.id.clone()));
        }
        context.emit(Event::Collected {
            removed: collected.removed.clone().into_iter().collect(),
            adapters_bytes: collected.kept_bytes,
        });
    }
    Ok(collected)
}

/// As a server does, for a command while none runs on the directories. Locks them meanwhile.
///
/// # Errors
/// [`CollectError`].
pub fn collect_offline(
    config: &Config,
    options: CollectOptions,
) -> Result<Collected, CollectError> {
    let locks = Locks::take(&config.paths)?;
    let store = AdapterStore::open_locked(&config.paths.adapters, locks.adapters())?;
    let db = StateDb::open(&config.paths.database())?;
    let newest = db.realignments(1)?.into_iter().next();
    let in_use = InUse {
        current: store.current()?,
        previous: None,
        revision: newest.map(|row| row.policy_revision).unwrap_or_default(),
        is_needed: &|_| false,
    };
    let places = Places {
        config,
        store: &store,
        db: &db,
    };
    places.collect(&in_use, options)
}

impl Places<'_> {
    fn collect(
        self,
        in_use: &InUse<'_>,
        options: CollectOptions,
    ) -> Result<Collected, CollectError> {
        let apply = !options.dry_run;
        let now = unix_seconds();
        let limits = self.config.retention;
        let candidates = self.candidates()?;
        let facts = self.facts(&candidates, in_use, now)?;
        let plan = plan::plan(
            candidates,
            &facts,
            Limits {
                generations: limits.generations,
                max_age: limits.max_age_s,
                max_bytes: limits.max_bytes,
                max_imported_age: options.max_imported_age_s,
            },
        );
        let adapters: Vec<CollectedAdapter> = plan
            .into_iter()
            .map(|decision| self.carry_out(decision, in_use, apply))
            .collect();
        let db_limits = DbLimits {
            runs: limits.generations,
            realignments: limits.realignments,
            cached: limits.cached,
            max_age: limits.max_age_s,
        };
        let gone = adapters.iter().filter(|adapter| adapter.removed);
        let mut removed = BTreeMap::from([(Collectable::Adapter.as_str(), gone.count() as u64)]);
        let runs = checkpoints::collect(self.config, &self.db.resumable_inputs()?, apply);
        removed.insert(Collectable::Checkpoint.as_str(), runs);
        let probes = self.config.paths.state.join("probes");
        let probes = probes::collect(&probes, limits.realignments, apply);
        removed.insert(Collectable::Probe.as_str(), probes);
        let trimmed = self.db.trim(db_limits, now, apply)?;
        removed.extend(trimmed.into_iter().map(|(kind, n)| (kind.as_str(), n)));
        let bytes = |gone: bool| {
            let of = adapters.iter().filter(|adapter| adapter.removed == gone);
            of.map(|adapter| adapter.bytes).sum()
        };
        Ok(Collected {
            dry_run: options.dry_run,
            freed_bytes: bytes(true),
            kept_bytes: bytes(false),
            adapters,
            removed,
        })
    }

    fn candidates(self) -> Result<Vec<Candidate>, AdapterError> {
        let candidate = |listed: realign_engine::adapter::store::Listed| {
            let manifest = listed.manifest.ok();
            Candidate {
                bytes: self.store.bytes(&listed.id),
                created_at: manifest.as_ref().map(|manifest| manifest.created_at),
                imported: manifest.is_some_and(|manifest| manifest.is_imported()),
                id: listed.id.0,
            }
        };
        Ok(self.store.list()?.into_iter().map(candidate).collect())
    }

    /// What may not go. Later reasons give way to earlier ones.
    fn facts(
        self,
        candidates: &[Candidate],
        in_use: &InUse<'_>,
        now: u64,
    ) -> Result<Facts, CollectError> {
        let history = self.db.activations(HISTORY)?;
        let mut uses = self.db.generation_uses()?;
        uses.extend(history.iter().rev().map(|row| (row.to.clone(), row.at)));
        let mut needed = BTreeMap::new();
        let mut need = |id: &str, reason| {
            needed.entry(id.to_owned()).or_insert(reason);
        };
        let named = self.store.current()?;
        for id in in_use.current.iter().chain(&named) {
            need(&id.0, Reason::Serves);
        }
        if let Some(id) = &in_use.previous {
            need(&id.0, Reason::RollbackTarget);
        }
        // Where memory does not know what served before, the history does.
        let serves = |id: &str| in_use.current.iter().chain(&named).any(|c| c.0 == id);
        if let Some(row) = history.iter().find(|row| serves(&row.to)) {
            need(&row.from, Reason::RollbackTarget);
        }
        if let Some((id, _)) = uses.iter().rev().find(|(id, _)| !serves(id)) {
            need(id, Reason::RollbackTarget);
        }
        for id in self.db.generations_in_force(&in_use.revision)? {
            need(&id, Reason::ActivePolicies);
        }
        for candidate in candidates {
            if (in_use.is_needed)(&GenerationId(candidate.id.clone())) {
                need(&candidate.id, Reason::Leased);
            }
        }
        Ok(Facts { now, needed, uses })
    }

    /// Removes an adapter that should go.
    fn carry_out(self, decision: Decision, in_use: &InUse<'_>, apply: bool) -> CollectedAdapter {
        let mut reason = decision.reason;
        if reason.removes() && apply {
            let id = GenerationId(decision.id.clone());
            let removal = self
                .db
                .forget_generation(&decision.id)
                .map_err(CollectError::from)
                .and_then(|()| Ok(self.store.remove(&id, in_use.is_needed)?));
            match removal {
                Ok(true) => tracing::info!(generation = %id, ?reason, "adapter removed"),
                Ok(false) => reason = Reason::Leased,
                Err(error) => {
                    tracing::warn!(generation = %id, %error, "an adapter cannot be removed");
                    reason = Reason::NotRemoved;
                }
            }
        }
        CollectedAdapter {
            removed: reason.removes(),
            id: decision.id,
            bytes: decision.bytes,
            used_at: decision.used_at,
            reason,
        }
    }
}
