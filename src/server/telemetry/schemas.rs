//! JSON schemas of the labels that answers of the operator routes hold.

use schemars::{Schema, SchemaGenerator, json_schema};

use super::{Outcome, Stage};

/// A stage.
pub fn stage(_: &mut SchemaGenerator) -> Schema {
    one_of(Stage::ALL.iter().map(|stage| stage.as_str()))
}

/// An outcome, or `null`.
pub fn outcome_or_null(_: &mut SchemaGenerator) -> Schema {
    let labels = Outcome::ALL.iter().map(|outcome| outcome.as_str());
    let mut allowed: Vec<Option<&str>> = labels.map(Some).collect();
    allowed.push(None);
    json_schema!({"type": ["string", "null"], "enum": allowed})
}

/// `running`, or an outcome.
pub fn status(_: &mut SchemaGenerator) -> Schema {
    let labels = Outcome::ALL.iter().map(|outcome| outcome.as_str());
    one_of(std::iter::once("running").chain(labels))
}

fn one_of(labels: impl Iterator<Item = &'static str>) -> Schema {
    json_schema!({"type": "string", "enum": labels.collect::<Vec<_>>()})
}
