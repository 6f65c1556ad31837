//! `'{} of {name:>5}'.format(values)`.

use minijinja::value::{Kwargs, from_args};
use minijinja::{Error, Value};

use super::super::budget::charge_text;
use super::{percent, str_of, text, type_name, wrong};

/// Formats as `str.format` does.
///
/// # Errors
/// Python's; attributes and indices inside of a field are not supported.
pub(super) fn format(format: &str, given: &[Value]) -> Result<Value, Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(given)?;
    let mut out = String::new();
    let mut next = 0;
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err(wrong("Single '}' encountered in format string"));
        }
        let (field, after) = rest
            .split_once('}')
            .ok_or_else(|| wrong("expected '}' before end of string"))?;
        rest = after;
        let (head, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = head.split_once('!').unwrap_or((head, ""));
        let value = match (name, name.parse::<usize>()) {
            ("", _) => {
                next += 1;
                positional.get(next - 1).cloned()
            }
            (_, Ok(place)) => positional.get(place).cloned(),
            (name, Err(_)) => named.peek::<Option<Value>>(name)?,
        };
        let value =
            value.ok_or_else(|| match name.parse::<usize>().is_ok() || name.is_empty() {
                true => wrong("Replacement index is out of range for positional args tuple"),
                false => wrong(format!("'{name}'")),
            })?;
        let value = match conversion {
            "r" | "a" => Value::from(text::repr(&value)?),
            "s" => Value::from(str_of(&value)?),
            _ => value,
        };
        let filled = filled(&value, spec)?;
        charge_text(out.len().saturating_add(filled.len()))?;
        out.push_str(&filled);
    }
    out.push_str(rest);
    Ok(Value::from(out))
}

/// A value by a format specification: `[[fill]align][sign][#][0][width][,][.precision][type]`.
fn filled(value: &Value, spec: &str) -> Result<String, Error> {
    if spec.is_empty() {
        return str_of(value);
    }
    let is_number = matches!(type_name(value), "int" | "float");
    let chars: Vec<char> = spec.chars().collect();
    let is_align = |at: usize| chars.get(at).filter(|c| "<>^=".contains(**c)).copied();
    let (fill, align, from) = match (is_align(1), is_align(0)) {
        (Some(align), _) => (chars[0], Some(align), 2),
        (None, Some(align)) => (' ', Some(align), 1),
        (None, None) => (' ', None, 0),
    };
    let rest: String = chars[from..].iter().collect();
    let signs = rest.len() - rest.trim_start_matches(['+', '-', ' ', '#']).len();
    let (flags, rest) = rest.split_at(signs);
    let zeros = rest.starts_with('0') && align.is_none();
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (width, rest) = rest.split_at(digits);
    let width: usize = width
        .parse()
        .unwrap_or(if digits == 0 { 0 } else { usize::MAX });
    charge_text(width)?;
    let (groups, rest) = match rest.strip_prefix(',') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let kind = match rest.chars().last().filter(char::is_ascii_alphabetic) {
        Some(kind) => kind.to_string(),
        None if type_name(value) == "float" && rest.is_empty() => String::new(),
        None if type_name(value) == "float" => "g".to_owned(),
        None if is_number => "d".to_owned(),
        None => "s".to_owned(),
    };
    let precision = rest.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let flags = flags.replace('-', "");
    let body = match kind.as_str() {
        "" => str_of(value)?,
        kind => percent::format(
            &format!("%{flags}{precision}{kind}"),
            &super::objects::tuple(vec![value.clone()]),
        )?,
    };
    let body = if groups { grouped(&body) } else { body };
    let missing = width.saturating_sub(body.chars().count());
    let (fill, align) = match (zeros, align) {
        (true, _) => ('0', '='),
        (false, Some(align)) => (fill, align),
        (false, None) => (fill, if is_number { '>' } else { '<' }),
    };
    let sign = body.len() - body.trim_start_matches(['-', '+', ' ']).len();
    let (before, start) = match align {
        '<' => (0, 0),
        '^' => (missing / 2, 0),
        '=' => (missing, sign),
        _ => (missing, 0),
    };
    let fill = fill.to_string();
    Ok(format!(
        "{}{}{}{}",
        &body[..start],
        fill.repeat(before),
        &body[start..],
        fill.repeat(missing - before)
    ))
}

/// A number with a comma before every third digit from its end.
fn grouped(number: &str) -> String {
    let (whole, rest) = number.split_at(number.find('.').unwrap_or(number.len()));
    let digits = whole.trim_start_matches(['-', '+', ' ']);
    let sign = &whole[..whole.len() - digits.len()];
    let mut out = sign.to_owned();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}
