//! Files and directories of preference data.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use realign_core::files;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::formats::parse_line;
use super::lines::{self, Bounds, Line};
use super::open::open;
use super::{LineSource, Pair, PairId};

/// Maximum size of one line, bytes; a longer line is skipped and reported.
pub const MAX_LINE_BYTES: usize = 4 << 20;
/// Memory that preference data may take where no configuration says otherwise, bytes.
const DEFAULT_MAX_BYTES: u64 = 2048 << 20;
/// Files may unpack to this many times the memory that their pairs may take: most formats have
/// columns that are not kept, and copies of a pair are kept once.
const UNPACKED_PER_KEPT: u64 = 8;
/// Approximate memory of a pair, or of the report on a skipped line, besides its text, bytes.
const PAIR_BYTES: u64 = 640;
const SKIPPED_BYTES: u64 = 160;

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
        "the preference data is larger than paths.max_preferences_mb allows ({} MB, reached in {}:{line}): raise it if the machine has the memory (about twice as much is needed), or take files away",
        limit >> 20, path.display()
    )]
    TooLarge {
        /// The file in which the limit was exceeded.
        path: PathBuf,
        /// The line that exceeded it, from 1.
        line: usize,
        /// The limit in bytes.
        limit: u64,
    },
    /// The files unpack to more than is read.
    #[error(
        "{}:{line}: the preference data unpacks to more than {} MB, {UNPACKED_PER_KEPT} times what paths.max_preferences_mb allows: raise it if this much data is meant, or take the file away",
        path.display(), limit >> 20
    )]
    Unpacked {
        /// The file in which the limit was exceeded.
        path: PathBuf,
        /// The line that exceeded it, from 1.
        line: usize,
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

impl DatasetError {
    /// Reading stopped in a line.
    pub(super) fn at_line(path: &Path, line: usize, source: &io::Error) -> DatasetError {
        DatasetError::File {
            path: path.to_owned(),
            source: io::Error::new(source.kind(), format!("at line {line}: {source}")),
        }
    }
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
    /// If the directory exists but it or a file cannot be read, or if it takes more than 2 GiB of
    /// memory. Invalid lines are not errors: see [`Dataset::skipped`].
    pub fn load_dir(dir: &Path) -> Result<Dataset, DatasetError> {
        Dataset::load_dir_within(dir, DEFAULT_MAX_BYTES)
    }

    /// Like [`Dataset::load_dir`], keeping at most `max_bytes`: distinct pairs, and the reports on
    /// skipped lines. Memory use stays near that limit.
    ///
    /// # Errors
    /// Those of [`Dataset::load_dir`], [`DatasetError::TooLarge`] and [`DatasetError::Unpacked`].
    pub fn load_dir_within(dir: &Path, max_bytes: u64) -> Result<Dataset, DatasetError> {
        let failed = |source| DatasetError::Directory {
            path: dir.to_owned(),
            source,
        };
        let entries = match files::list(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Collector::default().finish());
            }
            Err(error) => return Err(failed(error)),
        };
        let (data, others): (Vec<PathBuf>, Vec<PathBuf>) = entries
            .into_iter()
            .filter(|path| !is_hidden(path))
            .partition(|path| is_data_file(path));
        for other in others.iter().filter(|path| looks_like_data(path)) {
            tracing::warn!(
                file = %other.display(),
                "not read: preference data are *.jsonl files, also as .gz or .zst; convert it"
            );
        }
        Dataset::load_within(&data, max_bytes)
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
        let mut reader = Collector::default();
        let input = super::open::decompressed(io::Cursor::new(bytes));
        let input = input.map_err(|source| DatasetError::at_line(file, 1, &source))?;
        reader.read(file, input, MAX_LINE_BYTES)?;
        Ok(reader.finish())
    }

    /// Reads several files as one data set.
    ///
    /// # Errors
    /// If one of them cannot be read, or if they take more than 2 GiB of memory.
    pub(crate) fn load_files(files: &[PathBuf]) -> Result<Dataset, DatasetError> {
        Dataset::load_within(files, DEFAULT_MAX_BYTES)
    }

    fn load_within(files: &[PathBuf], max_bytes: u64) -> Result<Dataset, DatasetError> {
        let mut reader = Collector::within(max_bytes);
        for file in files {
            let input = open(file).map_err(|source| DatasetError::File {
                path: file.clone(),
                source,
            })?;
            reader.read(file, input, MAX_LINE_BYTES)?;
        }
        Ok(reader.finish())
    }
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

fn is_data_file(path: &Path) -> bool {
    has_ending(path, &[".jsonl", ".jsonl.gz", ".jsonl.zst"])
}

/// Whether somebody may expect this file to be read.
fn looks_like_data(path: &Path) -> bool {
    let formats = [".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow"];
    let packed = [".gz", ".zst", ".bz2", ".xz", ".zip", ".tar"];
    has_ending(path, &formats) || has_ending(path, &packed)
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_ascii_lowercase();
    endings.iter().any(|end| name.ends_with(end))
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
    for_each_line(file, &mut |line, content| {
        if let Some(result) = parse(file, line, content, MAX_LINE_BYTES) {
            visitor(result);
        }
    })
}

/// Reads one file and calls `visitor` with the bytes of every line, `None` for one longer than
/// [`MAX_LINE_BYTES`]; keeps only one line in memory.
///
/// # Errors
/// If the file cannot be read.
pub fn for_each_raw_line(
    file: &Path,
    mut visitor: impl FnMut(Option<&[u8]>),
) -> Result<(), DatasetError> {
    for_each_line(file, &mut |_, line| match line {
        Line::Bytes(bytes) => visitor(Some(bytes)),
        Line::TooLong => visitor(None),
    })
}

fn for_each_line(
    file: &Path,
    visitor: &mut dyn FnMut(usize, Line<'_>),
) -> Result<(), DatasetError> {
    let input = open(file).map_err(|source| DatasetError::File {
        path: file.to_owned(),
        source,
    })?;
    // Nothing is kept, so any amount may be read.
    let bounds = Bounds {
        line: MAX_LINE_BYTES,
        total: u64::MAX,
    };
    lines::for_each(file, input, bounds, &mut |number, line| {
        visitor(number, line);
        ControlFlow::Continue(())
    })?;
    Ok(())
}

/// What is in a line; `None` for a blank one.
fn parse(
    file: &Path,
    line: usize,
    content: Line<'_>,
    max_line: usize,
) -> Option<Result<Pair, SkippedLine>> {
    let source = LineSource {
        file: file.to_owned(),
        line,
    };
    match content {
        Line::Bytes(bytes) => parse_bytes(bytes, source),
        Line::TooLong => Some(Err(SkippedLine {
            source,
            reason: format!("the line is longer than {max_line} bytes"),
        })),
    }
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
    /// Approximate memory of what was collected, bytes.
    bytes: u64,
    /// Nothing more is collected once `bytes` exceeds this.
    max_bytes: u64,
    /// Unpacked bytes that may still be read.
    unread: u64,
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
        Collector::within(DEFAULT_MAX_BYTES)
    }
}

impl Collector {
    /// An empty one that keeps at most `max_bytes`.
    fn within(max_bytes: u64) -> Self {
        Collector {
            bytes: 0,
            max_bytes,
            unread: max_bytes.saturating_mul(UNPACKED_PER_KEPT),
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
    ) -> Result<(), DatasetError> {
        let bounds = Bounds {
            line: max_line,
            total: self.unread,
        };
        let mut last = 0;
        let read = lines::for_each(file, input, bounds, &mut |line, content| {
            last = line;
            match parse(file, line, content, max_line) {
                Some(Ok(pair)) => self.add(pair),
                Some(Err(skipped)) => self.skip(skipped),
                None => {}
            }
            match self.bytes > self.max_bytes {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        self.unread = self.unread.saturating_sub(read);
        if self.bytes > self.max_bytes {
            return Err(DatasetError::TooLarge {
                path: file.to_owned(),
                line: last,
                limit: self.max_bytes,
            });
        }
        Ok(())
    }

    fn skip(&mut self, line: SkippedLine) {
        let text = line.reason.len() + line.source.file.as_os_str().len();
        self.bytes += text as u64 + SKIPPED_BYTES;
        self.skipped.push(line);
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
                self.bytes += PAIR_BYTES;
                self.contradictions.push(Contradiction {
                    first: earlier.source.clone(),
                    second: pair.source.clone(),
                });
            }
            self.bytes += pair.memory_bytes() + PAIR_BYTES;
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
