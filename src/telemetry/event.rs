//! What can happen that an operator wants to know: one closed enum.
//!
//! Each event becomes a log line, a change of metrics and, for realignments, a message on the
//! admin event stream, so the three cannot disagree.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

pub use super::answers::{Judged, RequestFinished, RuleCount, RuleLabels};

/// Gives a field-less enum its fixed label values, for metrics, the database and JSON alike.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// All values, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The value as metrics, the database and JSON spell it.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownLabel;

            fn from_str(text: &str) -> Result<Self, UnknownLabel> {
                Self::ALL.iter().copied().find(|v| v.as_str() == text).ok_or_else(|| UnknownLabel {
                    kind: stringify!($name),
                    text: text.to_string(),
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

/// A text that is none of an enum's labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}")]
pub struct UnknownLabel {
    /// The enum's name.
    pub kind: &'static str,
    /// What was found.
    pub text: String,
}

labels! {
    /// The stages of a realignment, in the order in which they run.
    Stage {
        /// Responses are judged against the policy set.
        Triage = "triage",
        /// Conflicts are weighted.
        Impact = "impact",
        /// The adapter is trained.
        Train = "train",
        /// The candidate is compared with what serves.
        Gate = "gate",
        /// The adapter is written to disk.
        Publish = "publish",
        /// The pointer is stored.
        Swap = "swap",
    }
}

labels! {
    /// How a realignment ended.
    Outcome {
        /// A generation was promoted, newly trained or found again by its inputs.
        Succeeded = "succeeded",
        /// The gate refused the candidate.
        Rejected = "rejected",
        /// A stage failed.
        Failed = "failed",
        /// An operator stopped it.
        Cancelled = "cancelled",
        /// A newer policy set took its place.
        Superseded = "superseded",
        /// No preference pair is in conflict with the policy set: nothing to train.
        NoConflict = "no_conflict",
    }
}

labels! {
    /// The parts of the training loss.
    LossPart {
        /// The weighted sum that is minimised.
        Total = "total",
        /// Preference loss on INVERT pairs.
        Invert = "invert",
        /// Negative preference loss on PUNISH pairs.
        Punish = "punish",
        /// KL divergence from the base model on RETAIN pairs.
        Kl = "kl",
        /// Negative log-likelihood of the preferred responses.
        Sft = "sft",
    }
}

labels! {
    /// Why a request was turned away although nothing is wrong with what it asks for.
    Refusal {
        /// No key, or a wrong one.
        Unauthorized = "unauthorized",
        /// Its key has used up what it may ask for in a minute.
        RateLimit = "rate_limit",
        /// As many requests run as the server takes on.
        Concurrency = "concurrency",
        /// As many sequences wait as the engine takes on.
        QueueFull = "queue_full",
        /// The server is loading or draining.
        Unavailable = "unavailable",
    }
}

/// Sequences that hold a generation, by the generation's role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// On the generation that serves (the base model included while it is current).
    pub current: usize,
    /// On the one before it.
    pub previous: usize,
    /// On any other adapter.
    pub retired: usize,
    /// On the base model while it is neither current nor previous.
    pub base: usize,
}

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
