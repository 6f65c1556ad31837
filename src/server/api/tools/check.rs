//! Checks finished answers against the schema that was asked for. Pure.
//!
//! A grammar enforces most of a schema; this says whether the rest holds, too. Schemas come from clients, so
//! the work is counted: libraries that validate have no such bound, and a few kilobytes of `allOf` and `$ref`
//! keep them busy for hours. `boon` is the oracle of the tests.

mod in_place;
mod place;
#[cfg(test)]
pub(super) mod tests;
mod values;

use std::collections::HashMap;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use place::{At, Evaluated};
pub(super) use values::equal;
use values::{broken_limit, type_matches};

/// Schemas applied to values, and values compared: some milliseconds.
const MOST_STEPS: usize = 100_000;
/// Schemas that are applied within one another; each takes about a kilobyte of stack.
const DEEPEST: usize = 200;
/// What the reader says of JSON with a number that no floating-point number holds.
const TOO_LARGE: &str = "number out of range";
/// Compiled size of a pattern, in bytes.
const PATTERN_BYTES: usize = 1 << 20;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Valid,
    /// The keyword that does not hold, and the JSON pointer of the value.
    Invalid {
        keyword: String,
        path: String,
    },
    /// Why it cannot be told.
    Unknown(String),
}

/// Checks a text against a schema whose references are pointers.
pub(crate) fn check(schema: &Value, text: &str) -> Verdict {
    let value = match serde_json::from_str::<Value>(text) {
        Ok(value) => value,
        Err(error) if error.to_string().starts_with(TOO_LARGE) => {
            return Verdict::Unknown("it has a number that is too large".into());
        }
        Err(_) => {
            return Verdict::Invalid {
                keyword: "JSON".into(),
                path: String::new(),
            };
        }
    };
    let mut checker = Checker {
        root: schema,
        patterns: HashMap::new(),
        steps: 0,
        trying: 0,
        fault: None,
    };
    let at = At::default();
    match checker.holds(schema, &value, at, &mut Evaluated::default()) {
        Ok(true) => Verdict::Valid,
        Ok(false) => {
            let (keyword, path) = checker.fault.unwrap_or_default();
            Verdict::Invalid { keyword, path }
        }
        Err(why) => Verdict::Unknown(why),
    }
}

/// Whether something holds; an error ends the check.
type Held = Result<bool, String>;

struct Checker<'a> {
    root: &'a Value,
    patterns: HashMap<&'a str, Regex>,
    steps: usize,
    /// How many schemas are tried that need not hold.
    trying: usize,
    fault: Option<(String, String)>,
}

impl<'a> Checker<'a> {
    fn step(&mut self, steps: usize) -> Result<(), String> {
        self.steps = self.steps.saturating_add(steps);
        match self.steps > MOST_STEPS {
            true => Err("the check takes too much work".into()),
            false => Ok(()),
        }
    }

    fn fails(&mut self, keyword: &str, at: At<'_>) -> Held {
        if self.trying == 0 && self.fault.is_none() {
            self.fault = Some((keyword.to_owned(), at.pointer()));
        }
        Ok(false)
    }

    /// Whether a value fits a schema; adds what the schema evaluates of it.
    fn holds(
        &mut self,
        schema: &'a Value,
        value: &Value,
        at: At<'_>,
        seen: &mut Evaluated,
    ) -> Held {
        self.step(1)?;
        if at.depth > DEEPEST {
            return Err("its schemas are nested too deeply".into());
        }
        let Value::Object(object) = schema else {
            return match schema {
                Value::Bool(false) => self.fails("false", at),
                _ => Ok(true),
            };
        };
        if let Some(keyword) = self.broken(object, value)? {
            return self.fails(keyword, at);
        }
        let parts = match value {
            Value::Object(fields) => self.fields(object, fields, at, seen)?,
            Value::Array(items) => self.items(object, items, at, seen)?,
            _ => true,
        };
        if !parts || !self.in_place(object, value, at, seen)? {
            return Ok(false);
        }
        self.unevaluated(object, value, at, seen)
    }

    /// A keyword that a value breaks by itself.
    fn broken(
        &mut self,
        object: &'a Map<String, Value>,
        value: &Value,
    ) -> Result<Option<&'static str>, String> {
        if object
            .get("type")
            .is_some_and(|kind| !type_matches(kind, value))
        {
            return Ok(Some("type"));
        }
        if object.get("const").is_some_and(|one| !equal(one, value)) {
            return Ok(Some("const"));
        }
        if let Some(Value::Array(all)) = object.get("enum") {
            self.step(all.len())?;
            if !all.iter().any(|one| equal(one, value)) {
                return Ok(Some("enum"));
            }
        }
        if let (Some(Value::String(pattern)), Value::String(text)) = (object.get("pattern"), value)
            && !self.matches(pattern, text)?
        {
            return Ok(Some("pattern"));
        }
        if let (Some(Value::Bool(true)), Value::Array(items)) = (object.get("uniqueItems"), value) {
            self.step(items.len() * items.len() / 2)?;
            let again = |(i, item): (usize, &Value)| items[..i].iter().any(|one| equal(one, item));
            if items.iter().enumerate().any(again) {
                return Ok(Some("uniqueItems"));
            }
        }
        Ok(broken_limit(object, value))
    }

    fn matches(&mut self, pattern: &'a str, text: &str) -> Held {
        self.step(text.len() / 16)?;
        if !self.patterns.contains_key(pattern) {
            self.step(pattern.len())?;
            let compiled = RegexBuilder::new(pattern)
                .size_limit(PATTERN_BYTES)
                .dfa_size_limit(PATTERN_BYTES)
                .build();
            let compiled =
                compiled.map_err(|_| format!("the pattern {pattern} cannot be checked"))?;
            self.patterns.insert(pattern, compiled);
        }
        Ok(self
            .patterns
            .get(pattern)
            .is_some_and(|known| known.is_match(text)))
    }

    fn fields(
        &mut self,
        object: &'a Map<String, Value>,
        fields: &Map<String, Value>,
        at: At<'_>,
        seen: &mut Evaluated,
    ) -> Held {
        let schemas = |key: &str| object.get(key).and_then(Value::as_object);
        for (name, value) in fields {
            let inner = at.field(name);
            let mut known = false;
            if let Some(schema) = schemas("properties").and_then(|all| all.get(name)) {
                known = true;
                if !self.part(schema, value, inner)? {
                    return Ok(false);
                }
            }
            for (pattern, schema) in schemas("patternProperties").into_iter().flatten() {
                if self.matches(pattern, name)? {
                    known = true;
                    if !self.part(schema, value, inner)? {
                        return Ok(false);
                    }
                }
            }
            if let Some(schema) = object.get("additionalProperties").filter(|_| !known) {
                known = true;
                if !self.rest("additionalProperties", schema, value, inner)? {
                    return Ok(false);
                }
            }
            if let Some(schema) = object.get("propertyNames") {
                let name = Value::String(name.clone());
                if !self.tries(schema, &name, inner, &mut Evaluated::default())? {
                    return self.fails("propertyNames", inner);
                }
            }
            if known {
                seen.names.insert(name.clone());
            }
        }
        Ok(true)
    }

    fn items(
        &mut self,
        object: &'a Map<String, Value>,
        items: &[Value],
        at: At<'_>,
        seen: &mut Evaluated,
    ) -> Held {
        // Before 2020-12, `items` may be a list, and `additionalItems` are those after it.
        let (first, rest) = match (object.get("prefixItems"), object.get("items")) {
            (_, Some(Value::Array(first))) => (Some(first), object.get("additionalItems")),
            (first, rest) => (first.and_then(Value::as_array), rest),
        };
        let first = first.map_or(&[][..], Vec::as_slice);
        for (i, item) in items.iter().enumerate() {
            let Some(schema) = first.get(i).or(rest) else {
                break;
            };
            seen.items.insert(i);
            if !self.part(schema, item, at.item(i))? {
                return Ok(false);
            }
        }
        let Some(schema) = object.get("contains") else {
            return Ok(true);
        };
        let mut found: u32 = 0;
        for (i, item) in items.iter().enumerate() {
            if self.tries(schema, item, at.item(i), &mut Evaluated::default())? {
                found += 1;
                seen.items.insert(i);
            }
        }
        let limit = |key: &str| object.get(key).and_then(Value::as_f64);
        if f64::from(found) < limit("minContains").unwrap_or(1.0) {
            return self.fails("contains", at);
        }
        match limit("maxContains") {
            Some(most) if f64::from(found) > most => self.fails("maxContains", at),
            _ => Ok(true),
        }
    }

    /// Whether a part of a value fits.
    fn part(&mut self, schema: &'a Value, value: &Value, at: At<'_>) -> Held {
        self.holds(schema, value, at, &mut Evaluated::default())
    }

    /// As [`Self::part`], where the schema is often `false`, which says nothing by itself.
    fn rest(&mut self, keyword: &str, schema: &'a Value, value: &Value, at: At<'_>) -> Held {
        match schema {
            Value::Bool(false) => self.fails(keyword, at),
            schema => self.part(schema, value, at),
        }
    }

    /// Whether a value fits a schema that it need not fit.
    fn tries(
        &mut self,
        schema: &'a Value,
        value: &Value,
        at: At<'_>,
        seen: &mut Evaluated,
    ) -> Held {
        self.trying += 1;
        let mut more = Evaluated::default();
        let held = self.holds(schema, value, at.deeper(), &mut more);
        self.trying -= 1;
        if held == Ok(true) {
            seen.extend(more);
        }
        held
    }
}
