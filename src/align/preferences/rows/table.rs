//! Tables of text: the first row names the columns.

use std::io::{self, BufRead, Read, Take};
use std::ops::ControlFlow;
use std::path::Path;

use csv::{ByteRecord, Position};
use serde_json::{Map, Value};

use crate::preferences::dataset::DatasetError;
use crate::preferences::lines::{Bounds, Content, Row, Visitor};
use realign_core::json::{JsonError, parse};

/// Bytes that the reader takes at once.
const BUFFER: usize = 1 << 16;
/// Columns whose cells are JSON, if they can be read as such.
const NESTED: [&str; 11] = [
    "meta",
    "labels",
    "category",
    "chosen_labels",
    "rejected_labels",
    "tools",
    "functions",
    "completions",
    "responses",
    "scores",
    "holdout",
];

/// Passes the rows on. Each is an object without the empty cells.
///
/// # Errors
/// See [`super::for_each`].
pub(super) fn for_each(
    file: &Path,
    mut input: impl BufRead,
    (bounds, separator): (Bounds, u8),
    visitor: &mut Visitor<'_>,
) -> Result<u64, DatasetError> {
    let head = input.fill_buf();
    let head = Head::of(head.map_err(|error| DatasetError::at_line(file, 1, &error))?);
    let separator = head.separator(separator);
    let budget = bounds.total.saturating_add(1);
    let guarded = Guarded {
        input: input.take(budget),
        left: 0,
    };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator)
        .flexible(true)
        .has_headers(false)
        .buffer_capacity(BUFFER)
        .from_reader(guarded);
    let mut table = Table::default();
    loop {
        // What one row may take, and what is read ahead of it.
        reader.get_mut().left = bounds.line + 2 * BUFFER;
        let mut record = ByteRecord::new();
        let more = reader.read_byte_record(&mut record);
        let line = record.position().map_or(1, |at| head.line(at));
        let used_up = reader.get_ref().left == 0;
        let unread = reader.get_ref().input.limit();
        let next = match more {
            Ok(_) if unread == 0 => {
                return Err(DatasetError::Unpacked {
                    path: file.to_owned(),
                    line,
                    limit: bounds.total,
                });
            }
            Ok(true) => table.pass(line, &record, bounds, visitor),
            Ok(false) => ControlFlow::Break(()),
            Err(_) if used_up => {
                let line = reader.position().line() as usize;
                let why = "the row is too long: a quotation mark may be missing; nothing after it is read";
                let _last = visitor(Row::at(line, Content::Refused(why.to_owned())));
                ControlFlow::Break(())
            }
            Err(error) => {
                let line = error.position().map_or(line, |at| at.line() as usize);
                let error = io::Error::other(error.to_string());
                return Err(DatasetError::at_line(file, line, &error));
            }
        };
        if next.is_break() {
            return Ok(budget - unread);
        }
    }
}

/// What the row of names shows about the rest.
#[derive(Default)]
struct Head {
    commas: usize,
    semicolons: usize,
    tabs: usize,
    /// Whether lines end as on Windows.
    has_returns: bool,
}

impl Head {
    /// Of the first bytes of a table.
    fn of(bytes: &[u8]) -> Self {
        let (mut head, mut is_quoted, mut last) = (Self::default(), false, 0);
        for byte in bytes {
            is_quoted ^= *byte == b'"';
            match byte {
                _ if is_quoted => {}
                b',' => head.commas += 1,
                b';' => head.semicolons += 1,
                b'\t' => head.tabs += 1,
                b'\n' => {
                    head.has_returns = last == b'\r';
                    break;
                }
                _ => {}
            }
            last = *byte;
        }
        head
    }

    /// Where the language writes decimals with a comma, spreadsheets separate with semicolons what is called
    /// after commas.
    fn separator(&self, named: u8) -> u8 {
        match named {
            b',' if self.commas == 0 && self.semicolons > 0 => b';',
            b',' if self.commas == 0 && self.tabs > 0 => b'\t',
            named => named,
        }
    }

    /// The line at which a row begins. The reader counts the second character of a line's end to the next row.
    fn line(&self, at: &Position) -> usize {
        at.line() as usize + usize::from(self.has_returns && at.byte() > 0)
    }
}

/// Fails instead of reading on and on for one row.
struct Guarded<R> {
    input: Take<R>,
    left: usize,
}

impl<R: BufRead> Read for Guarded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("the row is too long"));
        }
        let most = into.len().min(self.left);
        let count = self.input.read(&mut into[..most])?;
        self.left -= count;
        Ok(count)
    }
}

/// The names of the columns, once they are read.
#[derive(Default)]
struct Table {
    names: Option<Vec<String>>,
}

impl Table {
    fn pass(
        &mut self,
        line: usize,
        record: &ByteRecord,
        bounds: Bounds,
        visitor: &mut Visitor<'_>,
    ) -> ControlFlow<()> {
        let Some(names) = &self.names else {
            return match names(record) {
                Ok(names) => {
                    self.names = Some(names);
                    ControlFlow::Continue(())
                }
                Err(why) => {
                    let why = format!("{why}; nothing of this file is read");
                    let _last = visitor(Row::at(line, Content::Refused(why)));
                    ControlFlow::Break(())
                }
            };
        };
        let row = match row(names, record) {
            Ok(row) => Value::Object(row).to_string(),
            Err(why) => return visitor(Row::at(line, Content::Refused(why))),
        };
        let content = match row.len() > bounds.line {
            true => Content::TooLong,
            false => Content::Bytes(row.as_bytes()),
        };
        visitor(Row::at(line, content))
    }
}

fn names(record: &ByteRecord) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::with_capacity(record.len());
    for cell in record {
        let name = std::str::from_utf8(cell)
            .map_err(|_| "the names of the columns are not valid UTF-8".to_owned())?;
        let name = name.trim_start_matches('\u{feff}').trim();
        if !name.is_empty() && names.iter().any(|other| other == name) {
            let shown: String = name.chars().take(40).collect();
            return Err(format!("the column `{shown}` is there twice"));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

/// A row as an object. Empty cells are absent.
fn row(names: &[String], record: &ByteRecord) -> Result<Map<String, Value>, String> {
    if names.len() != record.len() {
        return Err(format!(
            "the row has {} cells and the table {} columns: put cells with separators or line breaks between quotation marks",
            record.len(),
            names.len()
        ));
    }
    let mut row = Map::new();
    for (name, cell) in names.iter().zip(record) {
        let cell = std::str::from_utf8(cell)
            .map_err(|_| format!("the cell of `{name}` is not valid UTF-8"))?;
        if !cell.is_empty() {
            row.insert(name.clone(), value(name, cell)?);
        }
    }
    Ok(row)
}

/// Messages and the values of flags are JSON; other cells are text, also where they look like JSON.
fn value(name: &str, cell: &str) -> Result<Value, String> {
    let plain = cell.trim();
    let is_flag = name.starts_with("is_")
        || name.ends_with("_id")
        || name.ends_with("_severity_level")
        || name == "holdout";
    match plain {
        "True" | "TRUE" if is_flag => return Ok(Value::Bool(true)),
        "False" | "FALSE" if is_flag => return Ok(Value::Bool(false)),
        _ => {}
    }
    let is_nested = plain.starts_with(['[', '{']);
    let parsed = match is_flag || is_nested {
        true => match parse(plain.as_bytes()) {
            Ok(value) => Some(value),
            // JSON, but for what makes it unclear.
            Err(error @ (JsonError::Twice { .. } | JsonError::Half { .. })) => {
                return Err(format!("in the cell of `{name}`, {error}"));
            }
            Err(JsonError::Syntax { .. }) => None,
        },
        false => None,
    };
    let keep = |value: &Value| {
        is_flag || NESTED.contains(&name) || name.ends_with("_category") || is_talk(value)
    };
    match parsed {
        Some(value) if keep(&value) => Ok(value),
        None if plain.starts_with("[{'") || plain.starts_with("{'") => Err(format!(
            "the cell of `{name}` is written as Python shows lists and dictionaries; write it as JSON, with `json.dumps`"
        )),
        _ => Ok(Value::String(cell.to_owned())),
    }
}

/// Whether a value is a message, messages, or an object that has `messages`.
fn is_talk(value: &Value) -> bool {
    let is_message = |value: &Value| value.get("role").or_else(|| value.get("from")).is_some();
    match value {
        Value::Array(items) => !items.is_empty() && items.iter().all(is_message),
        other => is_message(other) || other.get("messages").is_some_and(Value::is_array),
    }
}
