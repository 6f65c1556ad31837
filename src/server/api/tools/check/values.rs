//! What schemas say of single values. Pure.

use serde_json::{Map, Number, Value};

/// Most digits that are moved over a decimal point; beyond, numbers are compared as floating-point ones.
const DIGITS: i32 = 30;

/// Whether a value is of one of the types.
pub(super) fn type_matches(kind: &Value, value: &Value) -> bool {
    match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| type_matches(kind, value)),
        kind => match (kind.as_str(), value) {
            (Some("null"), Value::Null)
            | (Some("boolean"), Value::Bool(_))
            | (Some("string"), Value::String(_))
            | (Some("array"), Value::Array(_))
            | (Some("object"), Value::Object(_))
            | (Some("number"), Value::Number(_)) => true,
            (Some("integer"), Value::Number(number)) => {
                !number.is_f64() || number.as_f64().is_some_and(|n| n.fract() == 0.0)
            }
            _ => false,
        },
    }
}

/// Whether two values are equal: `1` and `1.0` are.
pub(in super::super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || (a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64()
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same = |(name, a): (&String, &Value)| b.get(name).is_some_and(|b| equal(a, b));
            a.len() == b.len() && a.iter().all(same)
        }
        (a, b) => a == b,
    }
}

/// A limit that a value exceeds, or a name that it lacks.
pub(super) fn broken_limit(object: &Map<String, Value>, value: &Value) -> Option<&'static str> {
    match value {
        Value::Number(number) => broken_bound(object, number),
        Value::String(text) => {
            let length = || text.chars().count();
            broken_size(object, ["minLength", "maxLength"], length)
        }
        Value::Array(items) => broken_size(object, ["minItems", "maxItems"], || items.len()),
        Value::Object(fields) => {
            let sizes = ["minProperties", "maxProperties"];
            broken_size(object, sizes, || fields.len()).or_else(|| missing(object, fields))
        }
        Value::Null | Value::Bool(_) => None,
    }
}

fn broken_size(
    object: &Map<String, Value>,
    [least, most]: [&'static str; 2],
    size: impl Fn() -> usize,
) -> Option<&'static str> {
    let limit = |key: &str| object.get(key).and_then(Value::as_f64);
    if limit(least).is_some_and(|limit| (size() as f64) < limit) {
        return Some(least);
    }
    let above = limit(most).is_some_and(|limit| size() as f64 > limit);
    above.then_some(most)
}

/// A keyword by which a name is required that the object lacks.
fn missing(object: &Map<String, Value>, fields: &Map<String, Value>) -> Option<&'static str> {
    let lacks = |names: &Value| {
        let names = names.as_array().into_iter().flatten();
        names
            .filter_map(Value::as_str)
            .any(|name| !fields.contains_key(name))
    };
    if object.get("required").is_some_and(lacks) {
        return Some("required");
    }
    ["dependentRequired", "dependencies"]
        .into_iter()
        .find(|keyword| {
            let depending = object.get(*keyword).and_then(Value::as_object);
            let mut present = depending.into_iter().flatten();
            present.any(|(name, names)| fields.contains_key(name) && lacks(names))
        })
}

fn broken_bound(object: &Map<String, Value>, number: &Number) -> Option<&'static str> {
    let value = number.as_f64()?;
    let bound = |key: &str| object.get(key).and_then(Value::as_f64);
    // Draft 4 has `true` next to the bound.
    let exclusive = |key: &str, inclusive: &str| match object.get(key) {
        Some(Value::Bool(true)) => bound(inclusive),
        _ => bound(key),
    };
    if bound("minimum").is_some_and(|least| value < least) {
        return Some("minimum");
    }
    if bound("maximum").is_some_and(|most| value > most) {
        return Some("maximum");
    }
    if exclusive("exclusiveMinimum", "minimum").is_some_and(|least| value <= least) {
        return Some("exclusiveMinimum");
    }
    if exclusive("exclusiveMaximum", "maximum").is_some_and(|most| value >= most) {
        return Some("exclusiveMaximum");
    }
    match object.get("multipleOf") {
        Some(Value::Number(step)) if !is_multiple(number, step) => Some("multipleOf"),
        _ => None,
    }
}

/// Whether a number is a multiple of a step, exactly where they have few digits.
fn is_multiple(number: &Number, step: &Number) -> bool {
    if let (Some((a, a_scale)), Some((b, b_scale))) = (decimal(number), decimal(step)) {
        let scale = a_scale.max(b_scale);
        let scaled = |digits: i128, by: i32| digits.checked_mul(10i128.checked_pow(by as u32)?);
        if let (Some(a), Some(b)) = (scaled(a, scale - a_scale), scaled(b, scale - b_scale)) {
            return b != 0 && a % b == 0;
        }
    }
    let (a, b) = (number.as_f64(), step.as_f64());
    a.zip(b).is_some_and(|(a, b)| (a / b).fract() == 0.0)
}

/// Digits, and how many of them are behind the decimal point.
fn decimal(number: &Number) -> Option<(i128, i32)> {
    let text = number.to_string();
    let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((&text, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = i32::try_from(fraction.len()).ok()? - exponent.parse::<i32>().ok()?;
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    if scale >= 0 {
        return (scale <= DIGITS).then_some((digits, scale));
    }
    let power = (-scale <= DIGITS).then(|| 10i128.checked_pow(scale.unsigned_abs()))?;
    Some((digits.checked_mul(power?)?, 0))
}
