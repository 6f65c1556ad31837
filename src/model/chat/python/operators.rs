//! Operators and look-ups, called by the instructions that stand for minijinja's.

use std::cmp::Ordering;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Value};

use super::super::budget::{charge, charge_list, charge_text, check};
use super::arguments::whole;
use super::arithmetic::{Number, arithmetic, negate, unsupported};
use super::slices::slice;
use super::{
    Method, elements, is_dict, is_list, markup, not_iterable, objects, percent, text_of, type_name,
    undefined, wrong,
};

// These names are none that a template can write.
pub(in super::super) const ADD: &str = "realign +";
pub(in super::super) const SUBTRACT: &str = "realign -";
pub(in super::super) const MULTIPLY: &str = "realign *";
pub(in super::super) const DIVIDE: &str = "realign /";
pub(in super::super) const FLOOR_DIVIDE: &str = "realign //";
pub(in super::super) const REMAINDER: &str = "realign %";
pub(in super::super) const POWER: &str = "realign **";
pub(in super::super) const NEGATE: &str = "realign negate";
pub(in super::super) const CONCAT: &str = "realign ~";
pub(in super::super) const EQUAL: &str = "realign ==";
pub(in super::super) const NOT_EQUAL: &str = "realign !=";
/// `<`, `<=`, `>`, `>=`.
pub(in super::super) const COMPARE: [&str; 4] =
    ["realign <", "realign <=", "realign >", "realign >="];
pub(in super::super) const CONTAINS: &str = "realign in";
pub(in super::super) const SLICE: &str = "realign slice";
/// `value.name` where dictionaries have a method of that name.
pub(in super::super) const ATTRIBUTE: &str = "realign attribute";
/// `value[key]`.
pub(in super::super) const ITEM: &str = "realign item";
/// What a loop runs over.
pub(in super::super) const ITERATE: &str = "realign iterate";

pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_function(ADD, add);
    environment.add_function(SUBTRACT, |a: Value, b: Value| arithmetic("-", &a, &b));
    environment.add_function(MULTIPLY, multiply);
    environment.add_function(DIVIDE, |a: Value, b: Value| arithmetic("/", &a, &b));
    environment.add_function(FLOOR_DIVIDE, |a: Value, b: Value| arithmetic("//", &a, &b));
    environment.add_function(REMAINDER, remainder);
    environment.add_function(POWER, |a: Value, b: Value| arithmetic("**", &a, &b));
    environment.add_function(NEGATE, negate);
    environment.add_function(CONCAT, concat);
    environment.add_function(EQUAL, |a: Value, b: Value| equal(&a, &b));
    environment.add_function(NOT_EQUAL, |a: Value, b: Value| Ok(!equal(&a, &b)?));
    environment.add_function(COMPARE[0], |a: Value, b: Value| holds("<", &a, &b));
    environment.add_function(COMPARE[1], |a: Value, b: Value| holds("<=", &a, &b));
    environment.add_function(COMPARE[2], |a: Value, b: Value| holds(">", &a, &b));
    environment.add_function(COMPARE[3], |a: Value, b: Value| holds(">=", &a, &b));
    environment.add_function(CONTAINS, |value: Value, container: Value| {
        contains(&value, &container)
    });
    environment.add_function(SLICE, slice);
    environment.add_function(ATTRIBUTE, attribute);
    environment.add_function(ITEM, item);
    environment.add_function(ITERATE, iterate);
}

fn add(a: Value, b: Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        charge_text(x.len() + y.len())?;
        return match a.is_safe() || b.is_safe() {
            true => markup::joined(&a, &b),
            false => Ok(Value::from([x, y].concat())),
        };
    }
    let sum = match (is_list(&a), is_list(&b)) {
        (true, true) if objects::is_tuple(&a) == objects::is_tuple(&b) => {
            let (x, y) = (a.len().unwrap_or(0), b.len().unwrap_or(0));
            charge_list(x.saturating_add(y))?;
            let items: Vec<Value> = a.try_iter()?.chain(b.try_iter()?).collect();
            match objects::is_tuple(&a) {
                true => objects::tuple(items),
                false => Value::from(items),
            }
        }
        _ if b.is_undefined() || a.is_undefined() => return Err(unsupported("+", &a, &b)),
        (true, _) => return Err(only_joins(&a, &b)),
        _ if a.as_str().is_some() => return Err(only_joins(&a, &b)),
        _ => return arithmetic("+", &a, &b),
    };
    check(&sum, false)?;
    Ok(sum)
}

fn only_joins(a: &Value, b: &Value) -> Error {
    let (kind, other) = (type_name(a), type_name(b));
    wrong(format!(
        "can only concatenate {kind} (not \"{other}\") to {kind}"
    ))
}

/// Numbers, and repeated texts and lists.
fn multiply(a: Value, b: Value) -> Result<Value, Error> {
    let repeats = |value: &Value| value.as_str().is_some() || is_list(value);
    match (repeats(&a), repeats(&b)) {
        (true, false) if Number::of(&b).is_some() => repeat(&a, &b),
        (false, true) if Number::of(&a).is_some() => repeat(&b, &a),
        (true, _) if !b.is_undefined() => Err(no_times(&b)),
        _ => arithmetic("*", &a, &b),
    }
}

fn repeat(value: &Value, times: &Value) -> Result<Value, Error> {
    let times = whole(times).map_err(|_| no_times(times))?;
    let times = usize::try_from(times).unwrap_or(0);
    if let Some(text) = value.as_str() {
        charge_text(text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    let length = value.len().unwrap_or(0);
    charge_list(length.saturating_mul(times))?;
    let items: Vec<Value> = value.try_iter()?.collect();
    let repeated = (0..times).flat_map(|_| items.iter().cloned());
    Ok(Value::from(repeated.collect::<Vec<Value>>()))
}

fn no_times(times: &Value) -> Error {
    let kind = type_name(times);
    wrong(format!(
        "can't multiply sequence by non-int of type '{kind}'"
    ))
}

fn remainder(a: Value, b: Value) -> Result<Value, Error> {
    match a.as_str() {
        Some(format) => percent::format(format, &b).map(Value::from),
        None => arithmetic("%", &a, &b),
    }
}

fn concat(a: Value, b: Value) -> Result<Value, Error> {
    // Only `+` knows texts that are safe.
    let (a, b) = (text_of(&a)?, text_of(&b)?);
    charge_text(a.len() + b.len())?;
    Ok(Value::from([a, b].concat()))
}

fn equal(a: &Value, b: &Value) -> Result<bool, Error> {
    charge(1, 0)?;
    if is_list(a) || is_dict(a) {
        check(a, false)?;
        check(b, false)?;
    }
    Ok(a == b && (!is_list(a) || objects::is_tuple(a) == objects::is_tuple(b)))
}

/// Whether `a < b`, or another comparison.
///
/// # Errors
/// For values without an order.
pub(super) fn holds(operator: &str, a: &Value, b: &Value) -> Result<bool, Error> {
    // What is no number is neither less nor greater.
    Ok(order(operator, a, b)?.is_some_and(|order| match operator {
        "<" => order.is_lt(),
        "<=" => order.is_le(),
        ">" => order.is_gt(),
        _ => order.is_ge(),
    }))
}

fn order(operator: &str, a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    charge(1, 0)?;
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        return Ok(Some(x.cmp(y)));
    }
    match (Number::of(a), Number::of(b)) {
        (Some(Number::Whole(x)), Some(Number::Whole(y))) => return Ok(Some(x.cmp(&y))),
        (Some(x), Some(y)) => return Ok(x.float().partial_cmp(&y.float())),
        _ => {}
    }
    if is_list(a) && is_list(b) {
        for (x, y) in elements(a)?.iter().zip(elements(b)?.iter()) {
            if !equal(x, y)? {
                return order(operator, x, y);
            }
        }
        return Ok(Some(a.len().cmp(&b.len())));
    }
    if b.is_undefined() {
        return Err(undefined(0));
    }
    if a.is_undefined() {
        return Err(undefined(1));
    }
    Err(wrong(format!(
        "'{operator}' not supported between instances of '{}' and '{}'",
        type_name(a),
        type_name(b)
    )))
}

pub(super) fn contains(value: &Value, container: &Value) -> Result<bool, Error> {
    charge(container.len().unwrap_or(0) as u64, 0)?;
    if let Some(text) = container.as_str() {
        let kind = type_name(value);
        let part = value.as_str().ok_or_else(|| {
            wrong(format!(
                "'in <string>' requires string as left operand, not {kind}"
            ))
        })?;
        return Ok(text.contains(part));
    }
    if container.is_undefined() {
        return Ok(false);
    }
    if is_dict(container) {
        let entries = container.as_object();
        return Ok(entries.is_some_and(|entries| entries.get_value(value).is_some()));
    }
    if is_list(container) || objects::is_generator(container) {
        for item in elements(container)? {
            if equal(&item, value)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    let kind = type_name(container);
    Err(wrong(format!("argument of type '{kind}' is not iterable")))
}

fn attribute(value: Value, name: Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined(0));
    }
    let key = name.as_str().unwrap_or_default();
    match Method::of(&value, key) {
        Some(method) => Ok(method),
        None => Ok(value.get_attr(key).unwrap_or_default()),
    }
}

fn item(value: Value, key: Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined(1));
    }
    let found = value.get_item(&key).unwrap_or_default();
    match key.as_str() {
        Some(name) if found.is_undefined() => Ok(Method::of(&value, name).unwrap_or_default()),
        _ => Ok(found),
    }
}

/// What a loop runs over: a list, a dictionary or a text as it is, a generator's elements.
fn iterate(value: Value) -> Result<Value, Error> {
    if let Some(items) = objects::exhaust(&value) {
        return Ok(Value::from(items));
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::String => Ok(value),
        ValueKind::Seq | ValueKind::Iterable => Ok(value),
        ValueKind::Map if is_dict(&value) => Ok(value),
        _ => Err(not_iterable(&value)),
    }
}
