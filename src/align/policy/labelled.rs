//! Labelled responses in a file next to a policy: JSON lines of `{prompt, response, verdict}`.

use std::path::Path;

use serde::Deserialize;

use super::matchers::Labelled;
use super::model::ExampleVerdict;

/// Maximum size of one labelled file, bytes.
pub(super) const MAX_LABELLED_BYTES: u64 = 64 << 20;
/// Maximum rows of one file: a probe gains little from more, and its features must fit in memory.
const MAX_ROWS: usize = 20_000;

/// Reads a file that a policy names; it resolves the name against the policy's directory itself.
pub(super) type FileReader<'a> = &'a dyn Fn(&Path) -> std::io::Result<Vec<u8>>;

/// Why a labelled file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LabelledError {
    /// The file is not UTF-8.
    #[error("not valid UTF-8: {0}")]
    NotText(#[from] std::str::Utf8Error),
    /// A line is not a labelled response.
    #[error(
        "line {line}: {source}; each line holds prompt, response and verdict (`violates` or `complies`)"
    )]
    Line {
        /// Line number, from 1.
        line: usize,
        /// The JSON or field error.
        source: serde_json::Error,
    },
    /// The file has too many rows.
    #[error("more than {MAX_ROWS} rows, the bound for one probe")]
    TooMany,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelledRow {
    prompt: String,
    response: String,
    verdict: ExampleVerdict,
}

/// Parses all rows, skipping blank lines; the error names the first invalid line.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Labelled>, LabelledError> {
    let text = std::str::from_utf8(bytes)?;
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let row: LabelledRow =
            serde_json::from_str(line).map_err(|source| LabelledError::Line {
                line: index + 1,
                source,
            })?;
        rows.push(Labelled {
            prompt: row.prompt,
            response: row.response,
            violates: row.verdict == ExampleVerdict::Violates,
        });
        if rows.len() > MAX_ROWS {
            return Err(LabelledError::TooMany);
        }
    }
    Ok(rows)
}

/// Whether this is a file name without directories: the file must be in the policy's directory,
/// where the watcher sees it.
pub(super) fn is_plain_name(name: &str) -> bool {
    let path = Path::new(name);
    path.file_name().is_some_and(|n| n == name) && !name.starts_with('.')
}
