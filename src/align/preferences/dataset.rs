//! Files and directories of preference data.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use realign_core::files;
use serde::Serialize;

use super::collect::{Collector, DEFAULT_MAX_BYTES, UNPACKED_PER_KEPT};
use super::formats::{Parsed, parse_line};
use super::lines::{Bounds, Content, Row};
use super::open::open;
use super::rows::{self, Form};
use super::{LineSource, Pair};

/// Maximum size of one line, bytes; a longer line is skipped and reported.
pub const MAX_LINE_BYTES: usize = 4 << 20;
/// What to do about a file of data that is not read.
pub const NOT_READ: &str = "preference data are files that end in .jsonl, .ndjson, .json, .csv, .tsv or \
    .parquet, also with .gz or .zst behind it, and no folders; convert or rename it, or move it away";
/// A line that is not a valid pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedLine {
    /// Position of the line.
    pub(crate) source: LineSource,
    /// What is wrong with the line.
    pub reason: String,
}

impl SkippedLine {
    /// The reason without the number of the item, which differs from row to row.
    pub(super) fn cause(&self) -> &str {
        match self.reason.strip_prefix("item ") {
            Some(rest) => rest.split_once(": ").map_or(rest, |(_, cause)| cause),
            None => &self.reason,
        }
    }

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
    /// Files of the directory that look like data and are not read, see [`NOT_READ`].
    pub unread: Vec<PathBuf>,
    /// Contradicting pairs; both are kept, and triage decides.
    pub contradictions: Vec<Contradiction>,
    /// SHA-256 (64 hex digits) over the pairs' ids and hold-out marks.
    pub digest: String,
}

impl Dataset {
    /// Reads all files of preference data of a directory (JSON lines, JSON, tables; also compressed), in
    /// order of their names; not hidden files or subdirectories. A missing directory is an empty data set.
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
        let (data, unread) = Dataset::files(dir)?;
        for file in &unread {
            tracing::warn!(file = %file.display(), "not read: {NOT_READ}");
        }
        let mut dataset = Dataset::load_within(&data, max_bytes)?;
        dataset.unread = unread;
        Ok(dataset)
    }

    /// Whether a file of this name is read.
    pub fn reads(file: &Path) -> bool {
        Form::of(file).is_some()
    }

    /// The files of preference data in a directory, and what else is there: folders and files of other
    /// types. Hidden files and documents about the data (`README`, `LICENSE`, `.md` and the like) are in
    /// neither list.
    ///
    /// # Errors
    /// [`DatasetError::Directory`]; a missing directory has no files.
    pub fn files(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DatasetError> {
        let entries = match files::list(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Default::default());
            }
            Err(source) => {
                return Err(DatasetError::Directory {
                    path: dir.to_owned(),
                    source,
                });
            }
        };
        let (data, others): (Vec<PathBuf>, Vec<PathBuf>) = entries
            .into_iter()
            .filter(|path| !is_hidden(path))
            .partition(|path| Form::of(path).is_some());
        let others = others.into_iter().filter(|path| !is_document(path));
        Ok((data, others.collect()))
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

/// Whether a file is about the data rather than data.
fn is_document(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_ascii_lowercase();
    let begins = ["readme", "license", "licence", "notice", "copying"];
    let ends = [".md", ".rst", ".html", ".pdf", ".sha256", "lost+found"];
    begins.iter().any(|start| name.starts_with(start)) || ends.iter().any(|end| name.ends_with(end))
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
    for_each_line(file, &mut |row| {
        if let Some(result) = parse(file, row, MAX_LINE_BYTES) {
            visitor(result.map(|parsed| parsed.pair));
        }
    })
}

/// Reads one file and calls `visitor` with every row as JSON, if it is JSON, and what it was read as.
///
/// # Errors
/// If the file cannot be read. Invalid rows are not errors.
pub(super) fn for_each_row(
    file: &Path,
    mut visitor: impl FnMut(Option<serde_json::Value>, Result<Parsed, SkippedLine>),
) -> Result<(), DatasetError> {
    for_each_line(file, &mut |row| {
        let value = match &row.content {
            Content::Bytes(bytes) => serde_json::from_slice(bytes).ok(),
            Content::TooLong | Content::Refused(_) => None,
        };
        if let Some(result) = parse(file, row, MAX_LINE_BYTES) {
            visitor(value, result);
        }
    })
}

/// Reads one file and calls `visitor` with the bytes of every row as JSON, `None` for one that is longer
/// than [`MAX_LINE_BYTES`] or cannot be read; of lines and tables, keeps only one in memory.
///
/// # Errors
/// If the file cannot be read.
pub fn for_each_raw_line(
    file: &Path,
    mut visitor: impl FnMut(Option<&[u8]>),
) -> Result<(), DatasetError> {
    for_each_line(file, &mut |row| match row.content {
        Content::Bytes(bytes) => visitor(Some(bytes)),
        Content::TooLong | Content::Refused(_) => visitor(None),
    })
}

fn for_each_line(file: &Path, visitor: &mut dyn FnMut(Row<'_>)) -> Result<(), DatasetError> {
    let input = open(file).map_err(|source| DatasetError::File {
        path: file.to_owned(),
        source,
    })?;
    // Nothing is kept, so any amount may be read.
    let bounds = Bounds {
        line: MAX_LINE_BYTES,
        total: u64::MAX,
        whole: DEFAULT_MAX_BYTES,
    };
    rows::for_each(file, input, bounds, &mut |row| {
        visitor(row);
        ControlFlow::Continue(())
    })?;
    Ok(())
}

/// What is in a row; `None` for a blank one.
pub(super) fn parse(
    file: &Path,
    row: Row<'_>,
    max_line: usize,
) -> Option<Result<Parsed, SkippedLine>> {
    let source = LineSource {
        file: file.to_owned(),
        line: row.line,
    };
    let parsed = match row.content {
        Content::Bytes(bytes) => parse_bytes(bytes, &source)?,
        Content::TooLong => Err(format!("the line is longer than {max_line} bytes")),
        Content::Refused(why) => Err(why),
    };
    Some(parsed.map_err(|reason| SkippedLine {
        source,
        reason: match row.item {
            Some(number) => format!("item {number}: {reason}"),
            None => reason,
        },
    }))
}

/// The pair in a line, or what is wrong with the line; `None` for a blank line.
fn parse_bytes(bytes: &[u8], source: &LineSource) -> Option<Result<Parsed, String>> {
    // Some editors begin a file with a byte-order mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) if text.trim().is_empty() => None,
        Ok(text) => Some(parse_line(text.trim(), source.clone()).map_err(|e| e.to_string())),
        Err(error) => Some(Err(format!(
            "not valid UTF-8 at byte {}",
            error.valid_up_to() + 1
        ))),
    }
}
