//! JSON texts that mean one thing: no object has a key twice.
//!
//! RFC 8259 leaves open what a repeated key means, and most readers take the last one in silence. A
//! request or a row of data that says two things is refused instead, with the path of the key.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

/// Longest part of a key that an error repeats, in characters.
const SHOWN: usize = 64;
/// What editors of one system put in front of a text.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a text is not read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// An object has a key twice.
    #[error("`{path}` is given twice; which of the two is meant is not clear, so send one")]
    Twice {
        /// The key's path, `messages[0].content`.
        path: String,
    },
    /// A string has one half of a character that is written as two (`\ud83d` without `\ude00`).
    #[error(
        "{}half of a character: a `\\ud800` to `\\udfff` stands alone, as where a text was cut in the \
         middle of an emoji; cut texts between characters (line {line}, column {column})",
        begin(.path)
    )]
    Half {
        /// The path of the string, or of the object that has it as a key; empty for the whole text.
        path: String,
        /// Counted from 1.
        line: usize,
        /// In bytes, counted from 1.
        column: usize,
    },
    /// It is not JSON.
    #[error("not valid JSON: {source}{}{}", place(.path), hint(.source))]
    Syntax {
        /// What is wrong, and where.
        source: serde_json::Error,
        /// The path of the value that is wrong; empty for the whole text.
        path: String,
    },
}

fn begin(path: &str) -> String {
    match path {
        "" => "the text has ".to_owned(),
        path => format!("`{path}` has "),
    }
}

fn place(path: &str) -> String {
    match path {
        "" => String::new(),
        path => format!(", in `{path}`"),
    }
}

/// What mostly causes an error that says little.
fn hint(error: &serde_json::Error) -> &'static str {
    let text = error.to_string();
    if text.starts_with("invalid unicode code point") {
        " (the text must be UTF-8)"
    } else if text.starts_with("control character") {
        " (write line breaks in strings as `\\n`)"
    } else {
        ""
    }
}

/// Reads a text; a byte order mark in front of it is passed over.
///
/// # Errors
/// [`JsonError`].
pub fn parse(text: &[u8]) -> Result<Value, JsonError> {
    let text = text.strip_prefix(MARK).unwrap_or(text);
    let trail = Trail::default();
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = Once(&trail).deserialize(&mut reader);
    let read = read.and_then(|value| reader.end().map(|()| value));
    read.map_err(|source| {
        let path = trail.path();
        if trail.0.borrow().twice {
            return JsonError::Twice { path };
        }
        let message = source.to_string();
        // The only escapes whose end matters are those of halves.
        let is_half = message.starts_with("lone leading surrogate")
            || message.starts_with("unexpected end of hex escape");
        match is_half {
            true => JsonError::Half {
                path,
                line: source.line(),
                column: source.column(),
            },
            false => JsonError::Syntax { source, path },
        }
    })
}

/// Where reading failed. It is written on the way out of an error only.
#[derive(Debug, Default)]
struct Trail(RefCell<Failed>);

#[derive(Debug, Default)]
struct Failed {
    /// Innermost first.
    steps: Vec<Step>,
    twice: bool,
}

#[derive(Debug)]
enum Step {
    Key(String),
    Item(usize),
}

impl Trail {
    fn push(&self, step: Step) {
        self.0.borrow_mut().steps.push(step);
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for step in self.0.borrow().steps.iter().rev() {
            match step {
                Step::Key(key) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.extend(key.chars().take(SHOWN));
                }
                Step::Item(index) => path.push_str(&format!("[{index}]")),
            }
        }
        path
    }
}

/// Reads a value in which every key is given once.
#[derive(Clone, Copy)]
struct Once<'a>(&'a Trail);

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            match items.next_element_seed(self) {
                Ok(Some(item)) => list.push(item),
                Ok(None) => return Ok(Value::Array(list)),
                Err(error) => {
                    self.0.push(Step::Item(list.len()));
                    return Err(error);
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let value = match fields.next_value_seed(self) {
                Ok(value) => value,
                Err(error) => {
                    self.0.push(Step::Key(key));
                    return Err(error);
                }
            };
            match object.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(value);
                }
                Entry::Occupied(place) => {
                    self.0.push(Step::Key(place.key().clone()));
                    self.0.0.borrow_mut().twice = true;
                    return Err(A::Error::custom("a key is given twice"));
                }
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_key_says_once_is_read_as_by_others() {
        for text in [
            "{}",
            "[]",
            "null",
            " [1, -2, 3.5, 1e300, 18446744073709551615, -9223372036854775808, 1e2]",
            r#"{"b": {"a": [true, false, null, "\ud83d\ude00 é \u0000"]}, "a": {"b": {}}}"#,
            r#"{"": 1, "A": 2, "a": 3, "\u0061b": 4}"#,
        ] {
            let read = parse(text.as_bytes()).unwrap();
            let others: Value = serde_json::from_str(text).unwrap();
            assert_eq!(read.to_string(), others.to_string(), "{text}");
        }
        assert_eq!(parse(b"\xef\xbb\xbf{\"a\": 1}").unwrap()["a"], 1);
        // The library's own name for a text that stands for any value.
        let raw = r#"{"$serde_json::private::RawValue":"1"}"#;
        assert_eq!(parse(raw.as_bytes()).unwrap().to_string(), raw);
    }

    #[test]
    fn a_key_that_is_given_twice_is_named() {
        for (text, path) in [
            (r#"{"a": 1, "a": 1}"#, "a"),
            (
                r#"{"a": 1, "b": {"c": [0, {"d": 1, "e": 2, "d": null}]}}"#,
                "b.c[1].d",
            ),
            (r#"[[{"x": 1, "\u0078": 2}]]"#, "[0][0].x"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(
                matches!(&error, JsonError::Twice { path: p } if p == path),
                "{error}"
            );
            assert!(
                error
                    .to_string()
                    .contains(&format!("`{path}` is given twice"))
            );
        }
        let long = format!(r#"{{"{0}": 1, "{0}": 2}}"#, "é".repeat(1000));
        assert!(parse(long.as_bytes()).unwrap_err().to_string().len() < 300);
    }

    #[test]
    fn halves_of_characters_are_named() {
        for (text, place) in [
            (r#"{"a": [{"b": "x\ud83d"}]}"#, "`a[0].b` has"),
            (r#"{"a": "\ud83d\n"}"#, "`a` has"),
            (r#"{"a": "\ud83d\u0041"}"#, "`a` has"),
            (r#"{"a": "\ude00"}"#, "`a` has"),
            (r#"{"a": {"\ud83d": 1}}"#, "`a` has"),
            (r#""\ud800""#, "the text has"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(matches!(error, JsonError::Half { .. }), "{text}: {error}");
            assert!(error.to_string().starts_with(place), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_not_json_is_said_with_its_place() {
        for (text, words) in [
            (&br#"{"temperature": NaN}"#[..], "in `temperature`"),
            (br#"{"a": [1, 2,]}"#, "in `a[2]`"),
            (b"{'a': 1}", "key must be a string"),
            (b"{\"a\": \"x\ny\"}", "write line breaks"),
            (b"{\"a\": \"\xe9\"}", "UTF-8"),
            (b"{\"a\": \"\xed\xa0\x80\"}", "UTF-8"),
            (b"{} {}", "trailing characters"),
            (b"", "EOF"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
    }
}
