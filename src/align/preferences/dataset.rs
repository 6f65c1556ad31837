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

/// Maximum size of one line, bytes; a longer line is skipped and reported.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// A line that is not a valid pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedLine {
    /// Position of the line.
    pub(crate) source: LineSource,
    /// What is wrong with the line.
    pub reason: String,
}

impl SkippedLine {
    /// File and line.
    pub fn place(&self) -> String {
        self.source.to_string()
    }
}

impl std::fmt::Display for SkippedLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.source, self.reason)
    }
}

/// Why preference data cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The directory cannot be listed.
    #[error("cannot read the preference directory {}: {source}", path.display())]
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// The data exceeds the memory limit.
    #[error(
        "the preference data is larger than paths.max_preferences_mb allows ({} MB of text, reached in {}): raise it if the machine has the memory (about twice as much is needed), or take files away",
        limit >> 20, path.display()
    )]
    TooLarge {
        /// The file in which the limit was exceeded.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file cannot be opened, or reading stopped in the middle.
    #[error("cannot read preference data from {}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The I/O or decompression error.
        source: io::Error,
    },
}

/// Two pairs with the same responses and opposite preferences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contradiction {
    /// Position of the pair that was read first.
    pub first: LineSource,
    /// Position of the pair that contradicts it.
    pub second: LineSource,
}

/// The pairs of a set of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Distinct pairs, ordered by id, independent of file names and the order of lines.
    pub pairs: Vec<Pair>,
    /// Lines that are not valid pairs, in reading order; blank lines are not included.
    pub skipped: Vec<SkippedLine>,
    /// Number of lines merged into an earlier one with the same pair; a hold-out mark on either is
    /// kept.
    pub duplicates: usize,
    /// Contradicting pairs; both are kept, and triage decides.
    pub contradictions: Vec<Contradiction>,
    /// SHA-256 (64 hex digits) over the pairs' ids and hold-out marks.
    pub digest: String,
}

impl Dataset {
    /// Reads all `*.jsonl`, `*.jsonl.gz` and `*.jsonl.zst` files of a directory, in order of their
    /// names; not hidden files or subdirectories. A missing directory is an empty data set.
    ///
    /// # Errors
    /// If the directory exists but it or a file cannot be read. Invalid lines are not errors: see
    /// [`Dataset::skipped`].
    pub fn load_dir(dir: &Path) -> Result<Dataset, DatasetError> {
        Dataset::load_dir_within(dir, u64::MAX)
    }

    /// Like [`Dataset::load_dir`], keeping at most `max_bytes` of text: distinct pairs, and the
    /// reasons for skipped lines. Memory use stays near that limit.
    ///
    /// # Errors
    /// Those of [`Dataset::load_dir`], and [`DatasetError::TooLarge`].
    pub fn load_dir_within(dir: &Path, max_bytes: u64) -> Result<Dataset, DatasetError> {
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
        Dataset::load_within(&files, max_bytes)
    }

    /// Reads one file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load_file(file: &Path) -> Result<Dataset, DatasetError> {
        Dataset::load_files(&[file.to_owned()])
    }

    /// Reads the bytes of a file; `name` is its name in messages.
    ///
    /// # Errors
    /// If they are a broken compressed file.
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
    pub(crate) fn load_files(files: &[PathBuf]) -> Result<Dataset, DatasetError> {
        Dataset::load_within(files, u64::MAX)
    }

    fn load_within(files: &[PathBuf], max_bytes: u64) -> Result<Dataset, DatasetError> {
        let mut reader = Collector {
            max_bytes,
            ..Collector::default()
        };
        for file in files {
            let failed = |source| DatasetError::File {
                path: file.clone(),
                source,
            };
            let input = open(file).map_err(failed)?;
            reader.read(file, input, MAX_LINE_BYTES).map_err(failed)?;
            if reader.bytes > reader.max_bytes {
                return Err(DatasetError::TooLarge {
                    path: file.clone(),
                    limit: max_bytes,
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

/// Reads one file and calls `visitor` with every pair and every invalid line; keeps only one line
/// in memory.
///
/// # Errors
/// If the file cannot be read. Invalid lines are not errors.
pub fn for_each_pair(
    file: &Path,
    mut visitor: impl FnMut(Result<Pair, SkippedLine>),
) -> Result<(), DatasetError> {
    let failed = |source| DatasetError::File {
        path: file.to_owned(),
        source,
    };
    let input = open(file).map_err(failed)?;
    read_lines(file, input, MAX_LINE_BYTES, &mut visitor).map_err(failed)
}

/// Reads lines of at most `max_line` bytes, which bounds memory.
fn read_lines(
    file: &Path,
    mut input: impl BufRead,
    max_line: usize,
    visitor: &mut dyn FnMut(Result<Pair, SkippedLine>),
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
            visitor(Err(SkippedLine { source, reason }));
            continue;
        }
        if let Some(result) = parse_bytes(&bytes, source) {
            visitor(result);
        }
    }
    Ok(())
}

/// The pair in a line, or what is wrong with the line; `None` for a blank line.
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

/// Collects pairs while files are read.
pub(super) struct Collector {
    /// Bytes of text collected.
    bytes: u64,
    /// Nothing more is collected once `bytes` exceeds this.
    max_bytes: u64,
    pairs: Vec<Pair>,
    /// Index of each pair in `pairs`.
    seen: HashMap<PairId, usize>,
    /// By [`Pair::unordered_hash`]: index of the first pair with these responses, and its order.
    compared: HashMap<[u8; 32], (usize, bool)>,
    skipped: Vec<SkippedLine>,
    duplicates: usize,
    contradictions: Vec<Contradiction>,
}

impl Default for Collector {
    fn default() -> Self {
        Collector {
            bytes: 0,
            max_bytes: u64::MAX,
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
            // The rest of the file is read but not kept: exceeding the limit is an error anyway.
            _ if self.bytes > self.max_bytes => {}
            Ok(pair) => self.add(pair),
            Err(line) => {
                self.bytes += line.reason.len() as u64;
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
            self.bytes += pair.text_bytes();
            self.pairs.push(pair);
            return;
        };
        self.duplicates += 1;
        // A pair marked as held out must not be trained on, whichever copy is read first.
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
            // Ids have a fixed length and marks one byte, so no separator is needed.
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
