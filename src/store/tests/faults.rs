//! A store whose answers are lost, now and then, before or after the write was done.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::StoreError;
use crate::objects::{Object, Objects, Version};

#[derive(Debug)]
pub(super) struct Faulty {
    pub(super) inner: Arc<dyn Objects>,
    rng: Mutex<ChaCha8Rng>,
    /// How many of 100 calls fail; half of those after they were done.
    percent: u32,
}

impl Faulty {
    pub(super) fn new(inner: Arc<dyn Objects>, seed: u64, percent: u32) -> Self {
        let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        Self {
            inner,
            rng,
            percent,
        }
    }

    fn call<T>(&self, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let drawn = self.rng.lock().unwrap().random_range(0..100);
        let lost = || StoreError::Unavailable("the answer was lost".into());
        if drawn >= self.percent {
            return call();
        }
        if drawn % 2 == 0 {
            call()?;
        }
        Err(lost())
    }
}

impl Objects for Faulty {
    fn read(&self, key: &str) -> Result<Option<Object>, StoreError> {
        self.call(|| self.inner.read(key))
    }

    fn create(&self, key: &str, bytes: Bytes) -> Result<Option<Version>, StoreError> {
        self.call(|| self.inner.create(key, bytes))
    }

    fn replace(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Option<Version>, StoreError> {
        self.call(|| self.inner.replace(key, bytes, version))
    }

    fn write(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.call(|| self.inner.write(key, bytes))
    }

    fn remove(&self, key: &str) -> Result<(), StoreError> {
        self.call(|| self.inner.remove(key))
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.call(|| self.inner.names(prefix))
    }
}
