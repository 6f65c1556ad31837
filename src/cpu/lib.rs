//! Serving and learning on the CPU: the decoder's steps on flat buffers, with own kernels and own
//! threads, from weights packed for them.
//!
//! Candle's tensors are the reference; one allocation and one task-pool hand-over per operation is
//! what they cost, and a decode step has a thousand.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests may sleep"))]

mod activations;
mod adapters;
mod aligned;
mod attend;
mod attention;
mod backend;
mod executor;
mod gates;
mod kernels;
mod kv;
pub mod learn;
#[doc(hidden)]
pub mod measure;
mod mix;
mod packed;
mod routing;
mod rows;
#[cfg(test)]
mod step_tests;
mod steps;
pub mod stored;
mod sync;
mod team;
#[cfg(test)]
mod team_tests;

pub use backend::{Cpu, CpuBackend, load, pack};
pub use executor::CpuExecutor;
pub use kernels::{InstructionSet, instruction_set};
pub use learn::Differentiator;
pub use packed::{Encoding, PackedWeight};

/// A decoder whose weights are packed.
pub(crate) type Model = realign_model::Decoder<PackedWeight>;
type Layer = realign_model::Layer<PackedWeight>;
type Linear = realign_model::Linear<PackedWeight>;
type Experts = realign_model::Experts<PackedWeight>;
