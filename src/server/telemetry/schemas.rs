//! JSON schemas of labels in the answers of operator routes.

use schemars::{Schema, SchemaGenerator, json_schema};

use realign_core::AlignmentState;

use super::{Outcome, Stage};

/// Schema of a stage's label.
pub(crate) fn stage(_: &mut SchemaGenerator) -> Schema {
    one_of(Stage::ALL.iter().map(|stage| stage.as_str()))
}

/// Schema of an alignment state's label.
pub(crate) fn alignment_state(_: &mut SchemaGenerator) -> Schema {
    one_of(AlignmentState::ALL.iter().map(|state| state.as_str()))
}

/// Schema of an outcome's label or `null`.
pub(crate) fn outcome_or_null(_: &mut SchemaGenerator) -> Schema {
    let labels = Outcome::ALL.iter().map(|outcome| outcome.as_str());
    let mut allowed: Vec<Option<&str>> = labels.map(Some).collect();
    allowed.push(None);
    json_schema!({"type": ["string", "null"], "enum": allowed})
}

/// Schema of `running` or an outcome's label.
pub(crate) fn status(_: &mut SchemaGenerator) -> Schema {
    let labels = Outcome::ALL.iter().map(|outcome| outcome.as_str());
    one_of(std::iter::once("running").chain(labels))
}

fn one_of(labels: impl Iterator<Item = &'static str>) -> Schema {
    json_schema!({"type": "string", "enum": labels.collect::<Vec<_>>()})
}
