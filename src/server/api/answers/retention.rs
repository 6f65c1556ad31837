//! The answer to a request to remove what exceeds `[retention]`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

/// What went, or would go, and why everything else stays.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Collected {
    /// Whether nothing was removed because only the plan was asked for.
    pub(crate) dry_run: bool,
    /// Every adapter, most recently used first.
    pub(crate) adapters: Vec<CollectedAdapter>,
    /// Bytes of the adapters that went.
    pub(crate) freed_bytes: u64,
    /// Bytes of the adapters that stay.
    pub(crate) kept_bytes: u64,
    /// What went, by kind: `adapter`, `checkpoint`, `realignment`, `score`, `verdict`,
    /// `exam_answer`, `judge_score`, `corrective_response`, `refusal`, `probe`.
    pub(crate) removed: BTreeMap<&'static str, u64>,
}

/// What happened, or would happen, to an adapter.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct CollectedAdapter {
    /// Generation id.
    pub(crate) id: String,
    /// Size of its files.
    pub(crate) bytes: u64,
    /// When it was last published or led to by a realignment, in Unix seconds.
    pub(crate) used_at: Option<u64>,
    /// Whether it went, or would go.
    pub(crate) removed: bool,
    /// Why.
    pub(crate) reason: Reason,
}

/// Why an adapter goes or stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Reason {
    /// It serves.
    Serves,
    /// A rollback returns to it.
    RollbackTarget,
    /// The active policies led to it.
    ActivePolicies,
    /// A running request uses it.
    Leased,
    /// It was imported; only an age given by hand removes it.
    Imported,
    /// Its manifest cannot be read, so nothing is known about it.
    Unreadable,
    /// It is within the limits.
    WithinLimits,
    /// It should go, but could not be removed; the log says why.
    NotRemoved,
    /// More adapters than `retention.generations` were used more recently.
    BeyondCount,
    /// It has not been used for longer than allowed.
    BeyondAge,
    /// All adapters together are larger than `retention.megabytes`.
    BeyondBytes,
}

impl Reason {
    /// Whether it is a reason to go.
    pub(crate) fn removes(self) -> bool {
        match self {
            Reason::BeyondCount | Reason::BeyondAge | Reason::BeyondBytes => true,
            Reason::Serves
            | Reason::RollbackTarget
            | Reason::ActivePolicies
            | Reason::Leased
            | Reason::Imported
            | Reason::Unreadable
            | Reason::WithinLimits
            | Reason::NotRemoved => false,
        }
    }
}
