//! Apache Parquet. Of its compressions, Snappy is read, and none.

use std::io::BufRead;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Value};

use super::whole;
use crate::preferences::dataset::DatasetError;
use crate::preferences::lines::{Bounds, Content, Row, Visitor};

/// What to do about a file that cannot be read.
const CONVERT: &str = "write it again, with Snappy or without compression, or convert it: `duckdb -c \"COPY \
    'x.parquet' TO 'x.jsonl'\"`";

/// Passes the rows on, numbered from 1. The file is in memory as a whole.
///
/// # Errors
/// See [`super::for_each`].
pub(super) fn for_each(
    file: &Path,
    input: impl BufRead,
    bounds: Bounds,
    visitor: &mut Visitor<'_>,
) -> Result<u64, DatasetError> {
    let bytes = Bytes::from(whole(file, input, bounds)?);
    let mut read = bytes.len() as u64;
    let opened = guarded(|| {
        let reader = SerializedFileReader::new(bytes)?;
        Ok(RowIter::from_file_into(Box::new(reader)))
    });
    let mut records = match opened {
        Ok(records) => records,
        Err(why) => {
            let why = format!("{why}; nothing of this file is read: {CONVERT}");
            let _last = visitor(Row::at(1, Content::Refused(why)));
            return Ok(read);
        }
    };
    for number in 1.. {
        let record = match guarded(|| records.next().transpose()) {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(why) => {
                let why = format!("{why}; nothing after it is read: {CONVERT}");
                let _last = visitor(Row::at(number, Content::Refused(why)));
                break;
            }
        };
        let row = object(&record).map(|row| Value::Object(row).to_string());
        read += row.as_ref().map_or(0, |row| row.len() as u64);
        // A dictionary makes many long rows of a small file.
        if read > bounds.total {
            return Err(DatasetError::Unpacked {
                path: file.to_owned(),
                line: number,
                limit: bounds.total,
            });
        }
        let content = match &row {
            Ok(row) if row.len() > bounds.line => Content::TooLong,
            Ok(row) => Content::Bytes(row.as_bytes()),
            Err(why) => Content::Refused(why.clone()),
        };
        if visitor(Row::at(number, content)).is_break() {
            break;
        }
    }
    Ok(read)
}

/// Runs a step of the reader, which panics on some broken files.
fn guarded<T>(step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("not readable as Parquet: {error}")),
        Err(_) => Err("a broken Parquet file".to_owned()),
    }
}

fn object(record: &Record) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for (name, field) in record.get_column_iter() {
        if object.insert(name.clone(), value(name, field)?).is_some() {
            return Err(format!("the column `{name}` is there twice"));
        }
    }
    Ok(object)
}

/// Texts without the annotation that they are texts are read as such too.
fn value(name: &str, field: &Field) -> Result<Value, String> {
    match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Ok(Value::String(text.to_owned())),
            Err(_) => Err(format!("`{name}` holds bytes that are no text")),
        },
        Field::Group(group) => object(group).map(Value::Object),
        Field::ListInternal(list) => {
            let items = list.elements().iter();
            items.map(|item| value(name, item)).collect()
        }
        other => Ok(other.to_json_value()),
    }
}
