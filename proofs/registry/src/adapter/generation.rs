//! A generation without a model.

use std::fmt;

/// Its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationId(pub String);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A generation.
#[derive(Debug)]
pub struct Generation {
    /// Its id.
    pub id: GenerationId,
    /// The policy set it was trained for.
    pub policy_revision: Option<String>,
}
