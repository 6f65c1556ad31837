//! Closes objects that name their properties: small models otherwise add properties without end. Pure.
//!
//! What is left is a part of what the schema allows, so that every answer still fits it. Where schemas
//! are combined, closing one could leave nothing, or let two match where one must; such schemas stay as
//! they are.

use serde_json::{Map, Value, json};

/// Keywords that say nothing about a value.
const ANNOTATIONS: [&str; 14] = [
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "nullable",
    "$comment",
    "$schema",
    "$id",
    "$anchor",
    "$defs",
    "definitions",
];

/// Allows only the named properties, in a schema that is enforced.
pub(crate) fn only_named(schema: &mut Value) {
    if !combines(schema) {
        close(schema);
    }
}

/// Whether a value is described by several schemas at once, anywhere. Data that looks like one counts.
fn combines(schema: &Value) -> bool {
    match schema {
        Value::Object(object) => {
            let beside = |keyword: &str, allowed: &[&str]| {
                let known = |key: &String| {
                    key == keyword || ANNOTATIONS.contains(&&**key) || allowed.contains(&&**key)
                };
                object.contains_key(keyword) && !object.keys().all(known)
            };
            object.contains_key("allOf")
                || object.contains_key("oneOf")
                || beside("$ref", &[])
                || beside("anyOf", &["type"])
                || object.values().any(combines)
        }
        Value::Array(items) => items.iter().any(combines),
        _ => false,
    }
}

fn close(schema: &mut Value) {
    let Value::Object(object) = schema else {
        return;
    };
    if is_open(object) {
        object.insert("additionalProperties".into(), json!(false));
    }
    for (keyword, value) in object.iter_mut() {
        match (keyword.as_str(), value) {
            ("properties" | "$defs" | "definitions", Value::Object(named)) => {
                named.values_mut().for_each(close);
            }
            ("prefixItems" | "anyOf" | "items", Value::Array(several)) => {
                several.iter_mut().for_each(close);
            }
            ("items" | "additionalItems" | "additionalProperties", one) => close(one),
            _ => {}
        }
    }
}

/// Whether an object names its properties, says nothing about others, and needs none of them.
fn is_open(object: &Map<String, Value>) -> bool {
    let Some(Value::Object(named)) = object.get("properties") else {
        return false;
    };
    let says = ["additionalProperties", "patternProperties", "minProperties"];
    let required = object.get("required").and_then(Value::as_array);
    let mut required = required.into_iter().flatten().filter_map(Value::as_str);
    !says.iter().any(|keyword| object.contains_key(*keyword))
        && required.all(|name| named.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(mut schema: Value) -> Value {
        only_named(&mut schema);
        schema
    }

    #[test]
    fn objects_that_name_their_properties_have_no_others() {
        let inner = json!({"properties": {"b": {}}});
        let both = json!({"properties": {"b": {}}, "additionalProperties": false});
        type Place = fn(&Value) -> Value;
        let places: [(&str, Place); 6] = [
            ("properties", |inner| json!({ "a": inner })),
            ("$defs", |inner| json!({ "a": inner })),
            ("anyOf", |inner| json!([inner, {"type": "null"}])),
            ("prefixItems", |inner| json!([inner])),
            ("items", Value::clone),
            ("additionalProperties", Value::clone),
        ];
        for (keyword, of) in places {
            let got = closed(json!({ keyword: of(&inner) }));
            assert_eq!(got[keyword], of(&both), "{keyword}");
        }
        let none = closed(json!({"type": "object", "properties": {}}));
        assert_eq!(none["additionalProperties"], false);
    }

    #[test]
    fn what_says_otherwise_or_is_combined_stays() {
        for schema in [
            json!({"type": "object"}),
            json!({"properties": {"a": {}}, "additionalProperties": true}),
            json!({"properties": {"a": {}}, "patternProperties": {"^x": {}}}),
            json!({"properties": {"a": {}}, "minProperties": 2}),
            json!({"properties": {"a": {}}, "required": ["b"]}),
            json!({"properties": {"a": {}}, "anyOf": [{"required": ["b"]}]}),
            json!({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            json!({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            json!({"$ref": "#/$defs/a", "required": ["b"], "$defs": {"a": {"properties": {"a": {}}}}}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }
}
