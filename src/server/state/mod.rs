//! State that survives a restart, in one SQLite file.

mod access;
mod attempts;
mod db;
mod error;
mod exam_cache;
mod history;
mod policy_sets;
mod realignments;
mod retention;
mod schema;
#[cfg(test)]
mod tests;
mod verdict_cache;
mod wal;

pub use access::state_place;
pub(crate) use attempts::Deaths;
pub use db::{GenerationRow, GenerationStatus, ScoreRow, StateDb};
pub use error::StateError;
pub use history::{Act, Activation, Pin};
pub use realignments::{RealignmentRow, Report};
pub(crate) use retention::DbLimits;
