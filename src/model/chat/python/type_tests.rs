//! Tests: `value is string`.

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, Value};

use super::operators::contains;
use super::{Method, is_dict, is_list, objects, text_of, type_name, wrong};

pub(super) fn register(environment: &mut Environment<'_>) {
    let kind = |value: &Value, kinds: &[&str]| kinds.contains(&type_name(value));
    environment.add_test("number", move |v: Value| {
        kind(&v, &["int", "float", "bool"])
    });
    environment.add_test("integer", move |v: Value| kind(&v, &["int"]));
    environment.add_test("float", move |v: Value| kind(&v, &["float"]));
    environment.add_test("boolean", move |v: Value| kind(&v, &["bool"]));
    environment.add_test("string", move |v: Value| kind(&v, &["str"]));
    environment.add_test("none", |v: Value| v.is_none());
    environment.add_test("true", |v: Value| {
        v.kind() == ValueKind::Bool && v.is_true()
    });
    environment.add_test("false", |v: Value| {
        v.kind() == ValueKind::Bool && !v.is_true()
    });
    environment.add_test("mapping", |v: Value| is_dict(&v));
    environment.add_test("sequence", |v: Value| has_items(&v));
    environment.add_test("iterable", |v: Value| {
        has_items(&v) || objects::is_generator(&v)
    });
    environment.add_test("callable", |v: Value| is_callable(&v));
    environment.add_test("in", |v: Value, container: Value| contains(&v, &container));
    environment.add_test("sameas", |a: Value, b: Value| {
        type_name(&a) == type_name(&b) && a == b
    });
    environment.add_test("escaped", |_: Value| false);
    environment.add_test("lower", |v: Value, _: Rest<Value>| -> Result<bool, Error> {
        Ok(is_lower(&text_of(&v)?))
    });
    environment.add_test("upper", |v: Value, _: Rest<Value>| -> Result<bool, Error> {
        Ok(is_upper(&text_of(&v)?))
    });
    environment.add_test("odd", |v: Value| Ok(remainder(&v, 2)? == 1));
    environment.add_test("even", |v: Value| Ok(remainder(&v, 2)? == 0));
    environment.add_test("divisibleby", |v: Value, by: Value| {
        let by = super::arguments::whole(&by)?;
        Ok(remainder(&v, by)? == 0)
    });
}

/// Whether there is a length and items: an undefined value has none of them, and both.
fn has_items(value: &Value) -> bool {
    let kind = value.kind();
    matches!(kind, ValueKind::String | ValueKind::Undefined) || is_list(value) || is_dict(value)
}

fn is_callable(value: &Value) -> bool {
    match value.kind() {
        // An undefined value can be called; that it fails is another matter.
        ValueKind::Undefined => true,
        ValueKind::Plain => !objects::is_generator(value),
        _ => value.downcast_object_ref::<Method>().is_some(),
    }
}

fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

fn remainder(value: &Value, by: i64) -> Result<i64, Error> {
    if by == 0 {
        return Err(wrong("integer division or modulo by zero"));
    }
    // The least number has no quotient with -1; its remainder is 0 as that of all others.
    Ok(super::arguments::whole(value)?
        .checked_rem_euclid(by)
        .unwrap_or(0))
}
