//! What is asked of an object store: reading, and writing under a condition.

use std::fmt::Debug;

use bytes::Bytes;

use crate::error::StoreError;

/// A version of an object, which a conditional write names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) e_tag: Option<String>,
    pub(crate) version: Option<String>,
}

/// An object as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) bytes: Bytes,
    pub(crate) version: Version,
}

/// An object store. Calls block. An error leaves open whether a write was done.
pub(crate) trait Objects: Debug + Send + Sync {
    /// Reads an object; `None` if there is none.
    fn read(&self, key: &str) -> Result<Option<Object>, StoreError>;

    /// Writes an object that is not there yet; `None` if it is.
    fn create(&self, key: &str, bytes: Bytes) -> Result<Option<Version>, StoreError>;

    /// Replaces this very version of an object; `None` if another one is there.
    fn replace(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Option<Version>, StoreError>;

    /// Writes an object whatever is there: for those that one server alone writes.
    fn write(&self, key: &str, bytes: Bytes) -> Result<(), StoreError>;

    /// Removes an object. One that is not there is removed already.
    fn remove(&self, key: &str) -> Result<(), StoreError>;

    /// The names of the objects directly below a prefix that ends with a slash.
    fn names(&self, prefix: &str) -> Result<Vec<String>, StoreError>;
}
