//! How references are resolved.

use serde_json::json;

use super::*;

#[test]
fn uris_are_joined() {
    for (base, reference, joined) in [
        (
            "http://x.example/a/b.json",
            "c.json",
            "http://x.example/a/c.json",
        ),
        (
            "http://x.example/a/b.json",
            "/c.json",
            "http://x.example/c.json",
        ),
        ("http://x.example/a/b/", "../c", "http://x.example/a/c"),
        ("http://x.example", "c", "http://x.example/c"),
        ("http://x.example/a", "urn:b:c", "urn:b:c"),
        ("http://x.example/a", "//y.example/b", "http://y.example/b"),
        ("a/b.json", "c.json", "a/c.json"),
        ("", "c.json", "c.json"),
    ] {
        assert_eq!(join(base, reference), joined, "{reference} in {base}");
    }
}

#[test]
fn references_lead_to_pointers() {
    let schema = json!({
        "$id": "https://x.example/dir/root.json",
        "properties": {
            "a": {"$ref": "#/$defs/a~1b"},
            "b": {"$ref": "#/$defs/c%25d"},
            "c": {"$ref": "#named"},
            "d": {"$ref": "root.json#/$defs/plain"},
            "e": {"$ref": "https://x.example/dir/other.json"},
            "f": {"$ref": "/dir/other.json#named"},
            "g": {"$ref": "#/components/list", "$dynamicRef": "#tree"},
            "$ref": {"$ref": "#"},
            "const": {"$ref": "#named"},
        },
        "const": {"$ref": "#nowhere"},
        "components": {"list": {"items": {"$ref": "#named"}}, "note": {"$ref": "see below"}},
        "$defs": {
            "a/b": {"type": "null"}, "c%d": {"type": "boolean"},
            "n": {"$anchor": "named", "type": "string"}, "plain": {"type": "array"},
            "o": {
                "$id": "other.json", "$dynamicAnchor": "tree",
                "items": {"$ref": "#/$defs/p"}, "$defs": {"p": {"$anchor": "named"}},
            },
            "t": {"$dynamicAnchor": "tree"},
        },
    });
    let resolved = resolve(&schema).unwrap();
    for (place, target) in [
        ("/properties/a", "#/$defs/a~1b"),
        ("/properties/b", "#/$defs/c%d"),
        ("/properties/c", "#/$defs/n"),
        ("/properties/d", "#/$defs/plain"),
        ("/properties/e", "#/$defs/o"),
        ("/properties/f", "#/$defs/o/$defs/p"),
        ("/properties/g", "#/components/list"),
        ("/properties/g/allOf/0", "#/$defs/t"),
        ("/properties/$ref", "#"),
        ("/properties/const", "#/$defs/n"),
        ("/components/list/items", "#/$defs/n"),
        ("/$defs/o/items", "#/$defs/o/$defs/p"),
    ] {
        let found = resolved.pointer(place).unwrap();
        assert_eq!(found["$ref"], target, "{place}");
    }
    assert_eq!(resolved["const"], schema["const"]);
    assert_eq!(resolved.get("$id"), None);
}

#[test]
fn a_reference_that_leads_nowhere_is_named() {
    for (reference, place) in [
        ("https://other.example/a.json", "/properties/a~1b"),
        ("#/$defs/missing", "/properties/a~1b"),
        ("#missing", "/properties/a~1b"),
        ("#/$defs/%zz", "/properties/a~1b"),
        ("#/required", "/properties/a~1b"),
    ] {
        let schema = json!({"properties": {"a/b": {"$ref": reference}}, "required": []});
        let broken = resolve(&schema).unwrap_err();
        let expected = (place, format!("$ref {reference}"));
        assert_eq!((broken.path.as_str(), broken.keyword), expected);
    }
}

#[test]
fn a_dynamic_reference_that_depends_on_the_way_is_left() {
    let resource = |id: &str| json!({"$id": id, "$defs": {"t": {"$dynamicAnchor": "t"}}, "items": {"$dynamicRef": "#t"}});
    let mut schema =
        json!({"$id": "http://x.example/root", "$defs": {"a": resource("a"), "b": resource("b")}});
    let left = resolve(&schema).unwrap();
    assert_eq!(left["$defs"]["a"]["items"]["$dynamicRef"], "#t");
    schema["$dynamicAnchor"] = json!("t");
    let led = resolve(&schema).unwrap();
    assert_eq!(led["$defs"]["a"]["items"]["$ref"], "#");
}

#[test]
fn keywords_that_are_null_say_nothing() {
    let schema = json!({"type": "object", "title": null, "required": null, "properties": {
        "a": {"type": "string", "enum": null, "default": null, "pattern": null},
        "b": {"const": null, "anyOf": [{"type": "null", "format": null}]},
    }, "x": {"y": null}});
    let resolved = resolve(&schema).unwrap();
    assert_eq!(
        resolved,
        json!({"type": "object", "properties": {
            "a": {"type": "string", "default": null},
            "b": {"const": null, "anyOf": [{"type": "null"}]},
        }, "x": {"y": null}})
    );
}
