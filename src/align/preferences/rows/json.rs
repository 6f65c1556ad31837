//! JSON texts: a list of rows, an object that has one, or rows one after another.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Cursor};
use std::ops::ControlFlow;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess};
use serde_json::value::RawValue;

use super::whole;
use crate::preferences::dataset::DatasetError;
use crate::preferences::lines::{self, Bounds, Content, Row, Visitor};

/// Keys under which an object may have its list of rows.
const LISTS: [&str; 6] = ["data", "rows", "pairs", "train", "examples", "items"];
/// Columns by which an object is a row itself.
const COLUMNS: [&str; 4] = ["chosen", "rejected", "prompt", "preferred_output"];

/// Passes the rows on. A JSON text is in memory as a whole.
///
/// # Errors
/// See [`super::for_each`].
pub(super) fn for_each(
    file: &Path,
    input: impl BufRead,
    bounds: Bounds,
    visitor: &mut Visitor<'_>,
) -> Result<u64, DatasetError> {
    let bytes = whole(file, input, bounds)?;
    let read = bytes.len() as u64;
    let start = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let texts = std::str::from_utf8(start)
        .map_err(|error| format!("not valid UTF-8 at byte {}", error.valid_up_to() + 1))
        .and_then(|text| Ok((text, texts(text)?)));
    match texts {
        Ok((text, texts)) => {
            let rows = &mut Rows {
                text,
                bounds,
                visitor,
                counted: (0, 1),
            };
            let _stopped_early = texts.into_iter().try_for_each(|text| rows.pass_text(text));
        }
        // Lines of JSON under the name of a JSON text, some of them broken.
        Err(_) if is_lines(start) => {
            return lines::for_each(file, Cursor::new(bytes), bounds, visitor);
        }
        Err(why) => {
            let why = format!("{why}; nothing of this file is read");
            let _stopped_early = visitor(Row::at(1, Content::Refused(why)));
        }
    }
    Ok(read)
}

/// The JSON texts in a file.
fn texts(text: &str) -> Result<Vec<&RawValue>, String> {
    let texts = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    texts
        .collect::<Result<_, _>>()
        .map_err(|error| format!("not JSON: {error}"))
}

/// Whether the first line is an object by itself.
fn is_lines(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = lines.find(|line| !line.trim_ascii().is_empty());
    first.is_some_and(|line| {
        line.trim_ascii().starts_with(b"{") && serde_json::from_slice::<&RawValue>(line).is_ok()
    })
}

/// The fields of an object, and one that it has twice.
#[derive(Default)]
struct Fields<'a> {
    object: BTreeMap<String, &'a RawValue>,
    twice: Option<String>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read<'a>(Fields<'a>);

        impl<'de: 'a, 'a> serde::de::Visitor<'de> for Read<'a> {
            type Value = Fields<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Fields<'a>, A::Error> {
                while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                    if self.0.object.insert(key.clone(), value).is_some() {
                        self.0.twice = Some(key);
                    }
                }
                Ok(self.0)
            }
        }

        deserializer.deserialize_map(Read(Self::default()))
    }
}

struct Rows<'a, 'v, 'w> {
    text: &'a str,
    bounds: Bounds,
    visitor: &'v mut Visitor<'w>,
    /// How many bytes were looked at, and the line that they end in.
    counted: (usize, usize),
}

impl<'a> Rows<'a, '_, '_> {
    fn pass_text(&mut self, text: &'a RawValue) -> ControlFlow<()> {
        if let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(text.get()) {
            return self.pass_list(&items);
        }
        let Fields { object, twice } = serde_json::from_str(text.get()).unwrap_or_default();
        let is_list = |key: &str| object.get(key).is_some_and(|v| v.get().starts_with('['));
        let list = LISTS.into_iter().find(|key| is_list(key));
        match list {
            Some(key) if !COLUMNS.iter().any(|column| object.contains_key(*column)) => {
                if let Some(key) = twice {
                    let shown: String = key.chars().take(40).collect();
                    let why = format!("`{shown}` is given twice; nothing of this object is read");
                    let line = self.line_of(text);
                    return (self.visitor)(Row::at(line, Content::Refused(why)));
                }
                self.pass_object(&object, key)
            }
            _ => self.pass(text, None),
        }
    }

    /// The rows under `key`; other lists of objects are reported.
    fn pass_object(
        &mut self,
        object: &BTreeMap<String, &'a RawValue>,
        key: &str,
    ) -> ControlFlow<()> {
        let items = object
            .get(key)
            .and_then(|list| serde_json::from_str(list.get()).ok());
        let items: Vec<&RawValue> = items.unwrap_or_default();
        self.pass_list(&items)?;
        for (other, value) in object.iter().filter(|(other, _)| *other != key) {
            let items: Option<Vec<&RawValue>> = serde_json::from_str(value.get()).ok();
            let first = items.as_ref().and_then(|items| items.first());
            if first.is_some_and(|first| first.get().starts_with('{')) {
                let shown: String = other.chars().take(40).collect();
                let why = format!(
                    "the list `{shown}` is not read, only `{key}`; give it a file of its own if it is meant"
                );
                let line = self.line_of(value);
                (self.visitor)(Row::at(line, Content::Refused(why)))?;
            }
        }
        ControlFlow::Continue(())
    }

    fn pass_list(&mut self, items: &[&'a RawValue]) -> ControlFlow<()> {
        let mut numbered = items.iter().zip(1..);
        numbered.try_for_each(|(item, number)| self.pass(item, Some(number)))
    }

    fn pass(&mut self, row: &RawValue, item: Option<usize>) -> ControlFlow<()> {
        let line = self.line_of(row);
        let bytes = row.get().as_bytes();
        let content = match bytes.len() > self.bounds.line {
            true => Content::TooLong,
            false => Content::Bytes(bytes),
        };
        (self.visitor)(Row {
            line,
            item,
            content,
        })
    }

    /// The line at which a part of the text begins.
    fn line_of(&mut self, part: &RawValue) -> usize {
        let at = part.get().as_ptr().addr() - self.text.as_ptr().addr();
        let (seen, line) = self.counted;
        // Parts come in their order, except the lists that are not read.
        let (from, line) = if seen <= at { (seen, line) } else { (0, 1) };
        let breaks = self.text.as_bytes()[from..at].iter();
        let line = line + breaks.filter(|byte| **byte == b'\n').count();
        self.counted = (at, line);
        line
    }
}
