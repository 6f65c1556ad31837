//! Labelled responses beside a policy: JSON lines of `{prompt, response, verdict}`.

use std::path::Path;

use serde::Deserialize;

use super::matchers::Labelled;
use super::model::Verdict;

/// Bound on one labelled file, bytes.
pub(super) const MAX_LABELLED_BYTES: u64 = 64 << 20;
/// Bound on its rows: a probe gains little from more, and its features must fit in memory.
const MAX_ROWS: usize = 20_000;

/// Gives the bytes of a file that a policy names; the policy's directory is its own business.
pub(super) type Reader<'a> = &'a dyn Fn(&Path) -> std::io::Result<Vec<u8>>;

/// Why a labelled file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LabelledError {
    /// It is not text.
    #[error("not valid UTF-8: {0}")]
    NotText(#[from] std::str::Utf8Error),
    /// A line is no labelled response.
    #[error(
        "line {line}: {source}; each line holds prompt, response and verdict (`violates` or `complies`)"
    )]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// There are too many rows.
    #[error("more than {MAX_ROWS} rows, the bound for one probe")]
    TooMany,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    prompt: String,
    response: String,
    verdict: Verdict,
}

/// Reads all rows; the error names the first line that is not one.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Labelled>, LabelledError> {
    let text = std::str::from_utf8(bytes)?;
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(line).map_err(|source| LabelledError::Line {
            line: index + 1,
            source,
        })?;
        rows.push(Labelled {
            prompt: row.prompt,
            response: row.response,
            violates: row.verdict == Verdict::Violates,
        });
        if rows.len() > MAX_ROWS {
            return Err(LabelledError::TooMany);
        }
    }
    Ok(rows)
}

/// A name without directories: the file lies beside the policy, where the watcher sees it.
pub(super) fn is_plain_name(name: &str) -> bool {
    let path = Path::new(name);
    path.file_name().is_some_and(|n| n == name) && !name.starts_with('.')
}
