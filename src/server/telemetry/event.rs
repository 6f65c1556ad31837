//! What can happen that an operator wants to know: one closed enum.
//!
//! Each event becomes a log line, a change of metrics and, for realignments, a message on the
//! admin event stream, so the three cannot disagree.

use std::time::Duration;

use serde::{Serialize, Serializer};

pub use realign_core::{LeaseCounts, LossPart, Outcome, Refusal, Stage, UnknownLabel};

pub use super::answers::{Judged, RequestFinished, RuleCount, RuleLabels};

/// A policy and the revision (content hash) that is active.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PolicyRevision {
    /// The policy's id.
    pub policy: String,
    /// Its revision.
    pub revision: String,
}

/// What the gate measured.
#[derive(Clone, Debug, Serialize)]
pub struct GateMeasured {
    /// Policy agreement of the generation that serves, 0 to 1.
    pub agreement_current: f64,
    /// Policy agreement of the candidate, 0 to 1.
    pub agreement_candidate: f64,
    /// Capability checks: name and change, candidate minus current.
    pub capability: Vec<(&'static str, f64)>,
    /// Whether the candidate was promoted.
    pub promoted: bool,
    /// One sentence: which check decided and by how much.
    pub reason: String,
}

/// The engine's load now and its totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineSnapshot {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences waiting.
    pub waiting: usize,
    /// Share of KV blocks that running sequences hold, 0 to 1.
    pub kv_cache_usage: f64,
    /// Total of prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Total of prompt tokens found there.
    pub prefix_hits: u64,
    /// Total of sequences that gave their KV blocks to older ones.
    pub preemptions: u64,
}

/// Everything that is logged and counted. `id` is the realignment's id throughout.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A policy set was read, tested and activated.
    PolicyReloaded {
        /// Revision of the whole set.
        revision: String,
        /// Its policies.
        policies: Vec<PolicyRevision>,
    },
    /// A policy set on disk was refused; the last good one stays active.
    PolicyReloadFailed {
        /// What is wrong, with file and line.
        error: String,
    },
    /// A realignment began.
    RealignmentStarted {
        /// Realignment.
        id: String,
        /// Revision of the policy set it realigns to.
        policy_revision: String,
    },
    /// A stage began.
    StageEntered {
        /// Realignment.
        id: String,
        /// Stage.
        stage: Stage,
    },
    /// A stage ended well.
    StageFinished {
        /// Realignment.
        id: String,
        /// Stage.
        stage: Stage,
        /// Wall time.
        #[serde(rename = "took_seconds", serialize_with = "seconds")]
        took: Duration,
    },
    /// The realignment as a whole advanced.
    Progress {
        /// Realignment.
        id: String,
        /// Stage it is in.
        stage: Stage,
        /// Done share of all stages, 0 to 1.
        ratio: f64,
    },
    /// Triage counted its categories.
    Triaged {
        /// Realignment.
        id: String,
        /// Pairs whose preference the policy turns around.
        invert: usize,
        /// Pairs whose responses both violate.
        punish: usize,
        /// Pairs the policy leaves as they are.
        retain: usize,
    },
    /// A training step's losses.
    TrainLoss {
        /// Realignment.
        id: String,
        /// Step, from 1.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// Value of each part.
        parts: Vec<(LossPart, f64)>,
    },
    /// The gate came to a verdict.
    Gated {
        /// Realignment.
        id: String,
        /// Its measurements.
        #[serde(flatten)]
        measured: GateMeasured,
    },
    /// A realignment ended.
    RealignmentFinished {
        /// Realignment.
        id: String,
        /// How.
        outcome: Outcome,
        /// The generation promoted or rejected, if training got that far.
        generation: Option<String>,
        /// One sentence for an operator: the error, the failed check, or what superseded it.
        detail: Option<String>,
        /// Wall time.
        #[serde(rename = "took_seconds", serialize_with = "seconds")]
        took: Duration,
    },
    /// Another generation serves from now on.
    SwapPublished {
        /// Served until now.
        from: String,
        /// Serves now.
        to: String,
        /// The policy revision `to` was trained for; `None` for the base model.
        policy_revision: Option<String>,
        /// From a staged adapter to the pointer store.
        #[serde(rename = "took_seconds", serialize_with = "seconds")]
        took: Duration,
    },
    /// A swap did not happen; what served keeps serving.
    SwapFailed {
        /// The generation that was to serve.
        to: String,
        /// Why.
        error: String,
    },
    /// A generation is neither current nor previous any more.
    GenerationRetired {
        /// Which.
        generation: String,
    },
    /// An HTTP request ended.
    #[serde(skip)]
    RequestFinished(RequestFinished),
    /// A request was turned away.
    #[serde(skip)]
    RequestRefused {
        /// Why.
        reason: Refusal,
    },
    /// An answer to a client was judged.
    #[serde(skip)]
    ComplianceJudged(Judged),
    /// An answer to a client found no place in the queue of those to be judged.
    #[serde(skip)]
    ComplianceDropped,
    /// A snapshot of the engine.
    #[serde(skip)]
    EngineStats(EngineSnapshot),
    /// A snapshot of the registry.
    #[serde(skip)]
    Leases(LeaseCounts),
}

impl Event {
    /// The realignment an event belongs to; `None` for all that is not about one.
    pub fn realignment_id(&self) -> Option<&str> {
        match self {
            Event::RealignmentStarted { id, .. }
            | Event::StageEntered { id, .. }
            | Event::StageFinished { id, .. }
            | Event::Progress { id, .. }
            | Event::Triaged { id, .. }
            | Event::TrainLoss { id, .. }
            | Event::Gated { id, .. }
            | Event::RealignmentFinished { id, .. } => Some(id),
            Event::PolicyReloaded { .. }
            | Event::PolicyReloadFailed { .. }
            | Event::SwapPublished { .. }
            | Event::SwapFailed { .. }
            | Event::GenerationRetired { .. }
            | Event::RequestFinished(_)
            | Event::RequestRefused { .. }
            | Event::ComplianceJudged(_)
            | Event::ComplianceDropped
            | Event::EngineStats(_)
            | Event::Leases(_) => None,
        }
    }

    /// Whether it comes with every request or every look, and so is not for subscribers.
    pub fn is_frequent(&self) -> bool {
        matches!(
            self,
            Event::RequestFinished(_)
                | Event::RequestRefused { .. }
                | Event::ComplianceJudged(_)
                | Event::ComplianceDropped
                | Event::EngineStats(_)
                | Event::Leases(_)
        )
    }
}

fn seconds<S: Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64())
}
