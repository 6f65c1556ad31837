//! `realign bench`: how fast a model runs, in the process and over HTTP.
//!
//! It reports every repetition, so that a reader sees the spread, and alternates between the cases
//! that are compared (A B A B), because machines drift.

mod cases;
pub mod learning;
pub mod load;
pub mod model;
mod samples;

pub use cases::{Options, Row};
pub use samples::Samples;

/// Why a benchmark could not be run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The sizes contradict each other.
    #[error("{0}")]
    Options(String),
    /// The engine did not start.
    #[error(transparent)]
    Engine(#[from] realign_engine::EngineError),
    /// The engine refused or failed a sequence.
    #[error("the engine gave up a sequence: {0}")]
    Sequence(String),
    /// The random adapter could not be made.
    #[error("cannot make the benchmark's adapter: {0}")]
    Adapter(#[from] candle_core::Error),
    /// The server under load did not give a valid answer.
    #[error("{url}: {reason}")]
    Server {
        /// The URL that was called.
        url: String,
        /// What is wrong with the answer, or why there was none.
        reason: String,
    },
    /// A thread, a process or a port is unavailable.
    #[error("cannot start the benchmark: {0}")]
    Start(#[from] std::io::Error),
}
