//! Errors of adapters and of their directory.

use std::path::PathBuf;

use super::generation::GenerationId;
use super::numbers::NumberError;

/// Why an adapter could not be read, written or accepted.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The file system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file has wrong content.
    #[error("{path}: {problem}", path = path.display())]
    Format {
        /// The file whose content is wrong.
        path: PathBuf,
        /// What is wrong, naming the field or tensor, and what is allowed.
        problem: String,
    },
    /// Another process may change the directory, so this one may not.
    #[error(transparent)]
    Lock(#[from] realign_core::lock::LockError),
    /// A tensor operation failed.
    #[error("adapter tensors: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The adapter does not fit the base model.
    #[error("the adapter does not fit the base model: {0}")]
    Shape(String),
    /// The adapter's numbers cannot be computed with.
    #[error("the adapter cannot be computed with: {0}")]
    Numbers(#[from] NumberError),
    /// The directory holds no such generation.
    #[error("there is no generation {id} in {root}; `realign adapters list` shows what there is", root = root.display())]
    Unknown {
        /// The requested generation.
        id: GenerationId,
        /// The adapter directory.
        root: PathBuf,
    },
    /// A generation cannot become the current one of all servers that share a store.
    #[error("the shared store's CURRENT stays as it is: {0}")]
    Shared(String),
    /// The adapter was trained on another base model.
    #[error(
        "generation {id} was trained on base model {found}, but the loaded model is {loaded}; \
         start with the model it was trained on, or train again"
    )]
    OtherBase {
        /// The adapter's generation.
        id: GenerationId,
        /// First 12 digits of the hash in the manifest.
        found: String,
        /// First 12 digits of the hash of the loaded model.
        loaded: String,
    },
}

impl AdapterError {
    /// Makes [`AdapterError::Io`] of a system error at `path`, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> AdapterError {
        let path = path.into();
        move |source| AdapterError::Io { path, source }
    }

    pub(crate) fn format(path: impl Into<PathBuf>, problem: impl Into<String>) -> AdapterError {
        AdapterError::Format {
            path: path.into(),
            problem: problem.into(),
        }
    }
}
