//! Enumerations whose values are labels: the same words in metrics, the database and JSON.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

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
