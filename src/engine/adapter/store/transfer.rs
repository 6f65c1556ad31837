//! A generation's files as they are, for a store that several servers share.

use std::fs;

use super::{AdapterStore, MANIFEST_FILE, STAGING_PREFIX, sync_dir, verify, write_synced};
use crate::adapter::generation::GenerationId;
use crate::adapter::registry::is_generation_id;
use crate::adapter::{AdapterError, peft};
use realign_core::files::{self, Limit};

/// The largest tensor file that is passed on.
const MAX_FILE: Limit = Limit::mib(4096);

impl AdapterStore {
    /// The files of a generation, after its content was verified: configuration, tensors, manifest.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`], or what is damaged.
    pub fn files(&self, id: &GenerationId, base_hash: &str) -> Result<[Vec<u8>; 3], AdapterError> {
        self.load(id, base_hash)?;
        let dir = self.existing(id)?;
        let read = |name: &str| {
            let path = dir.join(name);
            files::read(&path, MAX_FILE).map_err(AdapterError::io(&path))
        };
        Ok([
            read(peft::CONFIG_FILE)?,
            read(peft::MODEL_FILE)?,
            read(MANIFEST_FILE)?,
        ])
    }

    /// Adds a generation that was published elsewhere, from its [`AdapterStore::files`]. `CURRENT`
    /// stays. What is there already and whole stays as well.
    ///
    /// # Errors
    /// [`AdapterError`], also if the content is not that of this generation; nothing is added then.
    pub fn add(
        &self,
        id: &GenerationId,
        base_hash: &str,
        files: [&[u8]; 3],
    ) -> Result<(), AdapterError> {
        if !is_generation_id(&id.0) {
            // An id may come from another machine; nothing but a well-formed one may become a path.
            return Err(AdapterError::Unknown {
                id: id.clone(),
                root: self.root().into(),
            });
        }
        let _publishing = self.publishing()?;
        if self.load(id, base_hash).is_ok() {
            return Ok(());
        }
        let staging = self.root().join(format!("{STAGING_PREFIX}{id}"));
        fs::create_dir(&staging).map_err(AdapterError::io(&staging))?;
        let names = [peft::CONFIG_FILE, peft::MODEL_FILE, MANIFEST_FILE];
        for (name, bytes) in names.into_iter().zip(files) {
            write_synced(&staging.join(name), bytes)?;
        }
        sync_dir(&staging)?;
        verify(&staging, id, base_hash)?;
        self.put_in_place(&staging, id)
    }
}
