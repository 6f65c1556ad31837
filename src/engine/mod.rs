//! Continuous batching over a paged KV cache. Knows no HTTP.
//!
//! One thread owns the cache and the sequences and repeats `schedule → forward → sample`; callers
//! hold an [`EngineHandle`] and talk to it through channels. A sequence leases its generation when
//! it is accepted; rows of different generations share a batch because adapters stay unmerged.

mod blocks;
mod handle;
pub mod request;
mod sampler;
mod scheduler;
mod sequence;
mod step;
mod stop;

pub use handle::{EngineConfig, EngineError, EngineHandle, start};
