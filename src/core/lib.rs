//! The words that every crate of realign shares. Data and names only: nothing here decides or computes
//! anything about models or policies.

mod category;
pub mod clock;
mod crash;
mod labels;
mod leases;
pub mod ranges;
mod stop;

pub use category::{Category, TriageCounts};
pub use crash::crash_point;
pub use labels::{LossPart, Outcome, Refusal, Stage, UnknownLabel};
pub use leases::LeaseCounts;
pub use stop::StopReason;
