//! Why mistralrs cannot serve a model.

use std::path::{Path, PathBuf};

use realign_model::ModelError;

/// Why mistralrs cannot serve a model.
#[derive(Debug, thiserror::Error)]
pub enum MistralError {
    /// A GGUF file is quantised already.
    #[error(
        "engine.isq quantises safetensors while they are loaded; a GGUF file is quantised \
         already: leave engine.isq out"
    )]
    IsqOfGguf,
    /// mistralrs does not know the quantisation.
    #[error("engine.isq: {0}")]
    Isq(String),
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file is not valid JSON.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file that is not JSON.
        path: PathBuf,
        /// The syntax error and its position.
        source: serde_json::Error,
    },
    /// The model is named by something other than a file.
    #[error("{}: not a path of a file", .0.display())]
    NotAFile(PathBuf),
    /// The adapter cannot be merged into the files.
    #[error(transparent)]
    Merge(#[from] ModelError),
    /// The model's configuration does not name its architecture.
    #[error(
        "config.json has no `architectures`, and none is known for model_type {0:?}: \
         add it, or use --engine native"
    )]
    Architecture(Option<String>),
    /// mistralrs refused the files.
    #[error("{0}")]
    Load(String),
    /// mistralrs panicked while loading the files.
    #[error("mistralrs panicked while it loaded the model")]
    Panicked,
    /// A thread or a runtime could not be started.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

impl MistralError {
    pub(super) fn at(path: &Path) -> impl Fn(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            path: path.clone(),
            source,
        }
    }
}
