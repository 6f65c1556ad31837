//! Adapters on disk and generations in memory: PEFT format, atomic publish, leases, swap.

mod error;
pub mod generation;
pub mod registry;

pub use error::AdapterError;
pub use registry::{Registry, ResolveError, SwapError, Swapped};
