//! The lines of a data file, within bounds: none longer than a limit, and no more unpacked bytes
//! altogether than a budget, however small the compressed file is.

use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;
use std::path::Path;

use super::dataset::DatasetError;

/// Bounds on what is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Maximum bytes of one line; a longer one is skipped.
    pub(super) line: usize,
    /// Maximum bytes altogether, unpacked.
    pub(super) total: u64,
    /// Maximum bytes of a file that has to be in memory as a whole, unpacked.
    pub(super) whole: u64,
}

/// What a row holds.
pub(super) enum Content<'a> {
    /// The bytes of its JSON text, maybe with a line break.
    Bytes(&'a [u8]),
    /// It is longer than the bound.
    TooLong,
    /// It cannot be passed on as JSON, for this reason.
    Refused(String),
}

/// One row.
pub(super) struct Row<'a> {
    /// The line at which it begins, or its number where the form has no lines; from 1.
    pub(super) line: usize,
    /// Its number in a list, which may be on one line as a whole; from 1.
    pub(super) item: Option<usize>,
    pub(super) content: Content<'a>,
}

impl<'a> Row<'a> {
    /// A row that is a line of its own.
    pub(super) fn at(line: usize, content: Content<'a>) -> Self {
        Row {
            line,
            item: None,
            content,
        }
    }
}

/// Takes rows until it breaks.
pub(super) type Visitor<'v> = dyn FnMut(Row<'_>) -> ControlFlow<()> + 'v;

/// Calls `visitor` with every line, until it breaks. Keeps one line in
/// memory. Returns the unpacked bytes that were read.
///
/// # Errors
/// [`DatasetError::File`] with the line at which reading stopped, [`DatasetError::Unpacked`].
pub(super) fn for_each(
    file: &Path,
    input: impl BufRead,
    bounds: Bounds,
    visitor: &mut Visitor<'_>,
) -> Result<u64, DatasetError> {
    // One byte more than allowed: reading it shows that the budget is exceeded.
    let budget = bounds.total.saturating_add(1);
    let mut input = input.take(budget);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let line = next(&mut input, bounds.line, &mut bytes)
            .map_err(|source| DatasetError::at_line(file, number, &source))?;
        if input.limit() == 0 {
            return Err(DatasetError::Unpacked {
                path: file.to_owned(),
                line: number,
                limit: bounds.total,
            });
        }
        let Some(line) = line else { break };
        if visitor(Row::at(number, line)).is_break() {
            break;
        }
    }
    Ok(budget - input.limit())
}

fn next<'a>(
    input: &mut impl BufRead,
    max: usize,
    bytes: &'a mut Vec<u8>,
) -> io::Result<Option<Content<'a>>> {
    let limit = max as u64 + 1;
    if input.by_ref().take(limit).read_until(b'\n', bytes)? == 0 {
        return Ok(None);
    }
    if bytes.len() > max && bytes.last() != Some(&b'\n') {
        input.skip_until(b'\n')?;
        return Ok(Some(Content::TooLong));
    }
    Ok(Some(Content::Bytes(bytes)))
}
