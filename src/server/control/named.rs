//! Adapters that operators, and controllers of other projects, load under names of their own.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use crate::api::{AdminError, NewName};
use realign_engine::adapter::generation::{Generation, GenerationId, StagedAdapter};
use realign_engine::adapter::{AdapterError, NameError, Named, content_id, read_foreign};
use realign_engine::merged::PrepareError;

/// How long the engine may wait for room for the adapter.
const ROOM: Duration = Duration::from_secs(20);

impl Context {
    /// Loads an adapter under a name of its own.
    ///
    /// # Errors
    /// As [`AdminPort::load_adapter`](crate::api::AdminPort::load_adapter).
    pub(super) fn load_named(&self, new: NewName<'_>) -> Result<(), AdminError> {
        if let Some(there) = self.registry.named(new.name).filter(|_| !new.again) {
            let taken = NameError::Taken {
                name: new.name.into(),
                holds: there.id.clone(),
            };
            return Err(AdminError::Invalid(taken.to_string()));
        }
        let spec = self.loaded.spec();
        let shape_of = |site| spec.site_shape(site);
        let adapter = read_foreign(Path::new(new.path), &shape_of).map_err(unreadable)?;
        let base_hash = &self.loaded.base_hash;
        let id = content_id(base_hash, &adapter.weights).map_err(unreadable)?;
        if let Some(expected) = new.expected.filter(|expected| *expected != id.0) {
            return Err(AdminError::Conflict(format!(
                "the adapter in {} is generation {id} on this base model, not {expected}",
                new.path
            )));
        }
        if let Some(there) = self.registry.named(new.name) {
            return same(new.name, &there.id, &id);
        }
        let generation = match self.registry.in_memory(&id) {
            Some(generation) => generation,
            None => Arc::new(Generation {
                id: id.clone(),
                base_hash: base_hash.to_string(),
                // Only its content is known: it did not pass a gate here.
                policy_revision: None,
                adapter: Some(
                    StagedAdapter::new(&*self.loaded.backend, adapter.weights)
                        .map_err(|error| unreadable(error.into()))?,
                ),
            }),
        };
        self.probe(&generation)?;
        let named = Named {
            name: new.name.into(),
            path: new.path.into(),
            generation,
        };
        match self.registry.add_name(named) {
            Ok(()) => {
                tracing::info!(name = new.name, path = new.path, generation = %id, "adapter loaded by name");
                Ok(())
            }
            // Another request was faster.
            Err(NameError::Taken { holds, .. }) if new.again => same(new.name, &holds, &id),
            Err(error) => Err(AdminError::Invalid(error.to_string())),
        }
    }

    /// Has the engine compute with it.
    fn probe(&self, generation: &Arc<Generation>) -> Result<(), AdminError> {
        let wait = |waited| waited < ROOM;
        let probed = self.engine.prepare(generation, &wait);
        probed.map_err(|error| match error {
            // The adapter is at fault, and asking again does not change it.
            PrepareError::NotFinite { .. } | PrepareError::TakenOut { .. } => {
                AdminError::Invalid(error.to_string())
            }
            other => AdminError::Failed(other.to_string()),
        })
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// As [`AdminPort::unload_adapter`](crate::api::AdminPort::unload_adapter).
    pub(super) fn unload_named(
        &self,
        name: &str,
        expected: Option<&str>,
    ) -> Result<(), AdminError> {
        let gone = self.registry.remove_name(name, expected);
        let gone = gone.map_err(|error| match error {
            NameError::Unknown { .. } => AdminError::NotFound(error.to_string()),
            other => AdminError::Conflict(other.to_string()),
        })?;
        let candidate = self.registry.candidate();
        let elsewhere = self.registry.loaded();
        let mut needed = elsewhere.iter().chain(&candidate).map(|g| &g.id);
        let named = self.registry.names();
        if needed.all(|id| *id != gone.id) && named.iter().all(|n| n.generation.id != gone.id) {
            self.engine.release(&gone.id);
        }
        tracing::info!(name, generation = %gone.id, "adapter unloaded");
        Ok(())
    }
}

/// Whether a name that exists may be asked for again with this content.
fn same(name: &str, holds: &GenerationId, asked: &GenerationId) -> Result<(), AdminError> {
    if holds == asked {
        return Ok(());
    }
    Err(AdminError::Conflict(format!(
        "the LoRA adapter '{name}' is generation {holds}, and the directory holds {asked}: a name never \
         comes to mean other content; choose another name, or unload this one first"
    )))
}

fn unreadable(error: AdapterError) -> AdminError {
    match &error {
        AdapterError::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
            AdminError::NotFound(format!("no LoRA adapter can be read: {error}"))
        }
        _ => AdminError::Invalid(format!("the LoRA adapter cannot be used: {error}")),
    }
}
