//! Benchmarks and evaluation: what no server runs.

pub mod bench;
pub mod evaluation;
