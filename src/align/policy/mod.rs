//! Policy files: schema, parsing with line numbers, content revision, tests, diff, watch.
//!
//! A directory of YAML files becomes a [`PolicySet`]: validated, hashed, and tested against the
//! rules' own examples. Loading reports every error of every file at once; a set with an error
//! is never constructed, so every [`PolicySet`] can be served and trained with.
//!
//! [`condition`] is the compiled boolean tree and its evaluation; `raw` is the file's shape, from
//! which `policies/policy.schema.json` is generated; [`watch`] only signals that
//! the directory should be read again.

mod compile;
pub mod condition;
mod contradictions;
pub mod diff;
pub mod error;
pub mod examples;
pub mod explain;
pub mod extend;
mod labelled;
pub mod matchers;
pub mod model;
mod parse;
mod prompts;
mod raw;
pub mod set;
mod snapshot;
mod thinking;
pub mod watch;

#[cfg(test)]
mod tests;

use serde::Serialize;
use sha2::{Digest, Sha256};

pub(crate) use compile::phrase_pattern;
pub use condition::{Condition, Exchange, MATCHER_VERSION, Pattern, TextTest};
pub use diff::{PolicyDiff, diff};
pub use error::{PolicyError, PolicyErrors};
pub use examples::{ExampleFailure, ExampleReport, RuleReport};
pub(crate) use explain::explain_rule;
pub use explain::{ExplainedVerdict, Found, RuleExplanation, Subject, TestExplanation};
pub use labelled::LabelledError;
pub use matchers::{
    CascadeStage, Cost, JudgeSpec, Labelled, Matcher, ProbeSpec, Score, Scores, TextOnly,
    UnsureRange,
};
pub use model::{
    DEFAULT_FITTED_MINIMUM, Enforcement, Example, ExampleVerdict, Gate, LengthUnit, Minimum,
    Policy, Rule, RuleOutcome, Severity, SourceLocation,
};
pub use set::PolicySet;
pub use snapshot::Snapshot;
pub use thinking::Thinking;
pub use watch::{PolicyWatcher, WatchError, WatchOptions};

/// The JSON Schema (draft 2020-12) of a policy file, pretty-printed, with a final newline.
///
/// `policies/policy.schema.json` holds this text; editors use it for completion.
pub fn schema_json() -> String {
    let mut text = format!("{:#}", schemars::schema_for!(raw::RawPolicy).to_value());
    text.push('\n');
    text
}

/// Reads labelled responses: JSON lines of `prompt`, `response` and `verdict`.
///
/// # Errors
/// [`LabelledError`]: the bytes are not UTF-8, a line is not a labelled response, or there are too
/// many.
pub fn read_labelled(bytes: &[u8]) -> Result<Vec<Labelled>, LabelledError> {
    labelled::parse(bytes)
}

/// SHA-256 (64 hex digits) over a value's JSON form, with fields in declaration order.
pub(crate) fn sha256_json<T: Serialize + ?Sized>(value: &T) -> String {
    // Serialisation to memory fails only for maps with keys that are not strings; the values
    // hashed in this crate hold no maps.
    let bytes = serde_json::to_vec(value).expect("values without maps serialise to JSON");
    hex::encode(Sha256::digest(bytes))
}
