//! Files and directories of preference data.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::formats::parse_line;
use super::open::open;
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
    /// There is more of it than may be held in memory.
    #[error(
        "the preference data is larger than paths.max_preferences_mb allows ({} MB of text, reached in {}): raise it if the machine has the memory (about twice as much is needed), or take files away",
        most >> 20, path.display()
    )]
    TooLarge {
        /// The file in which the limit was passed.
        path: PathBuf,
        /// The limit in bytes.
        most: u64,
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

/// Two pairs that prefer opposite responses of the same two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contradiction {
    /// The pair read first.
    pub first: LineSource,
    /// The pair that contradicts it.
    pub second: LineSource,
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
    /// Pairs of pairs that prefer opposite responses; both are kept, and the policy decides.
    pub contradictions: Vec<Contradiction>,
    /// SHA-256 (64 hex digits) over the pairs' ids and hold-out marks.
    pub digest: String,
}

impl Dataset {
    /// Reads all `*.jsonl`, `*.jsonl.gz` and `*.jsonl.zst` of a directory (not of its
    /// subdirectories), hidden files apart, by name.
    /// A missing directory is an empty data set.
    ///
    /// # Errors
    /// If the directory is there but it or a file cannot be read. Bad lines are no errors: see
    /// [`Dataset::skipped`].
    pub fn load_dir(dir: &Path) -> Result<Dataset, DatasetError> {
        Dataset::load_dir_within(dir, u64::MAX)
    }

    /// As [`Dataset::load_dir`], holding at most `most` bytes of texts: distinct pairs and what is
    /// said of bad lines. Memory stays near that while more is read.
    ///
    /// # Errors
    /// As [`Dataset::load_dir`], and if there is more.
    pub fn load_dir_within(dir: &Path, most: u64) -> Result<Dataset, DatasetError> {
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
            if !hidden && is_data_file(&path) {
                files.push(path);
            }
        }
        files.sort();
        Dataset::load_within(&files, most)
    }

    /// Reads one file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load_file(file: &Path) -> Result<Dataset, DatasetError> {
        Dataset::load_files(&[file.to_owned()])
    }

    /// Reads bytes as [`Dataset::load_file`] reads a file; `name` stands for it in messages.
    ///
    /// # Errors
    /// If they are a compressed file that is broken.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Dataset, DatasetError> {
        let file = Path::new(name);
        let failed = |source| DatasetError::File {
            path: file.to_owned(),
            source,
        };
        let mut reader = Collector::default();
        let input = super::open::decompressed(io::Cursor::new(bytes)).map_err(failed)?;
        reader.read(file, input, MAX_LINE_BYTES).map_err(failed)?;
        Ok(reader.finish())
    }

    /// Reads several files as one data set.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn load_files(files: &[PathBuf]) -> Result<Dataset, DatasetError> {
        Dataset::load_within(files, u64::MAX)
    }

    fn load_within(files: &[PathBuf], most: u64) -> Result<Dataset, DatasetError> {
        let mut reader = Collector {
            most,
            ..Collector::default()
        };
        for file in files {
            let failed = |source| DatasetError::File {
                path: file.clone(),
                source,
            };
            let input = open(file).map_err(failed)?;
            reader.read(file, input, MAX_LINE_BYTES).map_err(failed)?;
            if reader.held > reader.most {
                return Err(DatasetError::TooLarge {
                    path: file.clone(),
                    most,
                });
            }
        }
        Ok(reader.finish())
    }
}

fn is_data_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_ascii_lowercase();
    [".jsonl", ".jsonl.gz", ".jsonl.zst"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// Reads one file pair by pair, without holding more than one line: what is shown is forgotten.
///
/// # Errors
/// If the file cannot be read. Bad lines are shown, not errors.
pub fn for_each_pair(
    file: &Path,
    mut show: impl FnMut(Result<Pair, SkippedLine>),
) -> Result<(), DatasetError> {
    let failed = |source| DatasetError::File {
        path: file.to_owned(),
        source,
    };
    let input = open(file).map_err(failed)?;
    read_lines(file, input, MAX_LINE_BYTES, &mut show).map_err(failed)
}

/// Reads lines of at most `max_line` bytes; memory stays bounded by that.
fn read_lines(
    file: &Path,
    mut input: impl BufRead,
    max_line: usize,
    show: &mut dyn FnMut(Result<Pair, SkippedLine>),
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
            show(Err(SkippedLine { source, reason }));
            continue;
        }
        if let Some(result) = parse_bytes(&bytes, source) {
            show(result);
        }
    }
    Ok(())
}

/// A line's pair, or what is wrong with it; nothing for a blank line.
fn parse_bytes(bytes: &[u8], source: LineSource) -> Option<Result<Pair, SkippedLine>> {
    // Some editors begin a file with a byte-order mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let parsed = match std::str::from_utf8(bytes) {
        Ok(text) if text.trim().is_empty() => return None,
        Ok(text) => parse_line(text.trim(), source.clone()).map_err(|e| e.to_string()),
        Err(error) => Err(format!(
            "not valid UTF-8 at byte {}",
            error.valid_up_to() + 1
        )),
    };
    Some(parsed.map_err(|reason| SkippedLine { source, reason }))
}

/// Gathers pairs while files are read.
pub(super) struct Collector {
    /// Bytes of the texts held.
    held: u64,
    /// Beyond this many, nothing more is kept.
    most: u64,
    pairs: Vec<Pair>,
    /// Where each pair stands in `pairs`.
    seen: HashMap<PairId, usize>,
    /// The first pair of two responses, and whether it prefers the first of them by text.
    compared: HashMap<[u8; 32], (usize, bool)>,
    skipped: Vec<SkippedLine>,
    duplicates: usize,
    contradictions: Vec<Contradiction>,
}

impl Default for Collector {
    fn default() -> Self {
        Collector {
            held: 0,
            most: u64::MAX,
            pairs: Vec::new(),
            seen: HashMap::new(),
            compared: HashMap::new(),
            skipped: Vec::new(),
            duplicates: 0,
            contradictions: Vec::new(),
        }
    }
}

impl Collector {
    /// Reads lines of at most `max_line` bytes.
    pub(super) fn read(
        &mut self,
        file: &Path,
        input: impl BufRead,
        max_line: usize,
    ) -> io::Result<()> {
        read_lines(file, input, max_line, &mut |result| match result {
            // The rest of the file is read and forgotten: the limit is an error all the same.
            _ if self.held > self.most => {}
            Ok(pair) => self.add(pair),
            Err(line) => {
                self.held += line.reason.len() as u64;
                self.skipped.push(line);
            }
        })
    }

    fn add(&mut self, pair: Pair) {
        let known = self.seen.get(&pair.id).copied();
        let Some(first) = known.and_then(|index| self.pairs.get_mut(index)) else {
            self.seen.insert(pair.id.clone(), self.pairs.len());
            let (hash, order) = pair.unordered_hash();
            let (index, first) = *self
                .compared
                .entry(hash)
                .or_insert((self.pairs.len(), order));
            if first != order
                && let Some(earlier) = self.pairs.get(index)
            {
                self.contradictions.push(Contradiction {
                    first: earlier.source.clone(),
                    second: pair.source.clone(),
                });
            }
            self.held += pair.text_bytes();
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
            contradictions,
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
            contradictions,
            digest: hex::encode(hasher.finalize()),
        }
    }
}
