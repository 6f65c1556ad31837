//! Values as text: `str()` and `repr()`.

use std::borrow::Cow;
use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::super::budget::{charge_text, weigh};
use super::{Method, objects, type_name};

/// `str(value)`.
///
/// # Errors
/// If the value is too large.
pub(in super::super) fn str_of(value: &Value) -> Result<String, Error> {
    text_of(value).map(Cow::into_owned)
}

/// As [`str_of`], without a copy of what is text.
pub(in super::super) fn text_of(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    let text = match value.kind() {
        ValueKind::Undefined => return Ok(Cow::Borrowed("")),
        ValueKind::None => return Ok(Cow::Borrowed("None")),
        ValueKind::Bool => return Ok(Cow::Borrowed(bool_name(value))),
        ValueKind::Number => number(value),
        _ => repr(value)?,
    };
    Ok(Cow::Owned(text))
}

/// `repr(value)`.
///
/// # Errors
/// If the value is too large.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let weight = weigh(value)?;
    charge_text(weight.text.saturating_add(8 * weight.nodes) as usize)?;
    let mut out = String::new();
    write_repr(value, &mut out);
    Ok(out)
}

fn bool_name(value: &Value) -> &'static str {
    if value.is_true() { "True" } else { "False" }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => float(number),
        _ => value.to_string(),
    }
}

fn write_repr(value: &Value, out: &mut String) {
    if let Some(text) = value.as_str() {
        return quote(text, out);
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(bool_name(value)),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Seq | ValueKind::Iterable => write_list(value, out),
        ValueKind::Map => {
            let is_namespace = objects::is_namespace(value);
            out.push_str(if is_namespace { "<Namespace {" } else { "{" });
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_repr(&key, out);
                out.push_str(": ");
                write_repr(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push_str(if is_namespace { "}>" } else { "}" });
        }
        _ => match value.downcast_object_ref::<Method>() {
            Some(method) => method.describe(out),
            None => {
                let _ = write!(out, "<{}>", type_name(value));
            }
        },
    }
}

fn write_list(value: &Value, out: &mut String) {
    let is_tuple = objects::is_tuple(value);
    out.push(if is_tuple { '(' } else { '[' });
    let mut count = 0;
    for item in value.try_iter().into_iter().flatten() {
        out.push_str(if count == 0 { "" } else { ", " });
        write_repr(&item, out);
        count += 1;
    }
    out.push_str(if is_tuple && count == 1 { "," } else { "" });
    out.push(if is_tuple { ')' } else { ']' });
}

/// A text in quotes, as Python writes it.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let _ = match c as u32 {
                    code @ 0..=0xff => write!(out, "\\x{code:02x}"),
                    code @ 0..=0xffff => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Whether `repr` writes a character as it is. Characters for private use are written, although
/// Python escapes them: one of them guards control literals (`super::super::guard`).
fn is_printable(c: char) -> bool {
    let is_format = matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0001}'..='\u{e007f}');
    c == ' ' || !(c.is_control() || c.is_whitespace() || is_format)
}

/// `repr` of a float: the shortest digits that give the number back.
pub(super) fn float(number: f64) -> String {
    if !number.is_finite() {
        return match (number.is_nan(), number > 0.0) {
            (true, _) => "nan",
            (false, true) => "inf",
            (false, false) => "-inf",
        }
        .to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') {
            plain
        } else {
            format!("{plain}.0")
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_python_writes_them() {
        let cases = [
            (serde_json::json!("it's"), "\"it's\""),
            (
                serde_json::json!("\"it's\"\n\u{1}é\u{a0}"),
                "'\"it\\'s\"\\n\\x01é\\xa0'",
            ),
            (
                serde_json::json!([1, 1.0, true, null, {"a": []}]),
                "[1, 1.0, True, None, {'a': []}]",
            ),
            (
                serde_json::json!([1e16, 1e-5, 0.1, 123456.789, -0.0]),
                "[1e+16, 1e-05, 0.1, 123456.789, -0.0]",
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(repr(&Value::from_serialize(&value)).unwrap(), expected);
        }
    }
}
