//! Generations in a store: three objects each, written once.
//!
//! The manifest comes last, so a generation whose manifest is there is whole. What the files hold is
//! verified by each reader: an id is a hash of the content.

use bytes::Bytes;
use realign_core::crash_point;

use crate::error::StoreError;
use crate::store::Store;

/// The files of a generation, in the order in which they are written.
pub const FILES: [&str; 3] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
];

/// The files of a generation, as they are in its directory and in [`FILES`]' order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files(pub [Bytes; FILES.len()]);

impl Store {
    /// Writes a generation, unless it is there. A manifest that is there stays: it may have been
    /// written at another time, for the same adapter.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if other weights are there under this id.
    pub fn upload(&self, id: &str, files: &Files) -> Result<(), StoreError> {
        let [config, weights, manifest] = FILES.map(|file| key(id, file));
        let [its_config, its_weights, its_manifest] = files.0.clone();
        let there = self.objects.read(&manifest?)?;
        if there.is_some() {
            return Ok(());
        }
        self.create_same(&config?, its_config)?;
        crash_point("share:after-config");
        self.create_same(&weights?, its_weights)?;
        crash_point("share:after-weights");
        // If another controller was quicker, its manifest is as good.
        self.objects.create(&key(id, FILES[2])?, its_manifest)?;
        crash_point("share:after-manifest");
        Ok(())
    }

    /// Writes an object that holds the same, or nothing, before.
    fn create_same(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        if self.objects.create(key, bytes.clone())?.is_some() {
            return Ok(());
        }
        let there = self.objects.read(key)?;
        if there.is_some_and(|there| there.bytes == bytes) {
            return Ok(());
        }
        Err(StoreError::damaged(
            key,
            "holds something else than this adapter, and objects of generations are never replaced; \
             find out what wrote it and remove it",
        ))
    }

    /// Reads a generation; `None` if it is not there, or not whole.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn download(&self, id: &str) -> Result<Option<Files>, StoreError> {
        // The manifest first: without it, the others may still be being written.
        let mut files: [Bytes; FILES.len()] = Default::default();
        for (at, file) in FILES.iter().enumerate().rev() {
            match self.objects.read(&key(id, file)?)? {
                Some(object) => files[at] = object.bytes,
                None => return Ok(None),
            }
        }
        Ok(Some(Files(files)))
    }
}

fn key(id: &str, file: &str) -> Result<String, StoreError> {
    let is_id = !id.is_empty() && id.chars().all(|c| c.is_ascii_hexdigit());
    if !is_id {
        return Err(StoreError::damaged(
            "CURRENT",
            format!("names {id:?}, which is no generation"),
        ));
    }
    Ok(format!("generations/{id}/{file}"))
}
