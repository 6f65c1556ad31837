//! What must survive a restart: one SQLite file, and crash points to prove that it does.

mod db;
mod error;
mod realignments;
mod schema;
#[cfg(test)]
mod tests;
mod verdict_cache;

pub use db::{GenerationRow, GenerationStatus, ScoreRow, StateDb};
pub use error::StateError;
pub use realignments::{RealignmentRow, Report};
