//! What outlives the process: one small file, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use realign_core::files::{self, Limit};

use crate::rollout::Durable;

/// More than ten thousand excluded targets need.
const MAX: Limit = Limit::mib(4);

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{path} is no state of a rollout ({problem}); remove it, and the gateway begins with a rollout of \
         what should serve", path = path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The file.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// A state in this file, whose directory exists.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What was written last; nothing, before the first time.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read(&self) -> Result<Durable, StateError> {
        let text = files::read_text_if_there(&self.path, MAX).map_err(|e| self.io(e))?;
        let Some(text) = text else {
            return Ok(Durable::default());
        };
        let wrong = |problem: String| StateError::Format {
            path: self.path.clone(),
            problem,
        };
        let read: Durable = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if read.format > Durable::FORMAT {
            return Err(wrong(format!("it has the newer format {}", read.format)));
        }
        Ok(read)
    }

    /// Replaces it. When this returns, it is on the disk.
    ///
    /// # Errors
    /// [`StateError`]; it is as before, or replaced.
    pub fn write(&self, durable: &Durable) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(durable).map_err(|e| self.io(e.into()))?;
        let temporary = self.path.with_extension("tmp");
        let replace = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        replace().map_err(|e| self.io(e))
    }

    fn io(&self, source: io::Error) -> StateError {
        StateError::Io {
            path: self.path.clone(),
            source,
        }
    }
}
