//! The rows of a data file, whatever its form: lines of JSON, a JSON list, a table, or Parquet.
//!
//! Every row is passed on as JSON.

mod json;
mod parquet;
mod table;

use std::io::{BufRead, Read};
use std::path::Path;

use super::dataset::DatasetError;
use super::lines::{self, Bounds, Visitor};

/// How a file's rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A JSON object a line.
    Lines,
    /// JSON texts: a list of objects, an object that has one, or objects.
    Json,
    /// A table, its first row the names of columns. With a comma here, semicolons or tabs separate where that row has them and
    /// no comma.
    Table(u8),
    /// Columns of an Apache Parquet file.
    Parquet,
}

impl Form {
    /// The form of a file by its name; `None` if it is no preference data.
    pub(super) fn of(path: &Path) -> Option<Form> {
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        let plain = name
            .strip_suffix(".gz")
            .or_else(|| name.strip_suffix(".zst"));
        let plain = plain.unwrap_or(&name);
        match plain.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Some(Form::Lines),
            "json" => Some(Form::Json),
            "csv" => Some(Form::Table(b',')),
            "tsv" => Some(Form::Table(b'\t')),
            "parquet" => Some(Form::Parquet),
            _ => None,
        }
    }

    /// Its name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Form::Lines => "JSON lines",
            Form::Json => "JSON",
            Form::Table(b'\t') => "table (tabs)",
            Form::Table(_) => "table",
            Form::Parquet => "Parquet",
        }
    }
}

/// Calls `visitor` with every row until it breaks. Returns the unpacked bytes that were read. A file
/// whose name says nothing has lines.
///
/// # Errors
/// [`DatasetError::File`] with what is wrong, [`DatasetError::Unpacked`], [`DatasetError::TooLarge`].
pub(super) fn for_each(
    file: &Path,
    input: impl BufRead,
    bounds: Bounds,
    visitor: &mut Visitor<'_>,
) -> Result<u64, DatasetError> {
    match Form::of(file).unwrap_or(Form::Lines) {
        Form::Lines => lines::for_each(file, input, bounds, visitor),
        Form::Json => json::for_each(file, input, bounds, visitor),
        Form::Table(separator) => table::for_each(file, input, (bounds, separator), visitor),
        Form::Parquet => parquet::for_each(file, input, bounds, visitor),
    }
}

/// All bytes of a file, if it has no more than the bounds allow.
fn whole(file: &Path, input: impl BufRead, bounds: Bounds) -> Result<Vec<u8>, DatasetError> {
    let limit = bounds.whole.min(bounds.total);
    let mut bytes = Vec::new();
    input
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| DatasetError::at_line(file, 1, &source))?;
    if bytes.len() as u64 > limit {
        return Err(DatasetError::TooLarge {
            path: file.to_owned(),
            line: 1,
            limit,
        });
    }
    Ok(bytes)
}
