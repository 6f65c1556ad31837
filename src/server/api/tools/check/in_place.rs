//! Schemas that apply to the same value as the one that has them.

use serde_json::{Map, Value};

use super::place::{At, Evaluated};
use super::{Checker, Held};

impl<'a> Checker<'a> {
    /// Schemas that apply to the same value.
    pub(super) fn in_place(
        &mut self,
        object: &'a Map<String, Value>,
        value: &Value,
        at: At<'_>,
        seen: &mut Evaluated,
    ) -> Held {
        if let Some(reference) = object.get("$dynamicRef") {
            return Err(format!("$dynamicRef {reference} has several targets"));
        }
        let mut all: Vec<&'a Value> = Vec::new();
        if let Some(Value::String(reference)) = object.get("$ref") {
            let pointer = reference.strip_prefix('#');
            let target = pointer.and_then(|pointer| self.root.pointer(pointer));
            all.push(target.ok_or_else(|| format!("$ref {reference} cannot be followed"))?);
        }
        if let Some(Value::Array(schemas)) = object.get("allOf") {
            all.extend(schemas);
        }
        if let Value::Object(fields) = value {
            for keyword in ["dependentSchemas", "dependencies"] {
                let depending = object.get(keyword).and_then(Value::as_object);
                let present = depending.into_iter().flatten();
                let present = present.filter(|(name, _)| fields.contains_key(*name));
                all.extend(present.map(|(_, schema)| schema).filter(|s| !s.is_array()));
            }
        }
        if let Some(condition) = object.get("if") {
            let branch = match self.tries(condition, value, at, seen)? {
                true => "then",
                false => "else",
            };
            all.extend(object.get(branch));
        }
        for schema in all {
            // A schema sees what those inside of it evaluate, and not what those beside it do.
            let mut own = Evaluated::default();
            if !self.holds(schema, value, at.deeper(), &mut own)? {
                return Ok(false);
            }
            seen.extend(own);
        }
        self.choices(object, value, at, seen)
    }

    fn choices(
        &mut self,
        object: &'a Map<String, Value>,
        value: &Value,
        at: At<'_>,
        seen: &mut Evaluated,
    ) -> Held {
        for (keyword, one) in [("anyOf", false), ("oneOf", true)] {
            let Some(Value::Array(schemas)) = object.get(keyword) else {
                continue;
            };
            let mut found = 0;
            for schema in schemas {
                found += usize::from(self.tries(schema, value, at, seen)?);
            }
            if found == 0 || (one && found > 1) {
                return self.fails(keyword, at);
            }
        }
        match object.get("not") {
            Some(not) if self.tries(not, value, at, &mut Evaluated::default())? => {
                self.fails("not", at)
            }
            _ => Ok(true),
        }
    }

    pub(super) fn unevaluated(
        &mut self,
        object: &'a Map<String, Value>,
        value: &Value,
        at: At<'_>,
        seen: &mut Evaluated,
    ) -> Held {
        if let (Some(schema), Value::Object(fields)) = (object.get("unevaluatedProperties"), value)
        {
            for (name, value) in fields {
                let new = seen.names.insert(name.clone());
                if new && !self.rest("unevaluatedProperties", schema, value, at.field(name))? {
                    return Ok(false);
                }
            }
        }
        if let (Some(schema), Value::Array(items)) = (object.get("unevaluatedItems"), value) {
            for (i, item) in items.iter().enumerate() {
                let new = seen.items.insert(i);
                if new && !self.rest("unevaluatedItems", schema, item, at.item(i))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
