//! The decision log: one JSON line for each judged answer, in a file that is rotated by size.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Answer;
use realign_align::oracle::Violation;

/// Why the decision log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the decision log {}: {source}", path.display())]
pub struct DecisionLogError {
    path: PathBuf,
    source: io::Error,
}

/// Size limits and contents of the decision log.
#[derive(Clone, Copy, Debug)]
pub struct DecisionLogOptions {
    /// Size in bytes at which the file is rotated.
    pub(crate) max_bytes: u64,
    /// Number of rotated files kept, as `NAME.1` (the newest) and so on.
    pub(crate) kept_files: usize,
    /// Whether prompts and answers are written.
    pub(crate) include_texts: bool,
}

/// An open decision log.
#[derive(Debug)]
pub struct DecisionLog {
    path: PathBuf,
    options: DecisionLogOptions,
    file: BufWriter<File>,
    pub(super) written: u64,
    /// Whether the last write failed; the failure has been logged.
    failing: bool,
}

impl DecisionLog {
    /// Opens the file for appending, creating it and its directory if needed.
    ///
    /// # Errors
    /// [`DecisionLogError`] if the file or its directory cannot be created.
    pub(crate) fn open(path: &Path, options: DecisionLogOptions) -> Result<Self, DecisionLogError> {
        let (file, written) = open_for_append(path).map_err(|source| DecisionLogError {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            path: path.into(),
            options,
            file: BufWriter::new(file),
            written,
            failing: false,
        })
    }

    /// Writes one judgement: whether the answer complies with the policy set of this revision.
    pub(super) fn write(
        &mut self,
        answer: &Answer,
        violations: &[Violation],
        complies: bool,
        revision: &str,
    ) {
        let mut line = json!({
            "time": answer.unix_seconds,
            "request_id": answer.request_id,
            "route": answer.route,
            "key": answer.caller.as_deref(),
            "generation": answer.generation,
            "policy_revision": revision,
            "verdict": if complies { "complies" } else { "violates" },
            "violations": violations,
        });
        if self.options.include_texts {
            line["prompt"] = answer.prompt.as_str().into();
            line["response"] = answer.response.as_str().into();
        }
        let result = self.append(&format!("{line}\n"));
        self.log_failure(result);
    }

    /// Writes buffered lines to the file.
    pub(super) fn flush(&mut self) {
        let result = self.file.flush();
        self.log_failure(result);
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        if self.written > 0 && self.written + line.len() as u64 > self.options.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.written += line.len() as u64;
        Ok(())
    }

    /// `NAME` becomes `NAME.1`, `NAME.1` becomes `NAME.2`; the oldest is overwritten or removed.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let numbered = |n: usize| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..self.options.kept_files).rev() {
            if numbered(n).exists() {
                std::fs::rename(numbered(n), numbered(n + 1))?;
            }
        }
        if self.options.kept_files == 0 {
            std::fs::remove_file(&self.path)?;
        } else {
            std::fs::rename(&self.path, numbered(1))?;
        }
        let (file, written) = open_for_append(&self.path)?;
        self.file = BufWriter::new(file);
        self.written = written;
        Ok(())
    }

    /// Logs the first of several failures, and the first success after them: a full disk must not
    /// flood the log as well.
    fn log_failure(&mut self, result: io::Result<()>) {
        match result {
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!(path = %self.path.display(), %error, "the decision log cannot be written");
            }
            Err(_) => {}
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!(path = %self.path.display(), "the decision log is written again");
            }
            Ok(()) => {}
        }
    }
}

/// Opens a file that only its owner may read, as it may contain prompts; returns it with its size
/// in bytes.
fn open_for_append(path: &Path) -> io::Result<(File, u64)> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    let written = file.metadata()?.len();
    Ok((file, written))
}
