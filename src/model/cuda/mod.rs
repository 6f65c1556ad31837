//! Serving on CUDA with the project's own kernels.
//!
//! Everything above a launch is written against [`Gpu`], which has two implementations: the CUDA
//! driver (feature `cuda`), and in tests an emulator that runs the same kernel sources on the host.
//! So the kernels' arithmetic, the grids, the order and number of arguments, the layout of a step's
//! tables and the whole executor are tested on machines without a GPU; what they leave to prove is
//! the driver's part, the hardware and the speed. docs/cuda.md lists it.

mod adapters;
#[cfg(feature = "cuda")]
mod driver;
mod executor;
pub mod gpu;
mod graphs;
pub mod launches;
#[cfg(feature = "cuda")]
mod learning;
mod machine;
pub mod ops;
mod registers;
pub mod sources;
mod storage;
pub mod tables;
#[cfg(any(test, feature = "test-support"))]
pub mod tests;
pub mod training;
mod weights;

pub use adapters::DeviceAdapter;
#[cfg(feature = "cuda")]
pub use driver::{CudaGpu, unpack};
pub use executor::{CudaExecutor, Options, Outputs, bytes_per_block};
pub use gpu::{Element, Gpu};
