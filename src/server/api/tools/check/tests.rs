//! Whether checks agree with another validator, and end.

use boon::{Compiler, Schemas};
use serde_json::{Value, json};

use super::super::schema::resolve;
use super::*;

/// What `boon` says; `None` of a schema that it does not take.
pub(in super::super) fn oracle(schema: &Value, value: &Value) -> Option<bool> {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    let url = "http://schema.invalid/root.json";
    compiler.add_resource(url, schema.clone()).ok()?;
    let root = compiler.compile(url, &mut schemas).ok()?;
    Some(schemas.validate(value, root).is_ok())
}

fn verdict(schema: &Value, value: &Value) -> Verdict {
    check(&resolve(schema).unwrap(), &value.to_string())
}

#[test]
fn checks_agree_with_another_validator() {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(1.0),
        json!(-2),
        json!(0.07),
        json!(12),
        json!(""),
        json!("a"),
        json!("ab"),
        json!("é"),
        json!([]),
        json!([1]),
        json!([1, 1.0]),
        json!([1, "a", null]),
        json!([[1], [1]]),
        json!({}),
        json!({"a": 1}),
        json!({"a": "x"}),
        json!({"b": 2}),
        json!({"a": 1, "b": 2}),
        json!({"a": {"a": 1}}),
        json!({"aa": 1, "c": []}),
        json!({"a": {"a": {"b": []}}, "c": 3}),
    ];
    let object = |a: Value| json!({"properties": {"a": a}});
    let a = || json!({"properties": {"a": {"type": "integer"}}});
    let schemas = [
        json!(true),
        json!(false),
        json!({}),
        json!({"type": ["integer", "null"]}),
        json!({"const": 1}),
        json!({"enum": [[1], {"a": 1}, "a"]}),
        json!({"multipleOf": 2}),
        json!({"minimum": 0, "exclusiveMaximum": 1}),
        json!({"minLength": 1, "maxLength": 1}),
        json!({"pattern": "^a.?$"}),
        json!({"uniqueItems": true}),
        json!({"minItems": 1, "maxItems": 2}),
        json!({"prefixItems": [{"type": "integer"}], "items": {"type": "string"}}),
        json!({"prefixItems": [true, {"type": "string"}], "items": false}),
        json!({"contains": {"const": 1}}),
        json!({"contains": {"const": 1}, "minContains": 2}),
        json!({"contains": {"const": 1}, "minContains": 0, "maxContains": 1}),
        json!({"contains": {"type": "integer"}, "unevaluatedItems": false}),
        json!({"allOf": [{"prefixItems": [true]}], "unevaluatedItems": {"type": "string"}}),
        json!({"required": ["a"]}),
        json!({"minProperties": 1, "maxProperties": 1}),
        json!({"dependentRequired": {"a": ["b"]}}),
        json!({"dependentSchemas": {"a": {"maxProperties": 1}}}),
        json!({"patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": false}),
        json!({"properties": {"a": true}, "additionalProperties": {"type": "array"}}),
        json!({"propertyNames": {"maxLength": 1}}),
        json!({"propertyNames": false}),
        json!({"oneOf": [a(), {"required": ["b"]}]}),
        json!({"anyOf": [{"type": "string"}, {"minimum": 1}]}),
        json!({"not": {"type": "object", "required": ["a"]}}),
        json!({"not": {}}),
        json!({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"minProperties": 1}}),
        json!({"allOf": [a()], "unevaluatedProperties": false}),
        json!({"anyOf": [a(), {"properties": {"b": true}}], "unevaluatedProperties": false}),
        json!({"oneOf": [{"required": ["a"], "properties": {"a": true}}, {"properties": {"b": true}}], "unevaluatedProperties": false}),
        json!({"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"properties": {"b": true}}, "unevaluatedProperties": false}),
        json!({"not": {"not": a()}, "unevaluatedProperties": false}),
        json!({"allOf": [a(), {"unevaluatedProperties": false}]}),
        json!({"properties": {"a": true}, "allOf": [{"unevaluatedProperties": false}]}),
        json!({"dependentSchemas": {"a": {"properties": {"a": true}}}, "unevaluatedProperties": {"type": "array"}}),
        json!({"$ref": "#/$defs/a", "unevaluatedProperties": false, "$defs": {"a": a()}}),
        object(json!({"$ref": "#"})),
        json!({"additionalProperties": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "number"}}}),
        json!({"$id": "http://x.example/t", "$dynamicAnchor": "t", "properties": {"a": {"$dynamicRef": "#t"}}, "maxProperties": 1}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "items": [true, {"type": "string"}], "additionalItems": false}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"a": ["b"], "b": {"maxProperties": 1}}}),
    ];
    for schema in &schemas {
        for value in &values {
            let expected = oracle(schema, value).unwrap_or_else(|| panic!("{schema}"));
            let found = verdict(schema, value);
            let agrees = match &found {
                Verdict::Valid => expected,
                Verdict::Invalid { .. } => !expected,
                Verdict::Unknown(_) => false,
            };
            assert!(agrees, "{schema} on {value}: {found:?}");
        }
    }
}

#[test]
fn what_does_not_hold_is_named_with_its_place() {
    let invalid = |keyword: &str, path: &str| Verdict::Invalid {
        keyword: keyword.into(),
        path: path.into(),
    };
    for (schema, value, expected) in [
        (
            json!({"properties": {"a/b": {"not": {"const": 3}}}}),
            json!({"a/b": 3}),
            invalid("not", "/a~1b"),
        ),
        (
            json!({"items": {"unevaluatedProperties": false}}),
            json!([{}, {"x": 1}]),
            invalid("unevaluatedProperties", "/1/x"),
        ),
        (json!({"oneOf": [{}, {}]}), json!(1), invalid("oneOf", "")),
        (
            json!({"anyOf": [{"type": "string"}], "maximum": 3}),
            json!(1),
            invalid("anyOf", ""),
        ),
    ] {
        assert_eq!(verdict(&schema, &value), expected, "{schema}");
    }
    assert_eq!(check(&json!({}), "{\"a\": "), invalid("JSON", ""));
    assert!(matches!(check(&json!({}), "1e999"), Verdict::Unknown(_)));
}

#[test]
fn multiples_of_decimals_are_exact() {
    for (step, value, holds) in [
        (json!(0.01), json!(0.07), true),
        (json!(0.01), json!(0.071), false),
        (json!(0.0001), json!(0.0075), true),
        (json!(1e-8), json!(12_391_239_123_i64), true),
        (json!(3), json!(1e25), false),
    ] {
        let found = verdict(&json!({ "multipleOf": step }), &value);
        assert_eq!(found == Verdict::Valid, holds, "{value} by {step}");
    }
}

#[test]
fn hostile_schemas_end_without_a_verdict() {
    let chain = |links: usize, link: &dyn Fn(Value) -> Value| {
        let name = |i: usize| json!({"$ref": format!("#/$defs/d{i}")});
        let link = |i: usize| (format!("d{i}"), link(name(i + 1)));
        let mut definitions: Map<String, Value> = (0..links).map(link).collect();
        definitions.insert(format!("d{links}"), json!({}));
        json!({"$ref": "#/$defs/d0", "$defs": definitions})
    };
    let mut deep = json!({});
    for _ in 0..100 {
        deep = json!({ "x": deep });
    }
    let both = json!({"allOf": [{"properties": {"x": {"$ref": "#"}}}, {"properties": {"x": {"$ref": "#"}}}]});
    let hostile = [
        (chain(2000, &|next| next), json!(1)),
        (chain(60, &|next| json!({"allOf": [next, next]})), json!(1)),
        (
            chain(60, &|next| json!({"anyOf": [{"not": next}, {"not": next}]})),
            json!(1),
        ),
        (both, deep),
        (json!({"$ref": "#"}), json!(1)),
        (
            json!({"pattern": "^((a{1,200}){1,200}){1,200}$"}),
            json!("aaa"),
        ),
        (json!({"pattern": "^(?=a)a$"}), json!("a")),
        (
            json!({"uniqueItems": true}),
            Value::from((0..2000).collect::<Vec<_>>()),
        ),
    ];
    // As small a stack as threads of the server have.
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let checked = thread.spawn(move || {
        for (schema, value) in &hostile {
            let shown: String = schema.to_string().chars().take(90).collect();
            let found = verdict(schema, value);
            assert!(matches!(found, Verdict::Unknown(_)), "{shown}: {found:?}");
        }
    });
    checked.unwrap().join().unwrap();
}
