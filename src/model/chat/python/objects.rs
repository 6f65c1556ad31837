//! Values that Python has and minijinja has not: tuples, generators, bound methods; and namespaces.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, State, Value};

use super::super::budget::charge;
use super::super::guarded::ASSIGN;
use super::{arguments, elements, is_dict, methods, type_name, wrong};

/// Registers `namespace`, `dict` and the assignment to attributes.
pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_function("namespace", namespace);
    environment.add_function("dict", dict);
    environment.add_function(ASSIGN, assign);
}

#[derive(Debug)]
struct Tuple(Vec<Value>);

impl Object for Tuple {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }
}

pub(super) fn tuple(items: Vec<Value>) -> Value {
    Value::from_object(Tuple(items))
}

pub(super) fn is_tuple(value: &Value) -> bool {
    value.downcast_object_ref::<Tuple>().is_some()
}

/// What `map`, `select` and their like give: true, without a length, and empty once it was read.
#[derive(Debug)]
struct Generator(Mutex<Vec<Value>>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

pub(super) fn generator(items: Vec<Value>) -> Value {
    Value::from_object(Generator(Mutex::new(items)))
}

pub(super) fn is_generator(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
}

/// What is left in a generator; `None` for other values.
pub(super) fn exhaust(value: &Value) -> Option<Vec<Value>> {
    let generator = value.downcast_object_ref::<Generator>()?;
    Some(std::mem::take(&mut *locked(&generator.0)))
}

/// The next element of a generator.
pub(super) fn advance(value: &Value) -> Option<Option<Value>> {
    let generator = value.downcast_object_ref::<Generator>()?;
    let mut left = locked(&generator.0);
    Some((!left.is_empty()).then(|| left.remove(0)))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A method of a value, not called yet: `param.items` of a dictionary, whatever its keys are.
#[derive(Debug)]
pub(in super::super) struct Method {
    receiver: Value,
    name: String,
}

/// The methods of dictionaries that change nothing.
const SAFE: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
/// Those that change them: the sandbox gives an undefined value.
const UNSAFE: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

impl Method {
    /// Whether dictionaries have a method of that name.
    pub(in super::super) fn is_name(name: &str) -> bool {
        SAFE.contains(&name) || UNSAFE.contains(&name)
    }

    /// The method of a dictionary; `None` if it has none of that name.
    pub(super) fn of(receiver: &Value, name: &str) -> Option<Value> {
        if !is_dict(receiver) {
            return None;
        }
        if UNSAFE.contains(&name) {
            return Some(Value::UNDEFINED);
        }
        SAFE.contains(&name).then(|| {
            Value::from_object(Self {
                receiver: receiver.clone(),
                name: name.to_owned(),
            })
        })
    }

    pub(super) fn describe(&self, out: &mut String) {
        let owner = type_name(&self.receiver);
        out.push_str(&format!(
            "<built-in method {} of {owner} object>",
            self.name
        ));
    }
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        methods::call(state, &self.receiver, &self.name, args)
    }
}

/// What `namespace()` makes: names that a template may assign to.
#[derive(Debug, Default)]
struct Names(Mutex<BTreeMap<Value, Value>>);

impl Object for Names {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        locked(&self.0).get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(locked(&self.0).keys().cloned().collect())
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

pub(super) fn is_namespace(value: &Value) -> bool {
    value.downcast_object_ref::<Names>().is_some()
}

fn check_name(name: &Value) -> Result<(), Error> {
    match name.as_str() {
        Some(name) if name.starts_with('_') => Err(wrong(format!(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got \
             '{name}'. Please rename the attribute."
        ))),
        _ => Ok(()),
    }
}

fn namespace(arguments: Rest<Value>) -> Result<Value, Error> {
    let entries = entries("namespace", &arguments)?;
    for (name, value) in &entries {
        check_name(name)?;
        refuse_namespace(value)?;
    }
    Ok(Value::from_object(Names(Mutex::new(
        entries.into_iter().collect(),
    ))))
}

fn dict(arguments: Rest<Value>) -> Result<Value, Error> {
    Ok(entries("dict", &arguments)?.into_iter().collect())
}

/// The arguments of `dict()`: a mapping or pairs, and keywords.
fn entries(function: &str, given: &[Value]) -> Result<Vec<(Value, Value)>, Error> {
    let (positional, keywords): (&[Value], Kwargs) = from_args(given)?;
    if positional.len() > 1 {
        let given = positional.len();
        return Err(wrong(format!(
            "{function} expected at most 1 argument, got {given}"
        )));
    }
    let mut entries = Vec::new();
    if let Some(from) = positional.first() {
        let is_map = from.kind() == ValueKind::Map;
        for item in if is_map {
            from.try_iter()?.collect()
        } else {
            elements(from)?
        } {
            if is_map {
                entries.push((item.clone(), from.get_item(&item)?));
            } else {
                let pair = elements(&item)?;
                let [key, value] = pair.as_slice() else {
                    return Err(wrong("dictionary update sequence element has no length 2"));
                };
                entries.push((key.clone(), value.clone()));
            }
        }
    }
    for key in keywords.args() {
        entries.push((Value::from(key), keywords.peek(key)?));
    }
    Ok(entries)
}

/// `{% set target.name = value %}`. A namespace inside itself would have no end when it is written
/// or compared.
fn assign(value: Value, target: Value, name: Value) -> Result<(), Error> {
    let Some(names) = target.downcast_object_ref::<Names>() else {
        return Err(wrong("cannot assign attribute on non-namespace object"));
    };
    check_name(&name)?;
    refuse_namespace(&value)?;
    locked(&names.0).insert(name, value);
    Ok(())
}

fn refuse_namespace(value: &Value) -> Result<(), Error> {
    match holds_names(value)? {
        true => Err(wrong("a namespace cannot be assigned to a namespace")),
        false => Ok(()),
    }
}

/// Whether there is a namespace in a value.
///
/// # Errors
/// If that takes more than the budget.
fn holds_names(value: &Value) -> Result<bool, Error> {
    if is_namespace(value) {
        return Ok(true);
    }
    if let Some(method) = value.downcast_object_ref::<Method>() {
        return holds_names(&method.receiver);
    }
    if let Some(generator) = value.downcast_object_ref::<Generator>() {
        let left = locked(&generator.0).clone();
        return left
            .iter()
            .try_fold(false, |found, v| Ok(found || holds_names(v)?));
    }
    let is_map = match value.kind() {
        ValueKind::Map => true,
        ValueKind::Seq | ValueKind::Iterable => false,
        _ => return Ok(false),
    };
    let Ok(items) = value.try_iter() else {
        return Ok(false);
    };
    for item in items {
        charge(1, 0)?;
        let inner = match is_map {
            true => value.get_item(&item)?,
            false => item,
        };
        if holds_names(&inner)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `d.fromkeys(keys, value)`.
pub(super) fn from_keys(given: &[Value]) -> Result<Value, Error> {
    let arguments = arguments::bind("fromkeys", given, ["iterable", "value"])?;
    let value = arguments.any(1).cloned().unwrap_or(Value::from(()));
    let keys = arguments
        .any(0)
        .map(elements)
        .transpose()?
        .unwrap_or_default();
    Ok(keys.into_iter().map(|key| (key, value.clone())).collect())
}
