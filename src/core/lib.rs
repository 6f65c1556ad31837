//! The vocabulary shared by all crates of realign: identifiers, enums, ranges, the clock, locks. It
//! contains no logic about models or policies.

mod category;
pub mod clock;
mod crash;
pub mod files;
pub mod json;
mod labels;
mod leases;
pub mod lock;
pub mod ranges;
mod stop;
pub mod supervision;
pub mod thoughts;
pub mod trash;

pub use category::{Category, TriageCounts};
pub use crash::crash_point;
pub use labels::{
    AlignmentState, Collectable, Eviction, ListenerRole, LossPart, Outcome, Refusal, Stage, Thread,
    Trigger, UnknownLabel,
};
pub use leases::LeaseCounts;
pub use stop::StopReason;
