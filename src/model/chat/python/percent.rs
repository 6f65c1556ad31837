//! `'%s of %d' % values`.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::super::budget::charge_text;
use super::{elements, is_dict, objects, str_of, text, type_name, wrong};

/// A placeholder, without its name and its kind.
#[derive(Default)]
struct Spec {
    left: bool,
    sign: bool,
    blank: bool,
    alternative: bool,
    zeros: bool,
    width: usize,
    precision: Option<usize>,
}

/// The values that are left.
struct Values<'a> {
    whole: &'a Value,
    left: std::vec::IntoIter<Value>,
    named: bool,
}

impl Values<'_> {
    fn next(&mut self) -> Result<Value, Error> {
        self.left
            .next()
            .ok_or_else(|| wrong("not enough arguments for format string"))
    }
}

/// Formats as Python's `%` does: a tuple has a value for each placeholder, a dictionary one for each
/// name, anything else is the one value.
///
/// # Errors
/// Python's.
pub(super) fn format(format: &str, values: &Value) -> Result<String, Error> {
    let given = match objects::is_tuple(values) {
        true => elements(values)?,
        false => vec![values.clone()],
    };
    let mut values = Values {
        whole: values,
        left: given.into_iter(),
        named: false,
    };
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let named = match chars.peek() {
            Some('(') => {
                let name: String = chars.by_ref().skip(1).take_while(|c| *c != ')').collect();
                Some(by_name(&mut values, &name)?)
            }
            _ => None,
        };
        let spec = read(&mut chars, &mut values)?;
        let kind = chars.next().ok_or_else(|| wrong("incomplete format"))?;
        let body = match kind {
            '%' => "%".to_owned(),
            kind => {
                let value = match named {
                    Some(value) => value,
                    None => values.next()?,
                };
                convert(kind, &spec, &value)?
            }
        };
        charge_text(out.len().max(spec.width).saturating_add(body.len()))?;
        pad(&mut out, &body, &spec, kind);
    }
    let may_be_left = values.named || is_dict(values.whole);
    if values.left.next().is_some() && !may_be_left {
        return Err(wrong(
            "not all arguments converted during string formatting",
        ));
    }
    Ok(out)
}

fn by_name(values: &mut Values<'_>, name: &str) -> Result<Value, Error> {
    if !is_dict(values.whole) {
        return Err(wrong("format requires a mapping"));
    }
    values.named = true;
    let value = values.whole.get_item(&Value::from(name))?;
    match value.is_undefined() {
        true => Err(wrong(format!("'{name}'"))),
        false => Ok(value),
    }
}

fn read(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    values: &mut Values<'_>,
) -> Result<Spec, Error> {
    let mut spec = Spec::default();
    while let Some(flag) = chars.next_if(|c| "-+ #0".contains(*c)) {
        match flag {
            '-' => spec.left = true,
            '+' => spec.sign = true,
            ' ' => spec.blank = true,
            '#' => spec.alternative = true,
            _ => spec.zeros = true,
        }
    }
    if let Some(width) = number(chars, values)? {
        spec.left |= width < 0;
        spec.width = width.unsigned_abs() as usize;
    }
    if chars.next_if_eq(&'.').is_some() {
        let precision = number(chars, values)?.unwrap_or(0);
        spec.precision = Some(usize::try_from(precision).unwrap_or(0));
        // A precision makes text of that length, too.
        charge_text(spec.precision.unwrap_or(0))?;
    }
    while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
    charge_text(spec.width)?;
    Ok(spec)
}

/// A width or a precision: digits, or `*` for the next value.
fn number(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    values: &mut Values<'_>,
) -> Result<Option<i64>, Error> {
    if chars.next_if_eq(&'*').is_some() {
        let value = values.next()?;
        return match value.is_integer() {
            true => super::arguments::whole(&value).map(Some),
            false => Err(wrong("* wants int")),
        };
    }
    let mut number = None;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        let digit = i64::from(digit as u32 - '0' as u32);
        number = Some(
            number
                .unwrap_or(0i64)
                .saturating_mul(10)
                .saturating_add(digit),
        );
    }
    Ok(number)
}

fn convert(kind: char, spec: &Spec, value: &Value) -> Result<String, Error> {
    match kind {
        's' | 'r' | 'a' => {
            let text = match kind {
                's' => str_of(value)?,
                _ => text::repr(value)?,
            };
            Ok(match spec.precision {
                Some(most) => text.chars().take(most).collect(),
                None => text,
            })
        }
        'c' => match value.as_str() {
            Some(text) if text.chars().count() == 1 => Ok(text.to_owned()),
            _ => u32::try_from(value.clone())
                .ok()
                .and_then(char::from_u32)
                .map(String::from)
                .ok_or_else(|| wrong("%c requires int or char")),
        },
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => whole(kind, spec, value),
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
            let number = float_of(value)?;
            let text = float(kind, spec, number.abs());
            Ok(signed(number.is_sign_negative(), spec, text))
        }
        other => Err(wrong(format!(
            "unsupported format character '{other}' (0x{:x})",
            other as u32
        ))),
    }
}

fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

fn whole(kind: char, spec: &Spec, value: &Value) -> Result<String, Error> {
    let must_be_whole = !matches!(kind, 'd' | 'i' | 'u');
    if !is_number(value) || (must_be_whole && !value.is_integer()) {
        let wanted = if must_be_whole {
            "an integer"
        } else {
            "a real number"
        };
        return Err(wrong(format!(
            "%{kind} format: {wanted} is required, not {}",
            type_name(value)
        )));
    }
    let number = match i128::try_from(value.clone()) {
        Ok(number) => number,
        Err(_) => f64::try_from(value.clone())?.trunc() as i128,
    };
    let size = number.unsigned_abs();
    let digits = match kind {
        'x' => format!("{size:x}"),
        'X' => format!("{size:X}"),
        'o' => format!("{size:o}"),
        _ => size.to_string(),
    };
    let missing = spec.precision.unwrap_or(0).saturating_sub(digits.len());
    let prefix = match kind {
        'x' if spec.alternative => "0x",
        'X' if spec.alternative => "0X",
        'o' if spec.alternative => "0o",
        _ => "",
    };
    let text = format!("{prefix}{}{digits}", "0".repeat(missing));
    Ok(signed(number < 0, spec, text))
}

fn signed(negative: bool, spec: &Spec, text: String) -> String {
    let sign = match (negative, spec.sign, spec.blank) {
        (true, ..) => "-",
        (false, true, _) => "+",
        (false, false, true) => " ",
        _ => "",
    };
    format!("{sign}{text}")
}

fn float_of(value: &Value) -> Result<f64, Error> {
    match is_number(value) {
        true if value.kind() == ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
        true => {
            f64::try_from(value.clone()).map_err(|_| wrong("int too large to convert to float"))
        }
        false => Err(wrong(format!(
            "must be real number, not {}",
            type_name(value)
        ))),
    }
}

fn float(kind: char, spec: &Spec, number: f64) -> String {
    if !number.is_finite() {
        let name = if number.is_nan() { "nan" } else { "inf" };
        return if kind.is_uppercase() {
            name.to_uppercase()
        } else {
            name.to_owned()
        };
    }
    // More digits than a double has are zeros.
    let precision = spec.precision.unwrap_or(6).min(1100);
    let text = match kind.to_ascii_lowercase() {
        'f' => format!("{number:.precision$}"),
        'e' => exponent(&format!("{number:.precision$e}")),
        _ => general(number, precision.max(1), spec.alternative),
    };
    if kind.is_uppercase() {
        text.to_uppercase()
    } else {
        text
    }
}

/// `1.5e7` as `1.5e+07`.
fn exponent(scientific: &str) -> String {
    let (digits, power) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    let sign = if power < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", power.abs())
}

fn general(number: f64, precision: usize, keeps_zeros: bool) -> String {
    let scientific = format!("{number:.*e}", precision - 1);
    let power: i32 = scientific
        .split_once('e')
        .and_then(|(_, power)| power.parse().ok())
        .unwrap_or(0);
    let trimmed = |text: &str| match text.contains('.') && !keeps_zeros {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        return exponent(&format!("{}e{power}", trimmed(digits)));
    }
    let decimals = (precision as i32 - 1 - power).max(0) as usize;
    trimmed(&format!("{number:.decimals$}"))
}

fn pad(out: &mut String, body: &str, spec: &Spec, kind: char) {
    let missing = spec.width.saturating_sub(body.chars().count());
    let is_numeric = !matches!(kind, 's' | 'r' | 'a' | 'c' | '%');
    if spec.left {
        out.push_str(body);
        out.push_str(&" ".repeat(missing));
    } else if spec.zeros && is_numeric {
        let signs = body.len() - body.trim_start_matches(['-', '+', ' ']).len();
        out.push_str(&body[..signs]);
        out.push_str(&"0".repeat(missing));
        out.push_str(&body[signs..]);
    } else {
        out.push_str(&" ".repeat(missing));
        out.push_str(body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_as_python_fills_them() {
        let values = |json: serde_json::Value| match json {
            serde_json::Value::Array(items) => {
                objects::tuple(items.iter().map(Value::from_serialize).collect())
            }
            other => Value::from_serialize(&other),
        };
        let cases = [
            (
                "%s-%03d|%5s|%-5s|",
                serde_json::json!(["a", 7, "x", "y"]),
                "a-007|    x|y    |",
            ),
            ("%s", serde_json::json!(null), "None"),
            ("%r %5.1f%%", serde_json::json!(["a", 2.25]), "'a'   2.2%"),
            (
                "%(a)s %(b)d",
                serde_json::json!({"a": [1], "b": 2.9}),
                "[1] 2",
            ),
            (
                "%x %#X %o %e %g %g",
                serde_json::json!([255, 255, 8, 12345.678, 0.0001, 1e20]),
                "ff 0XFF 10 1.234568e+04 0.0001 1e+20",
            ),
            (
                "%*d %+d % d %05d",
                serde_json::json!([4, 1, 2, 3, -4]),
                "   1 +2  3 -0004",
            ),
            ("%.2s", serde_json::json!("abc"), "ab"),
        ];
        for (text, given, expected) in cases {
            assert_eq!(format(text, &values(given)).unwrap(), expected, "{text}");
        }
        let errors = [
            ("%s %s", serde_json::json!("a"), "not enough arguments"),
            (
                "%s",
                serde_json::json!(["a", "b"]),
                "not all arguments converted",
            ),
            (
                "%d",
                serde_json::json!("a"),
                "a real number is required, not str",
            ),
            (
                "%y",
                serde_json::json!(1),
                "unsupported format character 'y'",
            ),
        ];
        for (text, given, expected) in errors {
            let error = format(text, &values(given)).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
