//! Which parts of schemas are enforced.

use super::*;

fn notices(schema: &Value) -> Vec<String> {
    let (_, notices) = enforceable(schema, Effort::Most, Bounds::default());
    notices.iter().map(ToString::to_string).collect()
}

#[test]
fn references_lead_to_definitions_that_a_plain_pointer_reaches() {
    let schema = json!({
        "properties": {
            "a": {"$ref": "#/$defs/a~1b"},
            "b": {"$ref": "#/$defs/c%d"},
            "c": {"$ref": "#/$defs/plain"},
            "d": {"$ref": "#/elsewhere/x"},
            "e": {"$dynamicRef": "#node"},
        },
        "$defs": {
            "a/b": {"type": "null"}, "c%d": {"type": "boolean"}, "plain": {"type": "array"},
        },
        "elsewhere": {"x": {"type": "string", "not": {"const": "x"}}},
    });
    let (enforced, notices) = enforceable(&schema, Effort::Most, Bounds::default());
    for (name, kind) in [
        ("a", "null"),
        ("b", "boolean"),
        ("c", "array"),
        ("d", "string"),
    ] {
        let reference = enforced["properties"][name]["$ref"].as_str().expect(name);
        let target = enforced
            .pointer(reference.trim_start_matches('#'))
            .expect(reference);
        assert_eq!(target["type"], kind, "{name}: {reference}");
    }
    let notices: Vec<String> = notices.iter().map(ToString::to_string).collect();
    assert_eq!(
        notices,
        [
            "not at #/elsewhere/x",
            "$dynamicRef #node at #/properties/e"
        ]
    );
}

#[test]
fn what_is_not_enforced_is_named_with_its_place() {
    let schema = json!({
        "properties": {
            "not": {"type": "integer", "not": {"const": 3}},
            "p": {"type": "string", "pattern": "\\bx"},
        },
        "if": {"required": ["p"]}, "then": {"required": ["not"]},
    });
    assert_eq!(
        notices(&schema),
        [
            "if at #",
            "then at #",
            "not at #/properties/not",
            "pattern at #/properties/p"
        ]
    );
    assert!(notices(&json!({"enum": [{"not": 1}], "then": {}})).is_empty());
}

#[test]
fn keywords_with_an_equivalent_form_are_enforced() {
    for (schema, expected) in [
        (
            json!({"type": "object", "propertyNames": {"pattern": "^a+$"}}),
            json!({"type": "object", "patternProperties": {"^a+$": {}}, "additionalProperties": false}),
        ),
        (
            json!({"propertyNames": {"enum": ["a.b", "c"]}, "additionalProperties": {"type": "null"}}),
            json!({"patternProperties": {"^(a\\.b|c)$": {"type": "null"}}, "additionalProperties": false}),
        ),
        (
            json!({"properties": {"a": {}}, "unevaluatedProperties": false}),
            json!({"properties": {"a": {}}, "additionalProperties": false}),
        ),
        (
            json!({"not": {"type": ["string", "number"]}, "type": ["string", "null", "integer"]}),
            json!({"type": ["null"]}),
        ),
        (
            json!({"type": "integer"}),
            json!({"type": "integer", "minimum": -MOST, "maximum": MOST}),
        ),
        (
            json!({"type": "string", "maxLength": 2.0}),
            json!({"type": "string", "maxLength": 2}),
        ),
        (
            json!({"type": "integer", "exclusiveMinimum": 0}),
            json!({"type": "integer", "exclusiveMinimum": 0, "maximum": MOST}),
        ),
    ] {
        let (enforced, notices) = enforceable(&schema, Effort::Most, Bounds::default());
        assert_eq!(enforced, expected);
        assert!(notices.is_empty(), "{notices:?}");
    }
}

#[test]
fn regular_patterns_are_told_from_others() {
    for (pattern, regular) in [
        (r"^\d{3}-[a-z]+$", true),
        (r"(?:a|b)\\b", true),
        (r"(?<name>x)", true),
        (r"a\bb", false),
        ("(?=x)", false),
        ("(?<!x)y", false),
        (r"(a)\1", false),
    ] {
        assert_eq!(is_regular(pattern), regular, "{pattern}");
    }
}

#[test]
fn steps_that_no_grammar_counts_are_left_to_the_model() {
    for (step, countable) in [
        (json!(5), true),
        (json!(0.01), true),
        (json!(1e-12), false),
        (json!(4_000_000_000u64), false),
    ] {
        let schema = json!({"type": "number", "multipleOf": step});
        assert_eq!(notices(&schema).is_empty(), countable, "{step}");
    }
}

#[test]
fn arrays_and_strings_get_the_bounds_that_are_set() {
    let bounds = Bounds {
        items: Some(10),
        length: Some(20),
    };
    for (schema, expected) in [
        (
            json!({"type": "array"}),
            json!({"type": "array", "maxItems": 10}),
        ),
        (
            json!({"type": ["string", "array"], "minItems": 12, "maxLength": 5}),
            json!({"type": ["string", "array"], "minItems": 12, "maxLength": 5, "maxItems": 12}),
        ),
        (
            json!({"type": "string"}),
            json!({"type": "string", "maxLength": 20}),
        ),
        (
            json!({"type": "string", "pattern": "^a+$"}),
            json!({"type": "string", "pattern": "^a+$"}),
        ),
    ] {
        assert_eq!(enforceable(&schema, Effort::Most, bounds).0, expected);
    }
}
