//! What can be wrong with a model's files, and what to do about it.

use std::path::PathBuf;

/// Errors of loading and running a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file is not what its name or place promises.
    #[error("{path}: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and what is allowed.
        what: String,
    },
    /// A field of the configuration is missing, has the wrong type or an impossible value.
    #[error("{path}: field `{field}`: {what}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The metadata key or JSON field.
        field: String,
        /// What is wrong and what is allowed.
        what: String,
    },
    /// A tensor is missing or has the wrong shape or type.
    #[error("{path}: tensor `{tensor}`: {what}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong.
        what: String,
    },
    /// The model could not be fetched.
    #[error("cannot fetch `{repo}` from the hub: {what}")]
    Hub {
        /// The repository id.
        repo: String,
        /// Why, and what to do.
        what: String,
    },
    /// The tensor library refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The tokenizer or chat template of the model is unusable.
    #[error("{0}")]
    Text(String),
}

/// Shorthand for this module.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;
