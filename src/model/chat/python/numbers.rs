//! Filters of numbers, and the function `range`.

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, Value};

use super::super::budget::{charge_list, exceeded};
use super::arguments::bind;
use super::{type_name, undefined, wrong};

/// Most elements of a range, as in Jinja2's sandbox.
const MAX_RANGE: u64 = 100_000;

pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_filter("int", to_int);
    environment.add_filter("float", to_float);
    environment.add_filter("round", round);
    environment.add_filter("abs", abs);
    environment.add_function("range", range);
}

fn to_int(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("int", &rest, ["default", "base"])?;
    let otherwise = || given.any(0).cloned().unwrap_or(Value::from(0));
    let number = match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => return Ok(value),
        ValueKind::Number => f64::try_from(value)
            .ok()
            .filter(|number| number.is_finite())
            .map(|number| number.trunc() as i128),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim().replace('_', "");
            let base = given.whole(1)?.unwrap_or(10);
            let base = u32::try_from(base)
                .ok()
                .filter(|base| (2..=36).contains(base));
            let digits = match base {
                Some(16) => text.trim_start_matches("0x").trim_start_matches("0X"),
                Some(8) => text.trim_start_matches("0o"),
                Some(2) => text.trim_start_matches("0b"),
                _ => &text,
            };
            let whole = base.and_then(|base| i128::from_str_radix(digits, base).ok());
            let float = || text.parse::<f64>().ok().filter(|number| number.is_finite());
            whole.or_else(|| float().map(|number| number.trunc() as i128))
        }
        _ => None,
    };
    Ok(match number {
        Some(number) => i64::try_from(number).map_or_else(|_| Value::from(number), Value::from),
        None => otherwise(),
    })
}

fn to_float(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("float", &rest, ["default"])?;
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value).ok(),
        ValueKind::String => value.as_str().and_then(|text| text.trim().parse().ok()),
        _ => None,
    };
    let otherwise = || given.any(0).cloned().unwrap_or(Value::from(0.0));
    Ok(number.map_or_else(otherwise, Value::from))
}

fn round(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("round", &rest, ["precision", "method"])?;
    if value.is_undefined() {
        return Err(undefined(rest.len()));
    }
    let places = given.whole(0)?.unwrap_or(0).clamp(-400, 400) as i32;
    let method = given.text(1)?.unwrap_or_else(|| "common".to_owned());
    let number = f64::try_from(value.clone()).map_err(|_| {
        let kind = type_name(&value);
        wrong(format!("type {kind} doesn't define __round__ method"))
    })?;
    let scale = 10f64.powi(places);
    let rounded = match method.as_str() {
        "ceil" => (number * scale).ceil() / scale,
        "floor" => (number * scale).floor() / scale,
        "common" if value.is_integer() && places >= 0 => return Ok(value),
        // Halves go to the even neighbour of the exact value, which is how numbers are written.
        "common" if places >= 0 => {
            let places = places.min(330) as usize;
            format!("{number:.places$}").parse().unwrap_or(number)
        }
        "common" => (number * scale).round_ties_even() / scale,
        _ => return Err(wrong("method must be common, ceil or floor")),
    };
    Ok(match value.is_integer() && method == "common" {
        true => Value::from(rounded as i64),
        false => Value::from(rounded),
    })
}

fn abs(value: Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined(0));
    }
    if let Ok(number) = i128::try_from(value.clone())
        && (value.is_integer() || value.kind() == ValueKind::Bool)
    {
        let size = number.unsigned_abs();
        return Ok(i64::try_from(size).map_or_else(|_| Value::from(size), Value::from));
    }
    let kind = type_name(&value);
    let number =
        f64::try_from(value).map_err(|_| wrong(format!("bad operand type for abs(): '{kind}'")))?;
    Ok(Value::from(number.abs()))
}

fn range(rest: Rest<Value>) -> Result<Value, Error> {
    let numbers = rest.iter().map(super::arguments::whole);
    let numbers = numbers.collect::<Result<Vec<i64>, Error>>()?;
    let (start, stop, step) = match numbers.as_slice() {
        [stop] => (0, *stop, 1),
        [start, stop] => (*start, *stop, 1),
        [start, stop, step] => (*start, *stop, *step),
        _ => {
            let given = numbers.len();
            return Err(wrong(format!(
                "range expected 1 to 3 arguments, got {given}"
            )));
        }
    };
    let length = match step {
        0 => return Err(wrong("range() arg 3 must not be zero")),
        1.. if stop > start => stop.abs_diff(start).div_ceil(step.unsigned_abs()),
        ..=-1 if stop < start => start.abs_diff(stop).div_ceil(step.unsigned_abs()),
        _ => 0,
    };
    if length > MAX_RANGE {
        return Err(exceeded(format!(
            "makes a range of more than {MAX_RANGE} elements"
        )));
    }
    charge_list(length as usize)?;
    let items =
        (0..length as i64).map(|i| Value::from(start.saturating_add(step.saturating_mul(i))));
    Ok(Value::from(items.collect::<Vec<_>>()))
}
