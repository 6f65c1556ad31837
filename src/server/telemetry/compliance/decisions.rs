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

/// How large it may grow, and what it may tell.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes after which a new file is begun.
    pub bytes: u64,
    /// Earlier files that are kept, as `NAME.1` (the newest) and so on.
    pub files: usize,
    /// Whether prompts and answers are written.
    pub texts: bool,
}

/// An open log.
#[derive(Debug)]
pub struct DecisionLog {
    path: PathBuf,
    limits: Limits,
    file: BufWriter<File>,
    pub(super) written: u64,
    /// Writing failed the last time, which has been logged.
    failing: bool,
}

impl DecisionLog {
    /// Opens a file to append to, creating its directory.
    ///
    /// # Errors
    /// [`DecisionLogError`].
    pub fn open(path: &Path, limits: Limits) -> Result<Self, DecisionLogError> {
        let (file, written) = append(path).map_err(|source| DecisionLogError {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            path: path.into(),
            limits,
            file: BufWriter::new(file),
            written,
            failing: false,
        })
    }

    /// Writes one judgement: whether the answer complies, and by which revision.
    pub(super) fn write(
        &mut self,
        answer: &Answer,
        violations: &[Violation],
        (complies, revision): (bool, &str),
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
        if self.limits.texts {
            line["prompt"] = answer.prompt.as_str().into();
            line["response"] = answer.response.as_str().into();
        }
        let outcome = self.append(&format!("{line}\n"));
        self.note(outcome);
    }

    /// Hands what is buffered to the operating system.
    pub(super) fn flush(&mut self) {
        let outcome = self.file.flush();
        self.note(outcome);
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        if self.written > 0 && self.written + line.len() as u64 > self.limits.bytes {
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
        for n in (1..self.limits.files).rev() {
            if numbered(n).exists() {
                std::fs::rename(numbered(n), numbered(n + 1))?;
            }
        }
        match self.limits.files {
            0 => std::fs::remove_file(&self.path)?,
            _ => std::fs::rename(&self.path, numbered(1))?,
        }
        let (file, written) = append(&self.path)?;
        self.file = BufWriter::new(file);
        self.written = written;
        Ok(())
    }

    /// A full disk must not fill the log as well: it is told of once, and again when it is over.
    fn note(&mut self, outcome: io::Result<()>) {
        match outcome {
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

/// Its lines may hold what people asked: nobody else on the machine may read them.
fn append(path: &Path) -> io::Result<(File, u64)> {
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
