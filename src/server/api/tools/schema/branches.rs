//! Equivalent forms of keywords that depend on other parts of the value. Pure.

use serde_json::{Map, Value, json};

use super::forms::append;

/// Names that `dependent…` may have: each doubles the ways through a grammar.
const MOST_DEPENDENTS: usize = 4;
/// Schemas that are looked through for the names that they evaluate.
const MOST_LOOKED_AT: usize = 1000;

/// What schemas evaluate of an object or an array.
#[derive(Default)]
struct Known {
    names: Vec<String>,
    patterns: Vec<String>,
    first: usize,
    all_names: bool,
    all_items: bool,
    /// Whether some of it holds on a condition only.
    maybe_names: bool,
    maybe_items: bool,
    looked_at: usize,
}

impl Known {
    fn add(&mut self, object: &Map<String, Value>, root: &Value, sure: bool, outermost: bool) {
        self.looked_at += 1;
        if self.looked_at > MOST_LOOKED_AT {
            self.maybe_names = true;
            self.maybe_items = true;
            return;
        }
        let has = |keys: &[&str]| keys.iter().any(|key| object.contains_key(*key));
        for (key, into) in [
            ("properties", &mut self.names),
            ("patternProperties", &mut self.patterns),
        ] {
            let named = object.get(key).and_then(Value::as_object);
            into.extend(named.into_iter().flatten().map(|(name, _)| name.clone()));
        }
        let nested = !outermost && has(&["unevaluatedProperties"]);
        let all_names = nested || has(&["additionalProperties"]);
        let items = object.get("items");
        let list = items.filter(|items| items.is_array());
        let list = list.or_else(|| object.get("prefixItems"));
        let first = list.and_then(Value::as_array).map_or(0, Vec::len);
        let nested = !outermost && has(&["unevaluatedItems"]);
        let rest = items.is_some_and(|items| !items.is_array()) || has(&["additionalItems"]);
        let all_items = nested || rest;
        self.first = self.first.max(first);
        self.maybe_items |= has(&["contains"]);
        if sure {
            self.all_names |= all_names;
            self.all_items |= all_items;
        } else {
            self.maybe_names |= all_names || has(&["properties", "patternProperties"]);
            self.maybe_items |= all_items || first > 0;
        }
        self.add_in_place(object, root, sure);
    }

    fn add_in_place(&mut self, object: &Map<String, Value>, root: &Value, sure: bool) {
        let reference = object.get("$ref").and_then(Value::as_str);
        let target = reference.and_then(|r| root.pointer(r.strip_prefix('#')?));
        let listed = |key: &str| {
            object
                .get(key)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        };
        let named = |key: &str| {
            let named = object.get(key).and_then(Value::as_object);
            named.into_iter().flatten().map(|(_, schema)| schema)
        };
        for schema in listed("allOf").chain(target) {
            if let Value::Object(schema) = schema {
                self.add(schema, root, sure, false);
            }
        }
        let perhaps = listed("anyOf").chain(listed("oneOf"));
        let perhaps = perhaps.chain(["if", "then", "else"].iter().filter_map(|k| object.get(*k)));
        let perhaps = perhaps
            .chain(named("dependentSchemas"))
            .chain(named("dependencies"));
        for schema in perhaps.filter_map(Value::as_object) {
            self.add(schema, root, false, false);
        }
        if object.contains_key("$dynamicRef") {
            self.maybe_names = true;
            self.maybe_items = true;
        }
    }
}

/// Lists what is evaluated, so that the rest are additional properties and items. Returns the keywords of
/// which that is not all.
pub(super) fn unevaluated(object: &mut Map<String, Value>, root: &Value) -> Vec<&'static str> {
    let mut left = Vec::new();
    for keyword in ["unevaluatedProperties", "unevaluatedItems"] {
        if object.get(keyword) == Some(&Value::Bool(true)) {
            object.remove(keyword);
        }
    }
    if !object.contains_key("unevaluatedProperties") && !object.contains_key("unevaluatedItems") {
        return left;
    }
    let mut known = Known::default();
    known.add(object, root, true, true);
    if let Some(rest) = object
        .remove("unevaluatedProperties")
        .filter(|_| !known.all_names)
    {
        if known.maybe_names {
            left.push("unevaluatedProperties");
        }
        for (key, names) in [
            ("properties", &known.names),
            ("patternProperties", &known.patterns),
        ] {
            if let Value::Object(all) = object.entry(key).or_insert_with(|| json!({})) {
                for name in names {
                    all.entry(name.clone()).or_insert(Value::Bool(true));
                }
            }
        }
        if object["patternProperties"] == json!({}) {
            object.remove("patternProperties");
        }
        object.insert("additionalProperties".into(), rest);
    }
    if let Some(rest) = object
        .remove("unevaluatedItems")
        .filter(|_| !known.all_items)
    {
        if known.maybe_items {
            left.push("unevaluatedItems");
        }
        if known.first > 0
            && let Value::Array(first) = object.entry("prefixItems").or_insert_with(|| json!([]))
        {
            first.resize(known.first, Value::Bool(true));
        }
        object.insert("items".into(), rest);
    }
    left
}

/// Rewrites `if` about the value of one property as two branches, in the schema of an object and in those
/// of its `allOf`.
pub(super) fn conditions(object: &mut Map<String, Value>, root: &Value) {
    // Other values fulfil a condition about properties.
    if object.get("type").is_none_or(|kind| kind != "object") {
        return;
    }
    let outer = object.get("properties").cloned().unwrap_or_default();
    if let Some(Value::Array(all)) = object.get_mut("allOf") {
        for inner in all.iter_mut().filter_map(Value::as_object_mut) {
            if let Some(branches) = condition(inner, &outer, root) {
                append(inner, "allOf", branches);
            }
        }
    }
    if let Some(branches) = condition(object, &outer, root) {
        append(object, "allOf", branches);
    }
}

fn condition(object: &mut Map<String, Value>, outer: &Value, root: &Value) -> Option<Value> {
    let asked = object.get("if")?.as_object()?;
    let plain = |key: &String| ["properties", "required", "type"].contains(&key.as_str());
    if !asked.keys().all(plain) || asked.get("type").is_some_and(|kind| kind != "object") {
        return None;
    }
    let named = asked.get("properties")?.as_object()?;
    let (name, is) = named.iter().next().filter(|_| named.len() == 1)?;
    let required = match asked.get("required") {
        None => false,
        Some(names) if names == &json!([name]) => true,
        Some(_) => return None,
    };
    let values = |schema: &Value| -> Option<Vec<Value>> {
        let reference = schema.get("$ref").and_then(Value::as_str);
        let schema = match reference {
            Some(reference) => root.pointer(reference.strip_prefix('#')?)?,
            None => schema,
        };
        match (schema.get("const"), schema.get("enum")) {
            (Some(one), _) => Some(vec![one.clone()]),
            (None, Some(Value::Array(all))) => Some(all.clone()),
            _ if schema.get("type")? == "boolean" => Some(vec![json!(true), json!(false)]),
            _ => None,
        }
    };
    let keys = is.as_object()?.keys();
    let only_values = keys
        .into_iter()
        .all(|key| ["const", "enum", "type"].contains(&key.as_str()));
    let chosen = values(is).filter(|_| only_values)?;
    let own = object.get("properties").and_then(|all| all.get(name));
    let all = values(own.or_else(|| outer.get(name))?)?;
    let (yes, no): (Vec<Value>, Vec<Value>) = all.into_iter().partition(|v| chosen.contains(v));
    let branch = |values: Vec<Value>, required: bool, schema: Option<Value>| {
        let mut branch = json!({"properties": {name: {"enum": values}}});
        if required {
            branch["required"] = json!([name]);
        }
        branch["allOf"] = json!([schema.unwrap_or(Value::Bool(true))]);
        branch
    };
    let (then, other) = (object.get("then").cloned(), object.get("else").cloned());
    let branches = json!({"anyOf": [branch(yes, required, then), branch(no, !required, other)]});
    for keyword in ["if", "then", "else"] {
        object.remove(keyword);
    }
    Some(branches)
}

/// Rewrites what the presence of a property asks for as two branches: without it, or with the rest.
pub(super) fn dependents(object: &mut Map<String, Value>) {
    for keyword in ["dependentRequired", "dependentSchemas", "dependencies"] {
        let few = |value: &&Value| {
            value
                .as_object()
                .is_some_and(|all| all.len() <= MOST_DEPENDENTS)
        };
        let Some(Value::Object(depending)) = object.get(keyword).filter(few).cloned() else {
            continue;
        };
        object.remove(keyword);
        for (name, asked) in depending {
            let with = match asked {
                Value::Array(names) if names.is_empty() => continue,
                Value::Array(names) => json!({ "required": names }),
                schema => schema,
            };
            let without = json!({"properties": {name: false}});
            append(object, "allOf", json!({"anyOf": [without, with]}));
        }
    }
}

/// Rewrites an object that must have exactly one of some names so that its branches exclude one another.
pub(super) fn exclusive(object: &mut Map<String, Value>) {
    let Some(Value::Array(branches)) = object.get("oneOf") else {
        return;
    };
    let name = |branch: &Value| match branch.as_object()?.iter().collect::<Vec<_>>()[..] {
        [(keyword, Value::Array(names))] if keyword == "required" && names.len() == 1 => {
            names[0].as_str().map(str::to_owned)
        }
        _ => None,
    };
    let Some(names) = branches.iter().map(name).collect::<Option<Vec<_>>>() else {
        return;
    };
    let mut sorted = names.clone();
    sorted.sort();
    sorted.dedup();
    if sorted.len() < names.len() || object.get("type").is_none_or(|kind| kind != "object") {
        return;
    }
    let branch = |own: &String| {
        let others = names.iter().filter(|name| *name != own);
        let others: Map<String, Value> = others.map(|n| (n.clone(), Value::Bool(false))).collect();
        json!({"required": [own], "properties": others})
    };
    let branches: Vec<Value> = names.iter().map(branch).collect();
    object.remove("oneOf");
    append(object, "allOf", json!({ "anyOf": branches }));
}
