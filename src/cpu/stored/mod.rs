//! Packed weights in a file: written once, mapped read-only by every start after that.
//!
//! A file is named by what it was made from: the SHA-256 of the model's files and their quantisation
//! ([`ModelFiles::base_hash`]), the model's shapes as they were read, [`LAYOUT`] and the version of
//! this program. It is read from end to end before it is used, and every part has a checksum: one that
//! is damaged or was cut short is removed, and the weights are packed again. Nothing here can keep a
//! model from being loaded: whatever fails, weights are packed into memory as without a cache.
//!
//! `DIRECTORY/SIZE/KEY.weights`, where SIZE is that of the model's files; `SIZE/LOCK` is the right to
//! write there, so that of several servers that start at once one packs and the others map.

mod evict;
mod format;
mod map;
mod write;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::Device;
use realign_core::lock::{DirLock, Holder, LOCK_FILE, LockError, Place};
use realign_model::cache::{WeightsCache, make_private};
use realign_model::error::Result as ModelResult;
use realign_model::{ModelFiles, ModelSpec, StoredMatrix};
use sha2::{Digest, Sha256};

use self::format::Contents;
pub(crate) use self::map::Panels;
use self::write::Writer;
use crate::Model;
use crate::backend::{load, packed};

#[cfg(test)]
mod tests;

/// The layout of packed weights. **It must grow with every change to what is packed or how**: the
/// order of elements, the formats of blocks, what is done to rows, norms or biases while they are
/// read. A test compares the bytes of some packed matrices with those of this layout.
pub(crate) const LAYOUT: u32 = 3;

/// The longest that a start waits while another process packs the same weights.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where a model's weights came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// They were packed into memory, as there is no cache or it is of no use.
    Memory,
    /// They were packed, written and mapped.
    Written,
    /// They were packed before, and mapped.
    Mapped,
}

/// A model's weights, from its cache if it has one. Says in the log where they came from.
///
/// # Errors
/// As [`load`].
pub fn load_cached(files: &ModelFiles) -> ModelResult<(Model, Origin)> {
    let started = Instant::now();
    let (model, origin) = match files.cache() {
        None => (load(files)?, Origin::Memory),
        Some(cache) => from_cache(files, cache)?,
    };
    let what = match origin {
        Origin::Memory => "weights packed into memory",
        Origin::Written => "weights packed, written to the cache and mapped",
        Origin::Mapped => "weights mapped from the cache",
    };
    tracing::info!(
        mb = bytes_of(&model) >> 20,
        seconds = started.elapsed().as_secs_f64(),
        directory = files
            .cache()
            .map(|cache| cache.directory.display().to_string()),
        "{what}"
    );
    Ok((model, origin))
}

fn bytes_of(model: &Model) -> usize {
    let head = match model.spec.tied_embeddings {
        true => 0,
        false => model.head.bytes(),
    };
    let layers = model.weights().map(crate::PackedWeight::bytes);
    layers.sum::<usize>() + model.embedding.bytes() + head
}

/// Why there is no use in the cache this time.
type Unusable = String;

fn from_cache(files: &ModelFiles, cache: &WeightsCache) -> ModelResult<(Model, Origin)> {
    let spec = files.spec()?;
    let shelf = Shelf {
        directory: cache.directory.join(files.weight_bytes()?.to_string()),
        spec,
    };
    // Where nothing of this size is kept, packing need not wait for the hash.
    let hash = match files.known_hash() {
        None if shelf.has_any() => Some(files.base_hash()?),
        known => known,
    };
    if let Some(model) = hash.as_deref().and_then(|hash| shelf.find(hash)) {
        return Ok((model, Origin::Mapped));
    }
    match shelf.make(files, cache)? {
        Ok(made) => Ok(made),
        Err(why) => {
            tracing::warn!(
                directory = %cache.directory.display(),
                "packed weights are not kept: {why}. The server runs without; set engine.weights_cache \
                 to a directory that has room for them, or to \"off\""
            );
            Ok((load(files)?, Origin::Memory))
        }
    }
}

/// The files of models of one size.
struct Shelf {
    directory: PathBuf,
    spec: ModelSpec,
}

impl Shelf {
    fn key(&self, hash: &str) -> String {
        let mut key = Sha256::new();
        key.update(format!(
            "{hash} {LAYOUT} {} {} {:?}",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::ARCH,
            self.spec
        ));
        hex::encode(key.finalize())
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.{}", evict::EXTENSION))
    }

    fn has_any(&self) -> bool {
        let is_kept = |path: &PathBuf| path.extension().is_some_and(|e| e == evict::EXTENSION);
        let listed = fs::read_dir(&self.directory).into_iter().flatten();
        listed.flatten().any(|entry| is_kept(&entry.path()))
    }

    /// The weights of files with this hash, if they are kept and whole.
    fn find(&self, hash: &str) -> Option<Model> {
        let key = self.key(hash);
        let path = self.path(&key);
        let file = match map::open(&path) {
            Ok(Some(file)) => file,
            Ok(None) => return None,
            Err(why) => {
                tracing::warn!(path = %path.display(), "kept weights are not used: {why}");
                return None;
            }
        };
        match format::read(&file, &key, &self.spec) {
            Ok(model) => {
                evict::touch(&file);
                Some(model)
            }
            Err(why) => {
                tracing::warn!(
                    path = %path.display(),
                    "kept weights are damaged ({why}): they are removed, and packed again"
                );
                // Servers that have it mapped keep it.
                if let Err(error) = fs::remove_file(&path) {
                    tracing::debug!(%error, "a damaged file stays");
                }
                None
            }
        }
    }

    fn lock(&self) -> Result<DirLock, Unusable> {
        make_private(&self.directory).map_err(|e| format!("{}: {e}", self.directory.display()))?;
        let place = Place {
            dir: &self.directory,
            file: LOCK_FILE,
            advice: "it packs the same weights",
        };
        let holder = Holder::this_process(None);
        let first = DirLock::take(place, &holder, Duration::ZERO);
        let lock = match first {
            Err(LockError::Held { .. }) => {
                tracing::info!("another process packs the same weights: waiting for it");
                DirLock::take(place, &holder, PATIENCE)
            }
            other => other,
        };
        lock.map_err(|e| e.to_string())
    }

    /// Packs the weights into a file and maps it.
    fn make(
        &self,
        files: &ModelFiles,
        cache: &WeightsCache,
    ) -> ModelResult<Result<(Model, Origin), Unusable>> {
        let lock = match self.lock() {
            Ok(lock) => lock,
            Err(why) => return Ok(Err(why)),
        };
        // Another process may have packed them while this one waited.
        if self.has_any()
            && let Some(model) = self.find(&files.base_hash()?)
        {
            return Ok(Ok((model, Origin::Mapped)));
        }
        let part = self.directory.join("part");
        match self.write(files, cache, &part) {
            Ok(Ok((file, model, key))) => {
                let publish = Publish {
                    file,
                    part,
                    path: self.path(&key),
                    cache: cache.clone(),
                    lock,
                };
                publish.in_background();
                Ok(Ok((model, Origin::Written)))
            }
            Ok(Err(why)) => {
                let _ = fs::remove_file(&part);
                Ok(Err(why))
            }
            Err(error) => {
                let _ = fs::remove_file(&part);
                Err(error)
            }
        }
    }

    /// Writes all weights to `part`: the file, the model in it, and its key.
    fn write(
        &self,
        files: &ModelFiles,
        cache: &WeightsCache,
        part: &Path,
    ) -> ModelResult<Result<(File, Model, String), Unusable>> {
        let written = match pack_into(files, cache, part)? {
            Ok(written) => written,
            Err(why) => return Ok(Err(why)),
        };
        let key = self.key(&files.base_hash()?);
        let kept = written.finish(&key).and_then(|file| {
            let model = format::read(&file, &key, &self.spec)?;
            Ok((file, model, key))
        });
        // Weights of one content must never get the name of another.
        Ok(kept.and_then(|kept| match files.are_unchanged() {
            true => Ok(kept),
            false => Err("the model's files changed while they were read".into()),
        }))
    }
}

/// A file that is complete, and yet to be made lasting.
struct Publish {
    file: File,
    part: PathBuf,
    path: PathBuf,
    cache: WeightsCache,
    /// Until it is there under its name.
    lock: DirLock,
}

impl Publish {
    /// Without keeping a start waiting for the disk: the file serves already.
    fn in_background(self) {
        let thread = std::thread::Builder::new().name("weights-cache".into());
        let spawned = thread.spawn(move || self.run());
        if let Err(error) = spawned {
            tracing::warn!(%error, "packed weights are not kept: no thread");
        }
    }

    fn run(self) {
        let kept = self
            .file
            .sync_all()
            .and_then(|()| fs::rename(&self.part, &self.path))
            .and_then(|()| sync(self.path.parent()));
        match kept {
            Ok(()) => evict::to_bound(&self.cache, &self.path),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "packed weights are not kept");
                let _ = fs::remove_file(&self.part);
            }
        }
        self.lock.release();
    }
}

fn sync(directory: Option<&Path>) -> std::io::Result<()> {
    directory.map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Packs all weights into `part`, each as it is read.
fn pack_into(
    files: &ModelFiles,
    cache: &WeightsCache,
    part: &Path,
) -> ModelResult<Result<write::Complete, Unusable>> {
    let mut writer = match Writer::create(part, cache.max_bytes) {
        Ok(writer) => writer,
        Err(why) => return Ok(Err(why)),
    };
    let decoder = files.load(&Device::Cpu, |stored| match &stored {
        StoredMatrix::Mapped(blocks) => writer.add_blocks(blocks),
        stored => writer.add(packed(stored)?),
    });
    match decoder {
        // What the writer failed at is no fault of the model.
        Err(_) if writer.has_failed() => Ok(Err(writer.fail())),
        Err(error) => Err(error),
        Ok(decoder) => Ok(writer.complete(decoder)),
    }
}

impl Contents {
    /// The model's shapes, as its weights turned out.
    fn spec(&self, spec: &ModelSpec) -> ModelSpec {
        ModelSpec {
            tied_embeddings: self.tied,
            ..spec.clone()
        }
    }
}
