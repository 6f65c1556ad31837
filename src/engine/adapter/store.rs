//! The adapter directory: `<generation>/` per published adapter, and `CURRENT`.
//!
//! Publishing writes into a staging directory, syncs it, renames it, and only then renames
//! `CURRENT`. A kill at any point leaves the old generation or the new one, never neither.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::generation::GenerationId;
use super::manifest::Manifest;
use super::registry::is_generation_id;
use super::{AdapterError, content, peft};
use realign_core::clock::unix_seconds;
use realign_core::crash_point;
use realign_core::files::{self, Limit};
use realign_core::lock::DirLock;
use realign_model::lora::LoraWeights;

mod removal;
#[cfg(test)]
mod tests;
mod transfer;

/// File name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
const CURRENT_FILE: &str = "CURRENT";
/// Makes the name of each temporary file of this process its own.
static WRITES: AtomicU64 = AtomicU64::new(0);
const STAGING_PREFIX: &str = ".staging-";
const MAX_CURRENT: Limit = Limit::bytes(4096);
const MAX_MANIFEST: Limit = Limit::mib(16);

/// An adapter directory.
#[derive(Clone, Debug)]
pub struct AdapterStore {
    root: PathBuf,
    /// The directory's lock, if it was opened for the holder of it.
    lock: Option<Arc<DirLock>>,
    /// Held while `CURRENT` is written or a generation is removed.
    changing: Arc<Mutex<()>>,
}

/// A generation read back and verified.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its weights, f32 on the CPU.
    pub weights: LoraWeights,
    /// The verified manifest, `generation` filled in.
    pub manifest: Manifest,
}

/// An entry of the directory. One that cannot be read is listed with its reason.
#[derive(Debug)]
pub struct Listed {
    /// The name of its directory.
    pub id: GenerationId,
    /// Its manifest, or why there is none.
    pub manifest: Result<Manifest, AdapterError>,
}

impl AdapterStore {
    /// Opens a directory without touching it: to read, or to add generations. It need not exist yet.
    /// A server opens it with [`AdapterStore::open_locked`].
    ///
    /// # Errors
    /// [`AdapterError::Io`] if the path is something else than a directory.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, AdapterError> {
        let root = root.into();
        if root.exists() && !root.is_dir() {
            let error = std::io::Error::from(ErrorKind::NotADirectory);
            return Err(AdapterError::io(&root)(error));
        }
        Ok(Self {
            root,
            lock: None,
            changing: Arc::default(),
        })
    }

    /// The directory that holds `CURRENT` and one directory per generation.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a generation's files are.
    pub fn path(&self, id: &GenerationId) -> PathBuf {
        self.root.join(&id.0)
    }

    fn names(&self) -> Result<Vec<String>, AdapterError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(AdapterError::io(&self.root)(error)),
        };
        let names: Result<Vec<String>, _> = entries
            .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect();
        names.map_err(AdapterError::io(&self.root))
    }

    /// Writes a generation and makes it current. Publishing what is there already only makes it
    /// current.
    ///
    /// # Errors
    /// [`AdapterError`]; `CURRENT` is unchanged then.
    pub fn publish(
        &self,
        weights: &LoraWeights,
        manifest: Manifest,
    ) -> Result<GenerationId, AdapterError> {
        let id = self.write(weights, manifest)?;
        self.set_current(&id)?;
        Ok(id)
    }

    /// As [`AdapterStore::publish`], without touching `CURRENT`: for imports.
    ///
    /// # Errors
    /// [`AdapterError`].
    pub fn write(
        &self,
        weights: &LoraWeights,
        manifest: Manifest,
    ) -> Result<GenerationId, AdapterError> {
        self.write_beside(weights, manifest, &[])
    }

    /// As [`AdapterStore::write`], with further files (name, content) in the same directory, such
    /// as the loss curve. They do not affect the generation's id.
    ///
    /// # Errors
    /// [`AdapterError`].
    pub fn write_beside(
        &self,
        weights: &LoraWeights,
        manifest: Manifest,
        extra_files: &[(&str, String)],
    ) -> Result<GenerationId, AdapterError> {
        let id = content::content_id(&manifest.base_hash, weights)?;
        let _publishing = self.publishing()?;
        if self.load(&id, &manifest.base_hash).is_ok() {
            return Ok(id);
        }
        let staging = self.root.join(format!("{STAGING_PREFIX}{id}"));
        fs::create_dir(&staging).map_err(AdapterError::io(&staging))?;
        let files = peft::encode(weights, &manifest.base_name)?;
        let manifest = Manifest {
            generation: Some(id.clone()),
            adapter_sha256: hex::encode(Sha256::digest(&files.model)),
            created_at: unix_seconds(),
            realign_version: env!("CARGO_PKG_VERSION").to_string(),
            ..manifest
        };
        let manifest_path = staging.join(MANIFEST_FILE);
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| AdapterError::format(&manifest_path, e.to_string()))?;
        write_synced(&staging.join(peft::CONFIG_FILE), &files.config)?;
        write_synced(&staging.join(peft::MODEL_FILE), &files.model)?;
        write_synced(&manifest_path, &text)?;
        for (name, content) in extra_files {
            write_synced(&staging.join(name), content.as_bytes())?;
        }
        sync_dir(&staging)?;
        // Read back before anything refers to it: an adapter that cannot be loaded is not published.
        verify(&staging, &id, &manifest.base_hash)?;
        self.put_in_place(&staging, &id)?;
        Ok(id)
    }

    /// Gives a staged and verified generation its name.
    fn put_in_place(&self, staging: &Path, id: &GenerationId) -> Result<(), AdapterError> {
        crash_point("publish:after-staging");
        let target = self.path(id);
        // An existing directory is damaged, or it would have been found whole.
        remove_if_there(&target)?;
        fs::rename(staging, &target).map_err(AdapterError::io(&target))?;
        sync_dir(&self.root)?;
        crash_point("publish:after-rename");
        Ok(())
    }

    /// Reads a generation and verifies its hashes, its id and its base model.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`], [`AdapterError::OtherBase`], or what is damaged.
    pub fn load(&self, id: &GenerationId, base_hash: &str) -> Result<Stored, AdapterError> {
        let dir = self.existing(id)?;
        verify(&dir, id, base_hash)
    }

    /// Reads a generation's manifest, without its tensors.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`], or what is damaged.
    pub fn manifest(&self, id: &GenerationId) -> Result<Manifest, AdapterError> {
        read_manifest(&self.existing(id)?)
    }

    fn existing(&self, id: &GenerationId) -> Result<PathBuf, AdapterError> {
        let dir = self.path(id);
        // Ids come from clients; nothing but a well-formed id may become a path.
        if !is_generation_id(&id.0) || !dir.is_dir() {
            return Err(AdapterError::Unknown {
                id: id.clone(),
                root: self.root.clone(),
            });
        }
        Ok(dir)
    }

    /// All generations, oldest first, then those that cannot be read.
    ///
    /// # Errors
    /// [`AdapterError::Io`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, AdapterError> {
        let mut listed: Vec<Listed> = self
            .names()?
            .into_iter()
            .filter(|name| is_generation_id(name))
            .map(|name| {
                let manifest = read_manifest(&self.root.join(&name));
                Listed {
                    id: GenerationId(name),
                    manifest,
                }
            })
            .collect();
        listed.sort_by_key(|l| {
            (
                l.manifest.as_ref().map_or(u64::MAX, |m| m.created_at),
                l.id.clone(),
            )
        });
        Ok(listed)
    }

    /// The generation named by `CURRENT`; `None`, before the first publication, is the base model.
    ///
    /// # Errors
    /// [`AdapterError::Io`], or [`AdapterError::Format`] if it holds no id.
    pub fn current(&self) -> Result<Option<GenerationId>, AdapterError> {
        let path = self.root.join(CURRENT_FILE);
        let read = files::read_text_if_there(&path, MAX_CURRENT);
        let Some(text) = read.map_err(AdapterError::io(&path))? else {
            return Ok(None);
        };
        let id = text.trim();
        if !is_generation_id(id) {
            return Err(AdapterError::format(
                &path,
                format!("{id:?} is no generation; put an id from `realign adapters list` into it"),
            ));
        }
        Ok(Some(GenerationId(id.to_string())))
    }

    /// Makes a published generation the current one, which a server starts with.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`], [`AdapterError::Io`], or [`AdapterError::Lock`] if another process
    /// holds the directory.
    pub fn set_current(&self, id: &GenerationId) -> Result<(), AdapterError> {
        let _exclusive = self.exclusive()?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.existing(id)?;
        self.write_current(id)
    }

    /// Makes current again what was, which may not be there any more.
    ///
    /// # Errors
    /// [`AdapterError::Io`] or [`AdapterError::Lock`].
    pub fn set_current_again(&self, id: &GenerationId) -> Result<(), AdapterError> {
        let _exclusive = self.exclusive()?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_current(id)
    }

    /// Makes the base model current: `CURRENT` then holds its [`content::base_id`].
    ///
    /// # Errors
    /// [`AdapterError::Io`] or [`AdapterError::Lock`].
    pub fn set_current_base(&self, base_hash: &str) -> Result<(), AdapterError> {
        let _exclusive = self.exclusive()?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_current(&content::base_id(base_hash))
    }

    fn write_current(&self, id: &GenerationId) -> Result<(), AdapterError> {
        let temp = self.root.join(format!(
            "{CURRENT_FILE}.{}-{}.tmp",
            std::process::id(),
            WRITES.fetch_add(1, Ordering::Relaxed)
        ));
        write_synced(&temp, format!("{id}\n").as_bytes())?;
        crash_point("publish:after-current-temp");
        let target = self.root.join(CURRENT_FILE);
        if let Err(error) = fs::rename(&temp, &target) {
            // Whatever stopped the rename may stop this as well, and the next start removes it.
            let _left_behind = fs::remove_file(&temp);
            return Err(AdapterError::io(&target)(error));
        }
        sync_dir(&self.root)?;
        crash_point("publish:after-current");
        Ok(())
    }
}

fn read_manifest(dir: &Path) -> Result<Manifest, AdapterError> {
    let path = dir.join(MANIFEST_FILE);
    let text = files::read(&path, MAX_MANIFEST).map_err(AdapterError::io(&path))?;
    serde_json::from_slice(&text).map_err(|e| AdapterError::format(&path, e.to_string()))
}

fn verify(dir: &Path, id: &GenerationId, base_hash: &str) -> Result<Stored, AdapterError> {
    let manifest = read_manifest(dir)?;
    if manifest.base_hash != base_hash {
        return Err(AdapterError::OtherBase {
            id: id.clone(),
            found: manifest.base_hash.chars().take(12).collect(),
            loaded: base_hash.chars().take(12).collect(),
        });
    }
    let adapter = peft::read_dir(dir)?;
    let sha256 = hex::encode(Sha256::digest(&adapter.model));
    if sha256 != manifest.adapter_sha256 {
        return Err(AdapterError::format(
            dir.join(peft::MODEL_FILE),
            "its SHA-256 differs from the manifest's: the file was changed or damaged; restore it \
             or remove the directory and train again",
        ));
    }
    let found = content::content_id(base_hash, &adapter.weights)?;
    if found != *id {
        return Err(AdapterError::format(
            dir,
            format!("its content is generation {found}; the configuration was changed or moved"),
        ));
    }
    Ok(Stored {
        weights: adapter.weights,
        manifest,
    })
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(AdapterError::io(path))
}

/// Makes renames and new files in a directory durable. Windows has no such call and needs none.
fn sync_dir(path: &Path) -> Result<(), AdapterError> {
    if cfg!(unix) {
        File::open(path)
            .and_then(|dir| dir.sync_all())
            .map_err(AdapterError::io(path))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), AdapterError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(AdapterError::io(path)(error)),
        _ => Ok(()),
    }
}
