//! The vocabulary shared by all crates of realign: identifiers, enums, ranges and the clock. It
//! contains no logic about models or policies.

mod category;
pub mod clock;
mod crash;
pub mod files;
mod labels;
mod leases;
pub mod ranges;
mod stop;
pub mod supervision;

pub use category::{Category, TriageCounts};
pub use crash::crash_point;
pub use labels::{
    AlignmentState, LossPart, Outcome, Refusal, Stage, Thread, Trigger, UnknownLabel,
};
pub use leases::LeaseCounts;
pub use stop::StopReason;
