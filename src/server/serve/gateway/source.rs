//! What should serve: the store's `CURRENT`, or that of the adapter directory.

use realign_engine::adapter::generation::GenerationId;
use realign_engine::adapter::{AdapterStore, base_id};
use realign_fleet::{Durable, Release};
use realign_store::Store;

/// The id of the base model in a fleet: targets may have several hashes of one model.
pub(super) const BASE: &str = "base";

/// Where `CURRENT` is.
pub(super) enum Source {
    /// On this machine: epochs are counted here.
    Directory(AdapterStore),
    /// In a store that servers share. Generations are fetched into the directory.
    Store(Store, AdapterStore),
}

impl Source {
    /// What should serve now; the adapter is in the directory then, and whole. `None` before
    /// anything was published.
    ///
    /// # Errors
    /// Why that is not known, or cannot be fetched.
    pub(super) fn look(&self, durable: &Durable) -> Result<Option<Release>, String> {
        match self {
            Source::Directory(adapters) => local(adapters, durable).map(Some),
            Source::Store(store, adapters) => shared(store, adapters),
        }
    }
}

fn base(epoch: u64) -> Release {
    Release {
        epoch,
        generation: BASE.into(),
        is_base: true,
    }
}

fn local(adapters: &AdapterStore, durable: &Durable) -> Result<Release, String> {
    let named = adapters.current().map_err(|error| error.to_string())?;
    let next = match named {
        None => base(0),
        Some(id) if !adapters.path(&id).is_dir() && is_base(adapters, &id)? => base(0),
        Some(id) => Release {
            epoch: 0,
            generation: id.0.clone(),
            is_base: false,
        },
    };
    let release = Release {
        epoch: epoch(durable, &next),
        ..next
    };
    let known = durable
        .current
        .as_ref()
        .is_some_and(|c| c.is_same(&release));
    if !known && !release.is_base {
        let id = GenerationId(release.generation.clone());
        let manifest = adapters.manifest(&id).map_err(|error| error.to_string())?;
        let whole = adapters.load(&id, &manifest.base_hash);
        whole.map_err(|error| error.to_string())?;
    }
    Ok(release)
}

/// Whether an id is that of the base model of any adapter here.
fn is_base(adapters: &AdapterStore, id: &GenerationId) -> Result<bool, String> {
    let listed = adapters.list().map_err(|error| error.to_string())?;
    let mut manifests = listed.iter().filter_map(|l| l.manifest.as_ref().ok());
    Ok(manifests.any(|m| base_id(&m.base_hash) == *id))
}

/// The epoch under which a generation of the directory is known, or the next one.
fn epoch(durable: &Durable, next: &Release) -> u64 {
    let rollout = durable.rollout.as_ref().map(|r| &r.to);
    let refused = durable.refused.as_ref().map(|r| &r.release);
    let known = [rollout, durable.current.as_ref(), refused];
    let known = || known.iter().copied().flatten();
    // Only the newest counts: what is gone back to is a new publication.
    let newest = known().max_by_key(|r| r.epoch);
    match newest {
        Some(newest) if newest.is_same(next) => newest.epoch,
        Some(newest) => newest.epoch + 1,
        None => 1,
    }
}

fn shared(store: &Store, adapters: &AdapterStore) -> Result<Option<Release>, String> {
    let current = store.current().map_err(|error| error.to_string())?;
    let Some(current) = current else {
        return Ok(None);
    };
    let (Some(id), Some(base_hash)) = (current.generation, current.base_hash) else {
        return Ok(None);
    };
    if current.is_base {
        return Ok(Some(base(current.epoch)));
    }
    let generation = GenerationId(id.clone());
    if adapters.load(&generation, &base_hash).is_err() {
        let found = store.download(&id).map_err(|error| error.to_string())?;
        let files = found.ok_or_else(|| {
            format!("generation {id} is not whole in the store, although CURRENT names it")
        })?;
        let bytes = files.0.each_ref().map(|file| &file[..]);
        let added = adapters.add(&generation, &base_hash, bytes);
        added.map_err(|error| format!("generation {id} of the store: {error}"))?;
    }
    Ok(Some(Release {
        epoch: current.epoch,
        generation: id,
        is_base: false,
    }))
}

#[cfg(test)]
mod tests {
    use realign_engine::adapter::Manifest;
    use realign_engine::adapter::test_support::small_weights;

    use super::*;

    #[test]
    fn a_directory_says_what_should_serve_and_counts_publications() {
        let dir = tempfile::tempdir().unwrap();
        let adapters = AdapterStore::open(dir.path()).unwrap();
        let manifest = || Manifest {
            base_hash: "b".repeat(64),
            ..Manifest::default()
        };
        let source = Source::Directory(adapters.clone());
        let mut durable = Durable::default();
        let look = |durable: &mut Durable| {
            let release = source.look(durable).unwrap().unwrap();
            durable.current = Some(release.clone());
            (release.epoch, release.generation)
        };
        assert_eq!(look(&mut durable), (1, BASE.into()));
        let first = adapters
            .publish(&small_weights(2, 1.0), manifest())
            .unwrap();
        assert_eq!(look(&mut durable), (2, first.0.clone()));
        assert_eq!(look(&mut durable), (2, first.0.clone()));
        let second = adapters
            .publish(&small_weights(2, 2.0), manifest())
            .unwrap();
        assert_eq!(look(&mut durable), (3, second.0.clone()));
        adapters.set_current(&first).unwrap();
        assert_eq!(look(&mut durable), (4, first.0));
        adapters.set_current_base(&manifest().base_hash).unwrap();
        assert_eq!(look(&mut durable), (5, BASE.into()));
        // What is damaged is not rolled out.
        let file = adapters.path(&second).join("adapter_model.safetensors");
        std::fs::write(file, "no adapter").unwrap();
        adapters.set_current(&second).unwrap();
        assert!(source.look(&durable).is_err());
        std::fs::write(dir.path().join("CURRENT"), "0123456789ab\n").unwrap();
        assert!(
            source.look(&durable).is_err(),
            "there is no such generation"
        );
    }
}
