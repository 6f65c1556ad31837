//! A server's part among those that share a store.
//!
//! `CURRENT` in the store says what all of them serve. A follower only reads it. Of the controllers one
//! holds the lease and writes it; the others follow it like followers, and begin no realignments. What a
//! server serves changes through [`Pointer`](super::pointer) alone, whatever decided it.

mod file;
mod fingerprint;
mod name;
mod status;
mod sync;
mod thread;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::config::{Config, StoreConfig};
use realign_engine::adapter::AdapterStore;
use realign_engine::adapter::generation::{Generation, GenerationId};
use realign_engine::adapter::{AdapterError, base_id};
use realign_engine::{EngineHandle, FingerprintError};
use realign_model::{LoadedModel, Tokenizer};
use realign_store::{Controller, Current, Files, Standing, Store, StoreError};

pub(super) use file::SharedFile;
pub(super) use thread::MemberThread;

/// A server that shares a store with others.
pub(crate) struct Member {
    settings: StoreConfig,
    name: String,
    store: Store,
    /// The right to publish; `None` for a follower.
    controller: Option<Controller>,
    adapters: Arc<AdapterStore>,
    base_hash: String,
    /// Computes fingerprints.
    engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    seen: Mutex<Seen>,
}

/// What this server knows of the store and of itself.
#[derive(Debug, Default)]
struct Seen {
    /// What `CURRENT` said last.
    current: Option<Current>,
    /// The epoch that serves; `None` until one of the store's does.
    serving: Option<u64>,
    /// Since when another epoch than `CURRENT`'s serves.
    behind_since: Option<Instant>,
    /// Why what `CURRENT` names does not serve, if so.
    behind: Option<String>,
    /// Why the store could not be used last, if so.
    failure: Option<String>,
    /// A generation that computes no numbers and cannot be left.
    broken: Option<GenerationId>,
    /// A generation of the store that this machine computes otherwise with than was published, and why
    /// it does not serve.
    differs: Option<(GenerationId, String)>,
    /// How far from what was published the last one that was verified is.
    distance: Option<f32>,
    /// Whether a publication failed since the last one.
    owes_publication: bool,
    /// Generations that are known to be whole in the store.
    uploaded: HashSet<String>,
}

impl Member {
    /// This server's part in the store of the configuration, if it has one. Asks the store nothing.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub(crate) fn open(
        config: &Config,
        loaded: &LoadedModel,
        engine: &EngineHandle,
        adapters: Arc<AdapterStore>,
    ) -> Result<Option<Arc<Self>>, StoreError> {
        let Some(settings) = config.store.clone() else {
            return Ok(None);
        };
        let store = Store::open(&settings.url)?;
        let name = match &settings.name {
            Some(name) => name.clone(),
            None => name::read_or_make(&config.paths.server_name())
                .map_err(|error| StoreError::Setup(error.to_string()))?,
        };
        let controller = (!settings.follow).then(|| {
            // A run that died must not be taken for its successor.
            let run = format!("{name}-{}", name::random());
            Controller::new(store.clone(), run, settings.lease)
        });
        tracing::info!(store = %settings.url, name, follow = settings.follow, "this server shares a store");
        Ok(Some(Arc::new(Self {
            settings,
            name,
            store,
            controller,
            adapters,
            base_hash: loaded.base_hash.to_string(),
            engine: engine.clone(),
            tokenizer: loaded.tokenizer.clone(),
            seen: Mutex::default(),
        })))
    }

    /// Whether this server only serves what the store names.
    pub(crate) fn follows(&self) -> bool {
        self.controller.is_none()
    }

    /// Why this server must not get requests, if so.
    pub(crate) fn unready(&self) -> Option<String> {
        let seen = self.seen();
        if let Some(broken) = &seen.broken {
            return Some(format!(
                "generation {broken} computes values that are not finite, and a server that follows \
                 a store serves nothing else; activate another one on the controller"
            ));
        }
        if let Some((_, why)) = &seen.differs {
            return Some(why.clone());
        }
        let why = || {
            let known = [&seen.failure, &seen.behind].into_iter().flatten();
            let known: Vec<&str> = known.map(String::as_str).collect();
            match known.as_slice() {
                [] => "it is being loaded".into(),
                known => known.join("; "),
            }
        };
        let named = seen.current.as_ref().map(|current| current.epoch);
        match (seen.serving, named) {
            (None, Some(epoch)) => Some(format!(
                "this server does not serve epoch {epoch} of {} yet: {}",
                self.settings.url,
                why()
            )),
            (None, None) => Some(format!(
                "it is not known yet what {} says should serve: {}",
                self.settings.url,
                why()
            )),
            (Some(serving), Some(epoch)) => {
                let skew = epoch.saturating_sub(serving);
                (skew > self.settings.max_skew_epochs).then(|| {
                    format!(
                        "this server serves epoch {serving}, and {} is at epoch {epoch} \
                         (fleet.max_skew_epochs is {}): {}",
                        self.settings.url,
                        self.settings.max_skew_epochs,
                        why()
                    )
                })
            }
            (Some(_), None) => None,
        }
    }

    /// This generation serves, computes no numbers, and nothing may replace it here.
    pub(super) fn keep_broken(&self, generation: &GenerationId) {
        self.seen().broken = Some(generation.clone());
    }

    /// Why no realignment may begin here, if so: what it leads to could not be published.
    pub(crate) fn may_not_realign(&self) -> Option<String> {
        let Some(controller) = &self.controller else {
            return Some(format!(
                "this server follows {}; realignments run on the controller",
                self.settings.url
            ));
        };
        match controller.standing() {
            Standing::Standby(why) => Some(format!("this server may not publish: {why}")),
            Standing::Holder { current, .. } => {
                let seen = self.seen();
                (seen.serving != Some(current.epoch)).then(|| {
                    let why = seen.behind.as_deref().unwrap_or("it is being loaded");
                    format!("this server does not serve what the store names yet: {why}")
                })
            }
        }
    }

    /// Makes a generation the one that all servers of the store serve. Where this server may not, only
    /// what the store names already passes.
    ///
    /// # Errors
    /// [`AdapterError::Shared`] with the reason.
    fn publish(&self, generation: &Arc<Generation>, pinned: bool) -> Result<(), AdapterError> {
        let refused = |why: String| {
            self.seen().owes_publication = true;
            AdapterError::Shared(why)
        };
        let is_named = self.names(&generation.id);
        let Some(controller) = &self.controller else {
            return match is_named {
                true => Ok(()),
                false => Err(AdapterError::Shared(format!(
                    "this server follows {}; change what serves on the controller",
                    self.settings.url
                ))),
            };
        };
        if let Standing::Standby(why) = controller.standing() {
            return match is_named {
                true => Ok(()),
                false => Err(refused(why)),
            };
        }
        if !is_named && let Some(epoch) = self.not_served_yet() {
            return Err(refused(format!(
                "this server does not serve epoch {epoch} yet, which is current"
            )));
        }
        self.upload(generation)
            .map_err(|error| refused(error.to_string()))?;
        let published = controller.publish(&self.record(generation, pinned));
        let current = published.map_err(|error| refused(error.to_string()))?;
        let mut seen = self.seen();
        seen.current = Some(current);
        seen.owes_publication = false;
        Ok(())
    }

    /// Writes a generation into the store, unless it is there or this server may not.
    pub(super) fn upload(&self, generation: &Arc<Generation>) -> Result<(), UploadError> {
        let id = &generation.id;
        let may = self
            .controller
            .as_ref()
            .is_some_and(|c| matches!(c.standing(), Standing::Holder { .. }));
        if !may || generation.adapter.is_none() || self.seen().uploaded.contains(&id.0) {
            return Ok(());
        }
        let [config, weights, manifest] = self.adapters.files(id, &self.base_hash)?;
        let files = [config, weights, self.fingerprinted(generation, manifest)?];
        self.store
            .upload(&id.0, &Files(files.map(bytes::Bytes::from)))?;
        self.seen().uploaded.insert(id.0.clone());
        Ok(())
    }

    fn record(&self, generation: &Generation, pinned: bool) -> Current {
        let mut record = Current::nothing();
        record.generation = Some(generation.id.0.clone());
        record.is_base = generation.adapter.is_none();
        record.base_hash = Some(self.base_hash.clone());
        record.policy_revision = generation.policy_revision.clone();
        record.pinned = pinned;
        record
    }

    /// The epoch that is current, as long as none of the store's has ever served here.
    fn not_served_yet(&self) -> Option<u64> {
        let seen = self.seen();
        let named = seen.current.as_ref().map(|current| current.epoch)?;
        seen.serving.is_none().then_some(named)
    }

    /// Whether the store names this generation, as far as this server knows.
    fn names(&self, id: &GenerationId) -> bool {
        let seen = self.seen();
        let named = seen.current.as_ref().and_then(|c| c.generation.as_ref());
        named == Some(&id.0)
    }

    /// The base model's own id.
    fn base(&self) -> GenerationId {
        base_id(&self.base_hash)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a generation is not in the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// Its files cannot be read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Its fingerprint cannot be computed.
    #[error(transparent)]
    Fingerprint(#[from] FingerprintError),
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}
