//! Texts that are marked as safe: what is joined to one is escaped, as with Jinja2's `Markup`.

use std::borrow::Cow;

use minijinja::{Environment, Error, Value};

use super::super::budget::charge_text;
use super::text_of;

pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_filter("safe", |value: Value| -> Result<Value, Error> {
        Ok(Value::from_safe_string(text_of(&value)?.into_owned()))
    });
    for name in ["escape", "e"] {
        environment.add_filter(name, |value: Value| -> Result<Value, Error> {
            Ok(Value::from_safe_string(escaped(&value)?.into_owned()))
        });
    }
    environment.add_filter("forceescape", |value: Value| -> Result<Value, Error> {
        let text = escape(&text_of(&value)?)?;
        Ok(Value::from_safe_string(text))
    });
}

/// Two texts as one that is safe.
///
/// # Errors
/// If it is too long.
pub(super) fn joined(a: &Value, b: &Value) -> Result<Value, Error> {
    let (a, b) = (escaped(a)?, escaped(b)?);
    charge_text(a.len().saturating_add(b.len()))?;
    Ok(Value::from_safe_string([a, b].concat()))
}

fn escaped(value: &Value) -> Result<Cow<'_, str>, Error> {
    let text = text_of(value)?;
    match value.is_safe() {
        true => Ok(text),
        false => escape(&text).map(Cow::Owned),
    }
}

fn escape(text: &str) -> Result<String, Error> {
    charge_text(text.len().saturating_mul(2))?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(out)
}
