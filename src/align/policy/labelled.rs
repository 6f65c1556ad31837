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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    prompt: String,
    response: String,
    verdict: Verdict,
}

/// Reads all rows; the error names the first line that is not one.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Labelled>, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not valid UTF-8: {e}"))?;
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(line).map_err(|error| {
            let line = index + 1;
            format!("line {line}: {error}; each line holds prompt, response and verdict (`violates` or `complies`)")
        })?;
        rows.push(Labelled {
            prompt: row.prompt,
            response: row.response,
            violates: row.verdict == Verdict::Violates,
        });
        if rows.len() > MAX_ROWS {
            return Err(format!(
                "more than {MAX_ROWS} rows, the bound for one probe"
            ));
        }
    }
    Ok(rows)
}

/// A name without directories: the file lies beside the policy, where the watcher sees it.
pub(super) fn is_plain_name(name: &str) -> bool {
    let path = Path::new(name);
    path.file_name().is_some_and(|n| n == name) && !name.starts_with('.')
}
