//! Files and directories of preference data.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::formats::parse_line;
use super::{LineSource, Pair, PairId};

/// Bound on one line, bytes; a longer line is skipped and reported.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// A line that gave no pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedLine {
    /// Where.
    pub source: LineSource,
    /// Why.
    pub reason: String,
}

impl std::fmt::Display for SkippedLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.source, self.reason)
    }
}

/// Preference data that could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The directory cannot be listed.
    #[error("cannot read the preference directory {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be opened, or reading stopped in the middle.
    #[error("cannot read preference data from {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// All pairs of some files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Distinct pairs, ordered by id, so that file names and the order of lines change nothing.
    pub pairs: Vec<Pair>,
    /// Lines that gave no pair, in reading order. Blank lines are not counted.
    pub skipped: Vec<SkippedLine>,
    /// Lines merged into an earlier one that holds the same pair; its hold-out mark is kept.
    pub duplicates: usize,
    /// SHA-256 (64 hex digits) over the pairs' ids and hold-out marks.
    pub digest: String,
}

impl Dataset {
    /// Reads all `*.jsonl` of a directory (not of its subdirectories), hidden files apart, by name.
    /// A missing directory is an empty data set.
    ///
    /// # Errors
    /// If the directory is there but it or a file cannot be read. Bad lines are no errors: see
    /// [`Dataset::skipped`].
    pub fn load_dir(dir: &Path) -> Result<Dataset, DatasetError> {
        let failed = |source| DatasetError::Directory {
            path: dir.to_owned(),
            source,
        };
        let mut files = Vec::new();
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Collector::default().finish());
            }
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let hidden = path
                .file_name()
                .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            if !hidden
                && path
                    .extension()
                    .is_some_and(|e| e.eq_ignore_ascii_case("jsonl"))
            {
                files.push(path);
            }
        }
        files.sort();
        Dataset::load_files(&files)
    }

    /// Reads one file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load_file(file: &Path) -> Result<Dataset, DatasetError> {
        Dataset::load_files(&[file.to_owned()])
    }

    /// Reads several files as one data set.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn load_files(files: &[PathBuf]) -> Result<Dataset, DatasetError> {
        let mut reader = Collector::default();
        for file in files {
            let failed = |source| DatasetError::File {
                path: file.clone(),
                source,
            };
            let open = File::open(file).map_err(failed)?;
            reader
                .read(file, BufReader::new(open), MAX_LINE_BYTES)
                .map_err(failed)?;
        }
        Ok(reader.finish())
    }
}

/// Gathers pairs while files are read.
#[derive(Default)]
pub(super) struct Collector {
    pairs: Vec<Pair>,
    /// Where each pair stands in `pairs`.
    seen: HashMap<PairId, usize>,
    skipped: Vec<SkippedLine>,
    duplicates: usize,
}

impl Collector {
    /// Reads lines of at most `max_line` bytes; memory stays bounded by that.
    pub(super) fn read(
        &mut self,
        file: &Path,
        mut input: impl BufRead,
        max_line: usize,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            let source = LineSource {
                file: file.to_owned(),
                line,
            };
            let limit = max_line as u64 + 1;
            if input.by_ref().take(limit).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            if bytes.len() > max_line && bytes.last() != Some(&b'\n') {
                input.skip_until(b'\n')?;
                let reason = format!("the line is longer than {max_line} bytes");
                self.skipped.push(SkippedLine { source, reason });
                continue;
            }
            self.line(&bytes, source);
        }
        Ok(())
    }

    fn line(&mut self, bytes: &[u8], source: LineSource) {
        // Some editors begin a file with a byte-order mark.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let parsed = match std::str::from_utf8(bytes) {
            Ok(text) if text.trim().is_empty() => return,
            Ok(text) => parse_line(text.trim(), source.clone()),
            Err(error) => Err(format!(
                "not valid UTF-8 at byte {}",
                error.valid_up_to() + 1
            )),
        };
        match parsed {
            Ok(pair) => self.add(pair),
            Err(reason) => self.skipped.push(SkippedLine { source, reason }),
        }
    }

    fn add(&mut self, pair: Pair) {
        let known = self.seen.get(&pair.id).copied();
        let Some(first) = known.and_then(|index| self.pairs.get_mut(index)) else {
            self.seen.insert(pair.id.clone(), self.pairs.len());
            self.pairs.push(pair);
            return;
        };
        self.duplicates += 1;
        // Whichever copy is read first, a pair marked for measuring must not be trained on.
        // `None < Some(false) < Some(true)`.
        first.holdout = first.holdout.max(pair.holdout);
    }

    pub(super) fn finish(self) -> Dataset {
        let Collector {
            mut pairs,
            skipped,
            duplicates,
            ..
        } = self;
        pairs.sort_by(|a, b| a.id.cmp(&b.id));
        let mut hasher = Sha256::new();
        for pair in &pairs {
            // An id has a fixed length and the mark is one byte, so no separator is needed.
            hasher.update(&pair.id.0);
            hasher.update(match pair.holdout {
                None => b"?",
                Some(true) => b"h",
                Some(false) => b"t",
            });
        }
        Dataset {
            pairs,
            skipped,
            duplicates,
            digest: hex::encode(hasher.finalize()),
        }
    }
}
