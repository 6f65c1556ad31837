//! Methods of texts, lists and dictionaries.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::super::budget::{charge_list, check};
use super::arguments::bind;
use super::{braces, elements, is_dict, is_list, objects, strings, type_name, undefined, wrong};

/// Calls a method.
///
/// # Errors
/// Python's. [`ErrorKind::UnknownMethod`] if the type has no such method; minijinja then looks for
/// a value of that name.
pub(super) fn call(
    _state: &State<'_, '_>,
    receiver: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if receiver.is_undefined() {
        return Err(undefined(arguments.len()));
    }
    let found = match receiver.as_str() {
        Some(text) if name == "format" => Some(braces::format(text, arguments)?),
        Some(text) => strings::call(text, name, arguments)?,
        None if is_dict(receiver) => of_dict(receiver, name, arguments)?,
        None if is_list(receiver) => of_list(receiver, name, arguments)?,
        None => None,
    };
    found.ok_or_else(|| {
        let kind = type_name(receiver);
        let owner = match receiver.kind() {
            ValueKind::None => "'None'".to_owned(),
            _ => format!("'{kind} object'"),
        };
        let why = format!("{owner} has no attribute '{name}'");
        Error::new(ErrorKind::UnknownMethod, why)
    })
}

/// A method that changes its object: the sandbox has none.
fn is_unsafe(kind: &str, name: &str) -> Error {
    wrong(format!(
        "access to attribute '{name}' of '{kind}' object is unsafe."
    ))
}

fn of_dict(dict: &Value, name: &str, given: &[Value]) -> Result<Option<Value>, Error> {
    let value_of = |key: &Value| dict.get_item(key).unwrap_or_default();
    Ok(Some(match name {
        "get" => {
            let arguments = bind("get", given, ["key", "default"])?;
            let key = arguments
                .any(0)
                .ok_or_else(|| wrong("get expected at least 1 argument, got 0"))?;
            let found = dict.as_object().and_then(|entries| entries.get_value(key));
            let otherwise = arguments.any(1).cloned();
            found.or(otherwise).unwrap_or(Value::from(()))
        }
        "keys" => Value::from(elements(dict)?),
        "values" => Value::from(elements(dict)?.iter().map(value_of).collect::<Vec<_>>()),
        "items" => Value::from(pairs(dict)?),
        "copy" => {
            let entries = elements(dict)?.into_iter();
            entries.map(|key| (key.clone(), value_of(&key))).collect()
        }
        "fromkeys" => objects::from_keys(given)?,
        "clear" | "pop" | "popitem" | "setdefault" | "update" => {
            return Err(is_unsafe("dict", name));
        }
        _ => return Ok(None),
    }))
}

/// The entries of a dictionary as tuples.
pub(super) fn pairs(dict: &Value) -> Result<Vec<Value>, Error> {
    let keys = elements(dict)?;
    charge_list(keys.len())?;
    let pair = |key: Value| {
        let value = dict.get_item(&key).unwrap_or_default();
        objects::tuple(vec![key, value])
    };
    Ok(keys.into_iter().map(pair).collect())
}

fn of_list(list: &Value, name: &str, given: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "count" | "index" => {
            let arguments = bind(name, given, ["value"])?;
            let wanted = arguments.any(0).cloned().unwrap_or_default();
            check(list, false)?;
            let items = elements(list)?;
            if name == "count" {
                return Ok(Some(Value::from(
                    items.iter().filter(|v| **v == wanted).count(),
                )));
            }
            let place = items.iter().position(|v| *v == wanted);
            place.map(Value::from).ok_or_else(|| {
                let what = super::text::repr(&wanted).unwrap_or_default();
                wrong(format!("{what} is not in list"))
            })?
        }
        "copy" if !objects::is_tuple(list) => Value::from(elements(list)?),
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => {
            return Err(is_unsafe("list", name));
        }
        _ => return Ok(None),
    }))
}
