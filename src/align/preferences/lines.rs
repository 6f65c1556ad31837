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
}

/// One line.
pub(super) enum Line<'a> {
    /// Its bytes, with the line break.
    Bytes(&'a [u8]),
    /// It is longer than the bound.
    TooLong,
}

/// Calls `visitor` with every line and its number, from 1, until it breaks. Keeps one line in
/// memory. Returns the unpacked bytes that were read.
///
/// # Errors
/// [`DatasetError::File`] with the line at which reading stopped, [`DatasetError::Unpacked`].
pub(super) fn for_each(
    file: &Path,
    input: impl BufRead,
    bounds: Bounds,
    visitor: &mut dyn FnMut(usize, Line<'_>) -> ControlFlow<()>,
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
        if visitor(number, line).is_break() {
            break;
        }
    }
    Ok(budget - input.limit())
}

fn next<'a>(
    input: &mut impl BufRead,
    max: usize,
    bytes: &'a mut Vec<u8>,
) -> io::Result<Option<Line<'a>>> {
    let limit = max as u64 + 1;
    if input.by_ref().take(limit).read_until(b'\n', bytes)? == 0 {
        return Ok(None);
    }
    if bytes.len() > max && bytes.last() != Some(&b'\n') {
        input.skip_until(b'\n')?;
        return Ok(Some(Line::TooLong));
    }
    Ok(Some(Line::Bytes(bytes)))
}
