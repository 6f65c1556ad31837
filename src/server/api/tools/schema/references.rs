//! Resolves the references of a schema to places in it. Pure.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::forms::{append, escaped, percent_decoded};
use super::{DEEPEST, MOST_SCHEMAS, Notice};

/// Keywords whose value has schemas by name.
const NAMED: [&str; 6] = [
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
    "dependencies",
];
/// Keywords whose value is a schema or a list of schemas.
const SCHEMAS: [&str; 17] = [
    "additionalProperties",
    "additionalItems",
    "items",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
    "anyOf",
    "oneOf",
    "allOf",
    "prefixItems",
    "$ref",
];
/// Keywords whose value is data, in which nothing is a schema.
const DATA: [&str; 4] = ["const", "enum", "default", "examples"];
/// Keywords that may say `null`. Any other one that does was left empty by a library, and says nothing.
const NULLABLE: [&str; 3] = ["const", "default", "example"];

/// The schema with each reference as `#` and the JSON pointer of its target, and without identifiers and
/// keywords that are `null`.
/// A `$dynamicRef` that depends on where it is reached from is left as it is.
///
/// # Errors
/// The first reference that leads nowhere in the schema.
pub(crate) fn resolve(root: &Value) -> Result<Value, Notice> {
    let mut resolved = root.clone();
    let mut index = Index {
        root,
        resources: BTreeMap::new(),
        places: HashMap::new(),
        anchors: HashMap::new(),
        dynamic: HashMap::new(),
        seen: 0,
    };
    let outermost = Place {
        path: String::new(),
        resource: String::new(),
        known: true,
        depth: 0,
    };
    index.find(&mut resolved, outermost.clone());
    index.seen = 0;
    index.replace(&mut resolved, outermost)?;
    Ok(resolved)
}

/// Where a schema is.
#[derive(Clone)]
struct Place {
    path: String,
    /// Pointer of the schema whose `$id` is its base.
    resource: String,
    /// Whether it is certainly a schema; below unknown keywords it may be one.
    known: bool,
    depth: usize,
}

struct Index<'a> {
    root: &'a Value,
    /// URIs of the schemas that have an `$id`, by pointer.
    resources: BTreeMap<String, String>,
    /// The other way round.
    places: HashMap<String, String>,
    /// Pointers by the resource that has the anchor, and the anchor.
    anchors: HashMap<(String, String), String>,
    /// Pointers and resources of dynamic anchors, by name.
    dynamic: HashMap<String, Vec<(String, String)>>,
    seen: usize,
}

impl Index<'_> {
    fn find(&mut self, schema: &mut Value, mut at: Place) {
        self.seen += 1;
        let Value::Object(object) = schema else {
            return;
        };
        if at.depth > DEEPEST || self.seen > MOST_SCHEMAS {
            return;
        }
        let text = |object: &Map<String, Value>, key: &str| {
            object.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        match text(object, "$id") {
            Some(id) if id.starts_with('#') => self.anchor(&id[1..], &at),
            Some(id) => {
                let uri = join(self.base(&at), id.trim_end_matches('#'));
                self.places
                    .entry(uri.clone())
                    .or_insert_with(|| at.path.clone());
                self.resources.insert(at.path.clone(), uri);
                at.resource.clone_from(&at.path);
            }
            None => {}
        }
        if let Some(name) = text(object, "$anchor") {
            self.anchor(&name, &at);
        }
        if let Some(name) = text(object, "$dynamicAnchor") {
            self.anchor(&name, &at);
            let all = self.dynamic.entry(name).or_default();
            all.push((at.path.clone(), at.resource.clone()));
        }
        for (inner, place) in children(object, &at) {
            self.find(inner, place);
        }
    }

    fn anchor(&mut self, name: &str, at: &Place) {
        let key = (at.resource.clone(), name.to_owned());
        self.anchors.entry(key).or_insert_with(|| at.path.clone());
    }

    fn base(&self, at: &Place) -> &str {
        self.resources.get(&at.resource).map_or("", String::as_str)
    }

    fn replace(&mut self, schema: &mut Value, mut at: Place) -> Result<(), Notice> {
        self.seen += 1;
        let Value::Object(object) = schema else {
            return Ok(());
        };
        if at.depth > DEEPEST || self.seen > MOST_SCHEMAS {
            return Ok(());
        }
        if self.resources.contains_key(&at.path) {
            at.resource.clone_from(&at.path);
        }
        for keyword in ["$ref", "$dynamicRef", "$recursiveRef"] {
            self.reference(object, keyword, &at)?;
        }
        for keyword in ["$id", "$anchor", "$dynamicAnchor", "$recursiveAnchor"] {
            if object.get(keyword).is_some_and(|value| !value.is_object()) {
                object.remove(keyword);
            }
        }
        if at.known {
            object.retain(|key, value| !value.is_null() || NULLABLE.contains(&key.as_str()));
        }
        for (inner, place) in children(object, &at) {
            self.replace(inner, place)?;
        }
        Ok(())
    }

    fn reference(
        &self,
        object: &mut Map<String, Value>,
        keyword: &str,
        at: &Place,
    ) -> Result<(), Notice> {
        let Some(Value::String(reference)) = object.get(keyword) else {
            return Ok(());
        };
        let Some(mut pointer) = self.target(reference, at) else {
            let notice = Notice {
                path: at.path.clone(),
                keyword: format!("{keyword} {reference}"),
            };
            return if at.known { Err(notice) } else { Ok(()) };
        };
        if keyword == "$dynamicRef" {
            match self.dynamic_target(reference, &pointer) {
                Some(dynamic) => pointer = dynamic,
                None => return Ok(()),
            }
        } else if keyword == "$recursiveRef" && self.root["$recursiveAnchor"] == Value::Bool(true) {
            pointer = String::new();
        }
        object.remove(keyword);
        let pointer = Value::String(format!("#{pointer}"));
        if object.contains_key("$ref") && keyword != "$ref" {
            let second = Map::from_iter([("$ref".to_owned(), pointer)]);
            append(object, "allOf", Value::Object(second));
        } else {
            object.insert("$ref".into(), pointer);
        }
        Ok(())
    }

    /// The pointer of the schema that a reference names.
    fn target(&self, reference: &str, at: &Place) -> Option<String> {
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let resource = match uri {
            "" => &at.resource,
            uri => self.places.get(&join(self.base(at), uri))?,
        };
        let fragment = percent_decoded(fragment)?;
        let pointer = if fragment.is_empty() || fragment.starts_with('/') {
            format!("{resource}{fragment}")
        } else {
            let key = (resource.clone(), fragment);
            self.anchors.get(&key)?.clone()
        };
        let target = self.root.pointer(&pointer)?;
        (target.is_object() || target.is_boolean()).then_some(pointer)
    }

    /// Where a `$dynamicRef` whose static target is known leads to; `None` if that depends on the way to it.
    fn dynamic_target(&self, reference: &str, pointer: &str) -> Option<String> {
        let name = reference.split_once('#').map_or("", |(_, name)| name);
        let same = self.dynamic.get(name).map_or(&[][..], Vec::as_slice);
        if !same.iter().any(|(path, _)| path == pointer) {
            return Some(pointer.to_owned());
        }
        // The outermost schema is on every way.
        let outermost = same.iter().find(|(_, resource)| resource.is_empty());
        let (path, _) = outermost.or_else(|| same.first().filter(|_| same.len() == 1))?;
        Some(path.clone())
    }
}

/// The schemas in a schema.
fn children<'m>(object: &'m mut Map<String, Value>, at: &Place) -> Vec<(&'m mut Value, Place)> {
    let mut found = Vec::new();
    for (key, value) in object {
        let key = key.as_str();
        if DATA.contains(&key) {
            continue;
        }
        let named = NAMED.contains(&key);
        let place = |path: String| Place {
            path,
            known: at.known && (named || SCHEMAS.contains(&key)),
            depth: at.depth + 1,
            resource: at.resource.clone(),
        };
        let path = format!("{}/{}", at.path, escaped(key));
        if named && value.is_object() {
            for (name, schema) in value.as_object_mut().into_iter().flatten() {
                found.push((schema, place(format!("{path}/{}", escaped(name)))));
            }
        } else if value.is_array() {
            for (i, schema) in value.as_array_mut().into_iter().flatten().enumerate() {
                found.push((schema, place(format!("{path}/{i}"))));
            }
        } else {
            found.push((value, place(path)));
        }
    }
    found
}

/// A reference relative to a base URI.
fn join(base: &str, reference: &str) -> String {
    let scheme = |uri: &str| {
        let (scheme, _) = uri.split_once(':')?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        (!scheme.is_empty() && scheme.chars().all(plain)).then_some(scheme.len() + 1)
    };
    if scheme(reference).is_some() {
        return reference.to_owned();
    }
    let after_scheme = scheme(base).unwrap_or(0);
    if reference.starts_with("//") {
        return format!("{}{reference}", &base[..after_scheme]);
    }
    let authority = match base[after_scheme..].strip_prefix("//") {
        Some(rest) => after_scheme + 2 + rest.find('/').unwrap_or(rest.len()),
        None => after_scheme,
    };
    let (origin, path) = base.split_at(authority);
    let mut parts: Vec<&str> = match reference.starts_with('/') {
        true => Vec::new(),
        false => path.split('/').collect(),
    };
    parts.pop();
    for part in reference.split('/') {
        match part {
            "." => {}
            ".." if parts.len() > 1 => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    match origin.is_empty() || path.starts_with('/') {
        true => format!("{origin}{path}"),
        false => format!("{origin}/{path}"),
    }
}
