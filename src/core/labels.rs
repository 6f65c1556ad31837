//! Enums with fixed text labels, spelled the same in metrics, the database and JSON.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Declares a field-less enum with a fixed text label for each variant.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// All values, in order of declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The label used in metrics, the database and JSON.
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

/// A string that matches none of an enum's labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}")]
pub struct UnknownLabel {
    /// The enum's name.
    pub(crate) kind: &'static str,
    /// The string that was found.
    pub(crate) text: String,
}

labels! {
    /// The stages of a realignment, in the order in which they run.
    Stage {
        /// Responses are judged against the policy set.
        Triage = "triage",
        /// What serves sits the exam, for comparison.
        Exam = "exam",
        /// Pairs are gathered for rules that are missed and have few.
        Gather = "gather",
        /// Pairs in conflict get their impact weights.
        Impact = "impact",
        /// The adapter is trained.
        Train = "train",
        /// The candidate sits the exam and is compared with the current generation.
        Gate = "gate",
        /// The adapter is written to disk.
        Publish = "publish",
        /// The candidate becomes the current generation.
        Swap = "swap",
    }
}

labels! {
    /// How a realignment ended.
    Outcome {
        /// A generation was promoted, either newly trained or reused because its inputs were the
        /// same.
        Succeeded = "succeeded",
        /// The gate refused the candidate.
        Rejected = "rejected",
        /// A stage failed.
        Failed = "failed",
        /// An operator stopped it.
        Cancelled = "cancelled",
        /// A newer policy set replaced it.
        Superseded = "superseded",
        /// No preference pair conflicts with the policy set, so there is nothing to train.
        NoConflict = "no_conflict",
    }
}

labels! {
    /// What started a realignment.
    Trigger {
        /// The server started.
        Start = "start",
        /// The policies changed.
        Policy = "policy",
        /// An operator asked for it.
        Operator = "operator",
        /// Live answers stopped complying.
        Drift = "drift",
        /// The preference data changed.
        Data = "data",
    }
}

labels! {
    /// Whether what serves does what the active policies ask, as the exam measured it.
    AlignmentState {
        /// Every rule reaches its target.
        Aligned = "aligned",
        /// A rule does not.
        Misaligned = "misaligned",
        /// It is not, or not known to be, and a realignment runs.
        Realigning = "realigning",
        /// It has not been measured, or cannot be.
        Unknown = "unknown",
    }
}

labels! {
    /// What retention removes.
    Collectable {
        /// Published adapters.
        Adapter = "adapter",
        /// Checkpoints of training runs that ended.
        Checkpoint = "checkpoint",
        /// Records of realignments, with their reports.
        Realignment = "realignment",
        /// Impact scores of pairs.
        Score = "score",
        /// The oracle's verdicts.
        Verdict = "verdict",
        /// Answers and likelihoods of exams.
        ExamAnswer = "exam_answer",
        /// Judges' probabilities.
        JudgeScore = "judge_score",
        /// Corrective responses.
        CorrectiveResponse = "corrective_response",
        /// Records of refused candidates.
        Refusal = "refusal",
        /// Fitted probes.
        Probe = "probe",
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
    /// The threads that a server cannot do without.
    Thread {
        /// Computes the steps of all running sequences.
        Engine = "engine",
        /// The control loop.
        Control = "control",
        /// Watches the policy directory.
        PolicyWatch = "policy-watch",
        /// Judges answers to clients.
        Compliance = "compliance",
        /// Sends traces.
        Traces = "traces",
        /// Keeps the alignment metric up to date.
        Alignment = "alignment",
        /// Follows the store that servers share, and holds the right to publish.
        Store = "store",
        /// Looks at what should serve on the engines behind a gateway.
        Fleet = "fleet",
        /// Watches the others.
        Supervisor = "supervisor",
    }
}

labels! {
    /// Why an otherwise valid request was refused.
    Refusal {
        /// Missing or wrong API key.
        Unauthorized = "unauthorized",
        /// The key has used up its limit for the minute.
        RateLimit = "rate_limit",
        /// The limit of concurrent requests is reached.
        Concurrency = "concurrency",
        /// The engine's queue is full.
        QueueFull = "queue_full",
        /// The server is loading or draining, or requests in progress hold all connections.
        Unavailable = "unavailable",
    }
}

labels! {
    /// Whom a listener serves.
    ListenerRole {
        /// Clients; and operators, if they have no listener of their own.
        Clients = "clients",
        /// Operators, on a listener of their own.
        Operators = "operators",
    }
}

labels! {
    /// Why the server ended a connection that waited for a request.
    Eviction {
        /// A new connection needed its place.
        Limit = "limit",
        /// The process was out of file descriptors.
        OpenFiles = "open_files",
    }
}
