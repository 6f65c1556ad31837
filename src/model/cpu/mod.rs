//! Serving on the CPU: the decoder's steps on flat buffers, own kernels and an own thread team.
//!
//! Candle's tensors are the reference and what training differentiates; one allocation and one
//! task-pool hand-over per operation is what they cost, and a decode step has a thousand.

mod activations;
mod adapters;
mod aligned;
mod attention;
mod blocks;
mod executor;
mod kernels;
mod kv;
pub mod learn;
mod packed;
mod rows;
mod steps;
mod team;
#[cfg(test)]
mod tests;
mod vector;

pub use adapters::PackedAdapter;
pub(super) use blocks::{Format, UNIT, Unit, read_unit, scale_bound};
pub use executor::{CpuExecutor, Step};
pub use kv::{BLOCK_TOKENS, KvCache};
pub(super) use packed::gain_for;
pub use packed::{Encoding, PackedWeight};
pub use vector::logsumexp;
