//! A store as followers and operators see it: what is current, generations, the servers.

use std::sync::Arc;

use crate::bucket::Bucket;
use crate::error::StoreError;
use crate::objects::{Object, Objects, Version};
use crate::records::{Current, Lease, Replica, decode, encode};
use crate::url::StoreUrl;

pub(crate) const CURRENT: &str = "CURRENT";
pub(crate) const LEASE: &str = "lease.json";
const REPLICAS: &str = "replicas/";

/// The name of an object, and why it cannot be read.
pub type Unreadable = (String, StoreError);

/// A store. Calls block, for seconds if it does not answer.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) objects: Arc<dyn Objects>,
}

impl Store {
    /// Opens a store with the credentials of the environment. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub fn open(url: &StoreUrl) -> Result<Self, StoreError> {
        Ok(Self::over(Arc::new(Bucket::s3(url)?)))
    }

    pub(crate) fn over(objects: Arc<dyn Objects>) -> Self {
        Self { objects }
    }

    /// What should serve; `None` before any controller was there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn current(&self) -> Result<Option<Current>, StoreError> {
        Ok(self.read_current()?.map(|(current, _)| current))
    }

    pub(crate) fn read_current(&self) -> Result<Option<(Current, Version)>, StoreError> {
        self.read(CURRENT)
    }

    /// Who may publish, if anyone ever did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lease(&self) -> Result<Option<Lease>, StoreError> {
        Ok(self.read(LEASE)?.map(|(lease, _)| lease))
    }

    /// What `CURRENT` said in an epoch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn epoch(&self, epoch: u64) -> Result<Option<Current>, StoreError> {
        Ok(self.read(&history_key(epoch))?.map(|(then, _)| then))
    }

    /// Writes what a server says of itself.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn report(&self, replica: &Replica) -> Result<(), StoreError> {
        let key = replica_key(&replica.name)?;
        self.objects.write(&key, encode(replica))
    }

    /// Removes what a server said of itself, which has ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget(&self, name: &str) -> Result<(), StoreError> {
        self.objects.remove(&replica_key(name)?)
    }

    /// What the servers say of themselves, by name. One that cannot be read is its name and why.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn replicas(&self) -> Result<Vec<Result<Replica, Unreadable>>, StoreError> {
        let mut names = self.objects.names(REPLICAS)?;
        names.sort();
        let read = names.into_iter().filter_map(|name| {
            let found = self.read(&format!("{REPLICAS}{name}"));
            match found {
                Ok(found) => found.map(|(replica, _)| Ok(replica)),
                Err(error) => Some(Err((name, error))),
            }
        });
        Ok(read.collect())
    }

    pub(crate) fn read<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<(T, Version)>, StoreError> {
        let Some(Object { bytes, version }) = self.objects.read(key)? else {
            return Ok(None);
        };
        Ok(Some((decode(key, &bytes)?, version)))
    }
}

pub(crate) fn history_key(epoch: u64) -> String {
    // Names sort as numbers do.
    format!("history/{epoch:020}.json")
}

fn replica_key(name: &str) -> Result<String, StoreError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err(StoreError::Setup(format!(
            "{name:?} is no name for a server: letters, digits, `-`, `_` and `.` are allowed"
        )));
    }
    Ok(format!("{REPLICAS}{name}.json"))
}
