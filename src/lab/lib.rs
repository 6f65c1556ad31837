//! Benchmarks and evaluations. A server runs none of this.

pub mod bench;
pub mod evaluation;
