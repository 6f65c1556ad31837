//! [`Objects`] over the crate `object_store`: S3, and its stores in memory and in a directory for tests.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
    UpdateVersion,
};
use tokio::runtime::{Builder, Runtime};

use crate::error::StoreError;
use crate::http::Connector;
use crate::objects::{Object, Objects, Version};
use crate::url::StoreUrl;

/// A bucket, below a prefix.
pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// Drives the futures of the thread that asks. Taken when this is dropped.
    runtime: Option<Runtime>,
}

impl Bucket {
    /// Opens an S3 bucket with the credentials of the environment. Nothing is asked of it yet.
    pub(crate) fn s3(url: &StoreUrl) -> Result<Self, StoreError> {
        let retry = RetryConfig {
            max_retries: 2,
            retry_timeout: Duration::from_secs(10),
            backoff: BackoffConfig {
                max_backoff: Duration::from_secs(1),
                ..BackoffConfig::default()
            },
        };
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(&url.bucket)
            .with_retry(retry)
            .with_http_connector(Connector)
            .build()
            .map_err(|error| StoreError::Setup(plain(&error)))?;
        Self::new(Arc::new(store), &url.prefix)
    }

    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Result<Self, StoreError> {
        let runtime = Builder::new_current_thread().enable_time().build();
        Ok(Self {
            store,
            prefix: prefix.into(),
            runtime: Some(runtime.map_err(|error| StoreError::Setup(error.to_string()))?),
        })
    }

    fn path(&self, key: &str) -> Path {
        match self.prefix.as_str() {
            "" => Path::from(key),
            prefix => Path::from(format!("{prefix}/{key}")),
        }
    }

    fn wait<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let Some(runtime) = &self.runtime else {
            // It is there until the bucket is dropped.
            return Err(Error::NotSupported {
                source: "the store is closed".into(),
            });
        };
        runtime.block_on(future)
    }

    fn put(&self, key: &str, bytes: Bytes, mode: PutMode) -> Result<Version, Error> {
        let options = PutOptions::from(mode);
        let path = self.path(key);
        let written = self.wait(self.store.put_opts(&path, bytes.into(), options))?;
        Ok(Version {
            e_tag: written.e_tag,
            version: written.version,
        })
    }
}

impl Objects for Bucket {
    fn read(&self, key: &str) -> Result<Option<Object>, StoreError> {
        let path = self.path(key);
        let read = self.wait(async {
            let found = self.store.get(&path).await?;
            let version = Version {
                e_tag: found.meta.e_tag.clone(),
                version: found.meta.version.clone(),
            };
            let bytes = found.bytes().await?;
            Ok(Object { bytes, version })
        });
        match read {
            Ok(object) => Ok(Some(object)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(key, &error)),
        }
    }

    fn create(&self, key: &str, bytes: Bytes) -> Result<Option<Version>, StoreError> {
        match self.put(key, bytes, PutMode::Create) {
            Ok(version) => Ok(Some(version)),
            // Which of the two depends on the store.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(None),
            Err(error) => Err(failed(key, &error)),
        }
    }

    fn replace(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Option<Version>, StoreError> {
        let version = UpdateVersion {
            e_tag: version.e_tag.clone(),
            version: version.version.clone(),
        };
        match self.put(key, bytes, PutMode::Update(version)) {
            Ok(version) => Ok(Some(version)),
            Err(Error::Precondition { .. } | Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(key, &error)),
        }
    }

    fn write(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let written = self.put(key, bytes, PutMode::Overwrite);
        written.map(drop).map_err(|error| failed(key, &error))
    }

    fn remove(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path(key);
        match self.wait(self.store.delete(&path)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(key, &error)),
        }
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let path = self.path(prefix.trim_end_matches('/'));
        let listed = self.wait(self.store.list_with_delimiter(Some(&path)));
        let listed = listed.map_err(|error| failed(prefix, &error))?;
        let names = listed.objects.iter();
        let names = names.filter_map(|object| object.location.filename().map(str::to_owned));
        Ok(names.collect())
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plain drop waits, which panics where a server is dropped inside another runtime.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store's own `Debug` shows how it was set up.
        f.debug_struct("Bucket")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

fn failed(key: &str, error: &Error) -> StoreError {
    let reason = plain(error);
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreError::Denied {
            key: key.into(),
            reason,
        },
        Error::NotImplemented { .. } | Error::NotSupported { .. } => {
            StoreError::Unconditional(reason)
        }
        _ => StoreError::Unavailable(reason),
    }
}

/// The longest reason that is shown.
const LONGEST: usize = 300;

/// An error on one line, cut: some servers answer with a page of XML.
fn plain(error: &Error) -> String {
    let text = error.to_string();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(LONGEST).collect()
}
