//! Adapters on disk and generations in memory: PEFT format, atomic publish, leases, swap.

mod content;
mod error;
pub mod generation;
mod manifest;
mod numbers;
pub mod peft;
pub mod registry;
pub mod store;
mod sync;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;

pub use content::{base_id, content_id, read_foreign, validate};
pub use error::AdapterError;
pub use manifest::{Manifest, TrainedBy};
pub use numbers::NumberError;
pub use registry::{NameError, Named, Registry, ResolveError, SwapError, Swapped};
pub use store::AdapterStore;
