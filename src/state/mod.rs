//! What must survive a restart: one SQLite file, and crash points to prove that it does.

mod crash;
mod db;
mod error;
mod realignments;
mod schema;
mod verdict_cache;
#[cfg(test)]
mod tests;

pub use crash::crash_point;
pub use db::{CheckpointRow, GenerationRow, GenerationStatus, ScoreRow, StateDb};
pub use error::StateError;
pub use realignments::{RealignmentRow, Report};
