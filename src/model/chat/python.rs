//! Python's semantics for templates.
//!
//! Templates are written and tested with Jinja2, in the environment that `transformers` sets up.
//! minijinja reads the same language; what its values print, compare and do is close to Python's and
//! not the same. This module replaces what differs: operators and method calls by functions that the
//! instructions call ([`super::compiled`]), filters, tests and functions by their names.

mod arguments;
mod arithmetic;
mod braces;
mod filters;
mod json;
mod lists;
mod markup;
mod methods;
mod numbers;
mod objects;
mod operators;
mod percent;
mod slices;
mod sorting;
mod strings;
mod text;
mod type_tests;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};

pub(super) use objects::Method;
pub(super) use operators::{
    ADD, ATTRIBUTE, COMPARE, CONCAT, CONTAINS, DIVIDE, EQUAL, FLOOR_DIVIDE, ITEM, ITERATE,
    MULTIPLY, NEGATE, NOT_EQUAL, POWER, REMAINDER, SLICE, SUBTRACT,
};
pub(super) use text::{str_of, text_of};

/// A filter that gives its value back. Behind it an expression is no constant: minijinja computes
/// constants while it compiles, in its own way and without a budget.
pub(super) const SAME: &str = "realign_same";
/// A filter that makes a tuple of a list. minijinja reads `(1, 2)` as a list.
pub(super) const TUPLE: &str = "realign_tuple";

/// Registers everything.
pub(super) fn register(environment: &mut Environment<'static>) {
    operators::register(environment);
    objects::register(environment);
    filters::register(environment);
    lists::register(environment);
    sorting::register(environment);
    numbers::register(environment);
    json::register(environment);
    markup::register(environment);
    type_tests::register(environment);
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter(SAME, |value: Value| value);
    environment.add_filter(TUPLE, |value: Value| -> Result<Value, Error> {
        Ok(objects::tuple(elements(&value)?))
    });
}

/// An error whose message is Python's.
fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// An undefined value was used; `operand` counts the operation's operands from its last one. Which
/// name was undefined is told from the instructions, see [`super::compiled`].
fn undefined(operand: usize) -> Error {
    Error::new(ErrorKind::UndefinedError, operand.to_string())
}

/// The name of a value's type.
fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Bytes => "bytes",
        ValueKind::Seq if objects::is_tuple(value) => "tuple",
        ValueKind::Seq | ValueKind::Iterable => "list",
        ValueKind::Map if objects::is_namespace(value) => "Namespace",
        ValueKind::Map => "dict",
        _ if objects::is_generator(value) => "generator",
        _ if value.downcast_object_ref::<Method>().is_some() => "builtin_function_or_method",
        _ => "function",
    }
}

/// Whether the value is a dictionary.
fn is_dict(value: &Value) -> bool {
    value.kind() == ValueKind::Map && !objects::is_namespace(value)
}

/// Whether the value is a list or a tuple.
fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// What iterating over a value gives; a generator is used up by it.
fn elements(value: &Value) -> Result<Vec<Value>, Error> {
    if let Some(elements) = objects::exhaust(value) {
        return Ok(elements);
    }
    match value.kind() {
        ValueKind::Undefined => Ok(Vec::new()),
        ValueKind::String | ValueKind::Seq | ValueKind::Iterable => Ok(value.try_iter()?.collect()),
        ValueKind::Map if is_dict(value) => Ok(value.try_iter()?.collect()),
        _ => Err(not_iterable(value)),
    }
}

fn not_iterable(value: &Value) -> Error {
    wrong(format!("'{}' object is not iterable", type_name(value)))
}

/// Python's white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
