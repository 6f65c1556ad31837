//! Makes a client's JSON schema one that a grammar can enforce, and says what of it is left to the model.
//!
//! References become plain pointers, keywords that have an equivalent form are rewritten, and what cannot
//! be enforced is removed. Each removal is a [`Notice`]: without `strict` the client is told of it in a
//! header, with `strict` the request is refused. Finished answers are checked against the schema as it was
//! sent ([`super::check`]). Pure.

mod branches;
mod forms;
mod named;
mod references;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use branches::{conditions, dependents, exclusive, unevaluated};
use forms::{
    append, bound_numbers, bound_sizes, escaped, is_countable, is_regular, names_as_patterns,
    whole_sizes, without,
};
pub(crate) use named::only_named;
pub(crate) use references::resolve;

/// Largest integer that every JSON reader keeps exactly; it bounds numbers that have no bound of their own,
/// because small models write digits without end.
const MOST: i64 = 9_007_199_254_740_991;
/// Schemas that are looked at: what a client nests deeper or longer is refused by the grammar's bounds.
const MOST_SCHEMAS: usize = 50_000;
/// Deepest nesting of schemas.
const DEEPEST: usize = 128;
/// Keywords that no grammar enforces.
const NOT_ENFORCED: [&str; 14] = [
    "not",
    "if",
    "then",
    "else",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
];
/// Keywords whose value is a schema.
const ONE: [&str; 4] = [
    "additionalProperties",
    "additionalItems",
    "items",
    "contentSchema",
];
/// Keywords whose value is a list of schemas.
const SEVERAL: [&str; 5] = ["anyOf", "oneOf", "allOf", "prefixItems", "items"];
/// Keywords whose value has schemas by name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Begins the names of definitions that references are pointed to.
const DEFINED: &str = "/$defs/realign-";

/// A keyword that is left to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// JSON pointer of the schema that has it.
    pub(crate) path: String,
    pub(crate) keyword: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at #{}", self.keyword, self.path)
    }
}

/// How much is left to the model where less cannot be compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effort {
    /// Only what no grammar enforces.
    Most,
    /// Of `oneOf`, also that only one schema matches.
    AnyOf,
    /// Patterns and formats, too.
    NoPatterns,
    /// Everything but that it is JSON of the schema's type.
    Type,
}

/// Sizes that arrays and strings get that have no bound of their own, so that small models end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) items: Option<usize>,
    /// In characters.
    pub(crate) length: Option<usize>,
}

/// The schema that is enforced, and what is left to the model. References must be resolved.
pub(crate) fn enforceable(schema: &Value, effort: Effort, bounds: Bounds) -> (Value, Vec<Notice>) {
    if effort == Effort::Type {
        let kind = schema.get("type").filter(|kind| kind.is_string());
        let all = Notice {
            path: String::new(),
            keyword: "the schema".into(),
        };
        return (
            kind.map_or_else(|| json!({}), |kind| json!({ "type": kind })),
            vec![all],
        );
    }
    let mut work = Work {
        root: schema,
        effort,
        bounds,
        notices: Vec::new(),
        names: BTreeMap::new(),
        open: Vec::new(),
        seen: 0,
    };
    let mut enforced = work.schema(schema, String::new(), 0);
    let mut definitions = Map::new();
    while let Some(pointer) = work.open.pop() {
        let Some(target) = work.root.pointer(&pointer) else {
            continue;
        };
        let name = work.names.get(&pointer).cloned().unwrap_or_default();
        let definition = work.schema(target, pointer, 0);
        definitions.insert(name, definition);
    }
    if let (Value::Object(object), false) = (&mut enforced, definitions.is_empty()) {
        let own = object.entry("$defs").or_insert_with(|| json!({}));
        if let Value::Object(own) = own {
            own.extend(definitions);
        }
    }
    work.notices
        .sort_by(|a, b| (&a.path, &a.keyword).cmp(&(&b.path, &b.keyword)));
    work.notices.dedup();
    (enforced, work.notices)
}

struct Work<'a> {
    root: &'a Value,
    effort: Effort,
    bounds: Bounds,
    notices: Vec<Notice>,
    /// Names of definitions that references were pointed to, by the pointer of their target.
    names: BTreeMap<String, String>,
    /// Targets that have a name and no definition yet.
    open: Vec<String>,
    seen: usize,
}

impl Work<'_> {
    fn notice(&mut self, path: &str, keyword: &str) {
        self.notices.push(Notice {
            path: path.to_owned(),
            keyword: keyword.to_owned(),
        });
    }

    fn schema(&mut self, schema: &Value, path: String, depth: usize) -> Value {
        let Value::Object(object) = schema else {
            return schema.clone();
        };
        self.seen += 1;
        if depth > DEEPEST || self.seen > 4 * MOST_SCHEMAS {
            self.notice(&path, "nesting");
            return json!({});
        }
        let mut object = object.clone();
        self.reference(&mut object, &path);
        for keyword in unevaluated(&mut object, self.root) {
            self.notice(&path, keyword);
        }
        Self::rewrite(&mut object);
        if self.effort < Effort::NoPatterns {
            self.branch(&mut object, &path, depth);
        }
        for keyword in NOT_ENFORCED {
            if object.remove(keyword).is_some() {
                self.notice(&path, keyword);
            }
        }
        if self.effort >= Effort::AnyOf
            && let Some(options) = object.remove("oneOf")
        {
            self.notice(&path, "oneOf");
            let either = json!({ "anyOf": options });
            match object.contains_key("anyOf") {
                true => append(&mut object, "allOf", either),
                false => object.extend(either.as_object().cloned().unwrap_or_default()),
            }
        }
        if object
            .get("multipleOf")
            .is_some_and(|step| !is_countable(step))
        {
            object.remove("multipleOf");
            self.notice(&path, "multipleOf");
        }
        self.patterns(&mut object, &path);
        bound_numbers(&mut object);
        bound_sizes(&mut object, self.bounds);
        self.inner(object, &path, depth)
    }

    /// The schemas inside.
    fn inner(&mut self, object: Map<String, Value>, path: &str, depth: usize) -> Value {
        let walked = object.into_iter().map(|(key, value)| {
            let path = format!("{path}/{}", escaped(&key));
            let value = match value {
                Value::Array(items) if SEVERAL.contains(&&*key) => {
                    let walk = |(index, item): (usize, Value)| {
                        self.schema(&item, format!("{path}/{index}"), depth + 1)
                    };
                    Value::Array(items.into_iter().enumerate().map(walk).collect())
                }
                Value::Object(named) if NAMED.contains(&&*key) => {
                    let walk = |(name, item): (String, Value)| {
                        let path = format!("{path}/{}", escaped(&name));
                        let item = self.schema(&item, path, depth + 1);
                        (name, item)
                    };
                    Value::Object(named.into_iter().map(walk).collect())
                }
                value @ Value::Object(_) if ONE.contains(&&*key) => {
                    self.schema(&value, path, depth + 1)
                }
                other => other,
            };
            (key, value)
        });
        Value::Object(walked.collect())
    }

    /// Rewrites keywords that depend on other parts of the value.
    fn branch(&mut self, object: &mut Map<String, Value>, path: &str, depth: usize) {
        // What moves is walked where it was, so that notices name its place.
        for keyword in ["then", "else", "dependentSchemas", "dependencies"] {
            self.walk_before(object, keyword, path, depth);
        }
        if let Some(Value::Array(all)) = object.get_mut("allOf") {
            for (i, inner) in all.iter_mut().enumerate() {
                if let Value::Object(inner) = inner {
                    for keyword in ["then", "else"] {
                        self.walk_before(inner, keyword, &format!("{path}/allOf/{i}"), depth + 1);
                    }
                }
            }
        }
        conditions(object, self.root);
        dependents(object);
        exclusive(object);
    }

    /// Walks the schemas of a keyword that is to be rewritten, and leaves them where they are.
    fn walk_before(
        &mut self,
        object: &mut Map<String, Value>,
        keyword: &str,
        path: &str,
        depth: usize,
    ) {
        let named = keyword.starts_with("depend");
        match object.get_mut(keyword) {
            Some(Value::Object(schemas)) if named => {
                for (name, schema) in schemas.iter_mut().filter(|(_, s)| s.is_object()) {
                    let path = format!("{path}/{keyword}/{}", escaped(name));
                    *schema = self.schema(schema, path, depth + 1);
                }
            }
            Some(schema) => {
                *schema = self.schema(schema, format!("{path}/{keyword}"), depth + 1);
            }
            None => {}
        }
    }

    /// Points references to definitions that a plain pointer reaches.
    fn reference(&mut self, object: &mut Map<String, Value>, path: &str) {
        for keyword in ["$dynamicRef", "$recursiveRef"] {
            if let Some(reference) = object.remove(keyword) {
                let reference = reference.as_str().unwrap_or_default();
                self.notice(path, &format!("{keyword} {reference}"));
            }
        }
        let Some(reference) = object.get("$ref").and_then(Value::as_str) else {
            return;
        };
        let pointer = reference.strip_prefix('#').unwrap_or("?");
        if pointer.is_empty() || pointer.starts_with(DEFINED) || is_definition(pointer) {
            return;
        }
        if self.root.pointer(pointer).is_none() {
            let keyword = format!("$ref {reference}");
            object.remove("$ref");
            return self.notice(path, &keyword);
        }
        let name = match self.names.get(pointer) {
            Some(name) => name.clone(),
            None => {
                let next = format!("realign-{}", self.names.len());
                self.names.insert(pointer.to_owned(), next.clone());
                self.open.push(pointer.to_owned());
                next
            }
        };
        object.insert("$ref".into(), format!("#/$defs/{name}").into());
    }

    /// Keywords that have an equivalent form which is enforced.
    fn rewrite(object: &mut Map<String, Value>) {
        whole_sizes(object);
        if let Some(names) = object.get("propertyNames").cloned()
            && names_as_patterns(object, &names)
        {
            object.remove("propertyNames");
        }
        if let Some(not) = object.get("not").cloned()
            && without(object, &not)
        {
            object.remove("not");
        }
        if object.get("uniqueItems") == Some(&Value::Bool(false)) {
            object.remove("uniqueItems");
        }
        // Without `if`, `then` and `else` mean nothing, and so does `if` without them.
        if !object.contains_key("then") && !object.contains_key("else") {
            object.remove("if");
        }
        if !object.contains_key("if") {
            object.remove("then");
            object.remove("else");
        }
        if !object.contains_key("contains") {
            object.remove("minContains");
            object.remove("maxContains");
        }
    }

    /// Removes patterns that a grammar cannot follow.
    fn patterns(&mut self, object: &mut Map<String, Value>, path: &str) {
        let all = self.effort >= Effort::NoPatterns;
        let odd = |pattern: &Value| pattern.as_str().is_none_or(|text| all || !is_regular(text));
        if object.get("pattern").is_some_and(odd) {
            object.remove("pattern");
            self.notice(path, "pattern");
        }
        if all && object.remove("format").is_some() {
            self.notice(path, "format");
        }
        let by_name = object.get("patternProperties").and_then(Value::as_object);
        if by_name.is_some_and(|named| named.keys().any(|name| all || !is_regular(name))) {
            object.remove("patternProperties");
            // What the patterns allowed must stay allowed.
            object.remove("additionalProperties");
            self.notice(path, "patternProperties");
        }
    }
}

/// Whether a pointer leads to a definition that is walked, and has no characters that URIs escape.
fn is_definition(pointer: &str) -> bool {
    let name = pointer.strip_prefix("/$defs/");
    let name = name.or_else(|| pointer.strip_prefix("/definitions/"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    name.is_some_and(|name| !name.is_empty() && name.chars().all(plain))
}
