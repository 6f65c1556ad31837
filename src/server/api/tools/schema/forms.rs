//! Equivalent forms of single keywords. Pure.

use serde_json::{Map, Value, json};

use super::super::check::equal;
use super::{Bounds, MOST};

pub(super) fn append(object: &mut Map<String, Value>, key: &str, value: Value) {
    match object.get_mut(key) {
        Some(Value::Array(items)) => items.push(value),
        _ => drop(object.insert(key.into(), json!([value]))),
    }
}

/// Requires property names by a pattern instead; says whether that is possible.
pub(super) fn names_as_patterns(object: &mut Map<String, Value>, names: &Value) -> bool {
    let free = !["properties", "patternProperties", "required"]
        .iter()
        .any(|key| object.contains_key(*key));
    let Value::Object(names) = names else {
        if names == &Value::Bool(false) && free {
            object.insert("maxProperties".into(), json!(0));
        }
        return names == &Value::Bool(true) || free;
    };
    let only = |allowed: &[&str]| names.keys().all(|key| allowed.contains(&key.as_str()));
    let length = |key: &str| names.get(key).and_then(Value::as_u64);
    let pattern = if only(&["type", "pattern"]) {
        names
            .get("pattern")
            .and_then(Value::as_str)
            .map(str::to_owned)
    } else if only(&["type", "minLength", "maxLength"]) {
        let most = length("maxLength")
            .map(|most| most.to_string())
            .unwrap_or_default();
        Some(format!(
            "^.{{{},{most}}}$",
            length("minLength").unwrap_or(0)
        ))
    } else if only(&["type", "enum"]) {
        let texts = names.get("enum").and_then(Value::as_array);
        let texts = texts.and_then(|all| all.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(|all| {
            let all: Vec<String> = all.into_iter().map(regex::escape).collect();
            format!("^({})$", all.join("|"))
        })
    } else {
        None
    };
    let Some(pattern) = pattern.filter(|pattern| free && is_regular(pattern)) else {
        return false;
    };
    let values = object
        .remove("additionalProperties")
        .unwrap_or_else(|| json!({}));
    object.insert("patternProperties".into(), json!({ pattern: values }));
    object.insert("additionalProperties".into(), json!(false));
    true
}

/// Excludes what `not` describes, if that is types, single values, or the presence of one name.
pub(super) fn without(object: &mut Map<String, Value>, not: &Value) -> bool {
    let Value::Object(not) = not else {
        if not == &Value::Bool(true) {
            object.insert("enum".into(), json!([]));
        }
        return not.is_boolean();
    };
    let mut keywords = not.iter();
    match (keywords.next(), keywords.next()) {
        (None, _) => drop(object.insert("enum".into(), json!([]))),
        (Some((keyword, excluded)), None) => match (keyword.as_str(), excluded) {
            ("type", excluded) => {
                let Some(types) = all_types_but(excluded, object.get("type")) else {
                    return false;
                };
                object.insert("type".into(), types);
            }
            ("const", one) => return remove_values(object, std::slice::from_ref(one)),
            ("enum", Value::Array(all)) => return remove_values(object, all),
            ("required", Value::Array(names)) if names.len() == 1 => {
                return forbid(object, names[0].as_str());
            }
            _ => return false,
        },
        _ => return false,
    }
    true
}

/// Removes values from those that are listed, if all are.
fn remove_values(object: &mut Map<String, Value>, excluded: &[Value]) -> bool {
    if object.get("type") == Some(&json!("boolean")) && !object.contains_key("enum") {
        object.insert("enum".into(), json!([true, false]));
    }
    let Some(Value::Array(listed)) = object.get_mut("enum") else {
        return false;
    };
    listed.retain(|value| !excluded.iter().any(|one| equal(one, value)));
    true
}

/// Forbids an object's property.
fn forbid(object: &mut Map<String, Value>, name: Option<&str>) -> bool {
    let Some(name) = name else { return false };
    match object.get("type") {
        None => drop(object.insert("type".into(), json!("object"))),
        Some(kind) if kind == "object" => {}
        Some(_) => return false,
    }
    let properties = object.entry("properties").or_insert_with(|| json!({}));
    properties[name] = json!(false);
    true
}

/// The types that are left where some are excluded.
fn all_types_but(not: &Value, own: Option<&Value>) -> Option<Value> {
    let list = |value: &Value| -> Option<Vec<String>> {
        match value {
            Value::String(one) => Some(vec![one.clone()]),
            Value::Array(all) => all.iter().map(|t| t.as_str().map(str::to_owned)).collect(),
            _ => None,
        }
    };
    let not = list(not)?;
    // An integer is a number, so one cannot be excluded without the other.
    if not.iter().any(|kind| kind == "integer") {
        return None;
    }
    let own = match own {
        Some(own) => list(own)?,
        None => ["null", "boolean", "number", "string", "array", "object"]
            .map(str::to_owned)
            .to_vec(),
    };
    let excluded = |kind: &String| {
        not.contains(kind) || (kind == "integer" && not.iter().any(|n| n == "number"))
    };
    let left: Vec<String> = own.into_iter().filter(|kind| !excluded(kind)).collect();
    Some(json!(left))
}

/// Whether a pattern describes a regular language as grammars have them: no look-around, no word
/// boundaries, no back-references.
pub(super) fn is_regular(pattern: &str) -> bool {
    let mut rest = pattern.chars().peekable();
    let mut before = ' ';
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                Some('b' | 'B' | '1'..='9' | 'k') => return false,
                _ => before = ' ',
            },
            '?' if before == '(' => {
                let look = rest.peek().copied();
                if matches!(look, Some('=' | '!')) {
                    return false;
                }
                if look == Some('<') {
                    rest.next();
                    if matches!(rest.peek(), Some('=' | '!')) {
                        return false;
                    }
                }
                before = ' ';
            }
            c => before = c,
        }
    }
    true
}

/// Gives numbers the bounds that they lack.
pub(super) fn bound_numbers(object: &mut Map<String, Value>) {
    let is = |kind: &Value| kind == "integer" || kind == "number";
    let numeric = match object.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(is),
        Some(kind) => is(kind),
        None => false,
    };
    if !numeric || object.contains_key("enum") || object.contains_key("const") {
        return;
    }
    let has = |object: &Map<String, Value>, keys: [&str; 2]| {
        keys.iter()
            .any(|key| object.get(*key).is_some_and(Value::is_number))
    };
    if !has(object, ["minimum", "exclusiveMinimum"]) {
        object.insert("minimum".into(), json!(-MOST));
    }
    if !has(object, ["maximum", "exclusiveMaximum"]) {
        object.insert("maximum".into(), json!(MOST));
    }
}

/// Writes sizes such as `2.0` as grammars read them.
pub(super) fn whole_sizes(object: &mut Map<String, Value>) {
    for key in [
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
    ] {
        let size = object.get_mut(key).filter(|size| size.is_f64());
        if let Some(size) = size
            && let Some(whole) = size.as_f64().filter(|s| *s >= 0.0 && s.fract() == 0.0)
        {
            *size = json!(whole as u64);
        }
    }
}

/// Gives arrays and strings the bounds that they lack.
pub(super) fn bound_sizes(object: &mut Map<String, Value>, bounds: Bounds) {
    let is = |kind: &str| match object.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|one| one == kind),
        Some(one) => one == kind,
        None => false,
    };
    // Patterns and formats have their own ideas of length.
    let free = !["enum", "const", "pattern", "format"]
        .iter()
        .any(|key| object.contains_key(*key));
    let least = |key: &str| object.get(key).and_then(Value::as_u64).unwrap_or(0);
    let first = object.get("prefixItems").and_then(Value::as_array);
    let items = bounds.items.filter(|_| free && is("array"));
    let items = items.map(|most| {
        (most as u64)
            .max(least("minItems"))
            .max(first.map_or(0, |f| f.len() as u64))
    });
    let length = bounds.length.filter(|_| free && is("string"));
    let length = length.map(|most| (most as u64).max(least("minLength")));
    for (key, most) in [("maxItems", items), ("maxLength", length)] {
        if let Some(most) = most.filter(|_| !object.contains_key(key)) {
            object.insert(key.into(), json!(most));
        }
    }
}

pub(super) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// `None` if a percent sign begins no byte or the bytes are no text.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Whether a step of `multipleOf` is small enough for a grammar to count with: up to a million, with up to
/// six digits altogether.
pub(super) fn is_countable(step: &Value) -> bool {
    let Some(step) = step.as_f64().filter(|step| *step > 0.0) else {
        return false;
    };
    (0..=6).any(|digits| {
        let scaled = step * 10f64.powi(digits);
        scaled <= 1e6 && (scaled - scaled.round()).abs() < 1e-9 && scaled.round() >= 1.0
    })
}
