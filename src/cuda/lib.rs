//! Serving and learning on a CUDA device, with own kernels.
//!
//! Everything above a launch is written against [`Gpu`], which has two implementations: the CUDA
//! driver (feature `cuda`), and in tests an emulator that runs the same kernel sources on the host.
//! So the kernels' arithmetic, the grids, the order and number of arguments, the layout of a step's
//! tables and the whole executor are tested on machines without a GPU; what they leave to prove is
//! the driver's part, the hardware and the speed. docs/cuda.md lists it.
//!
//! Training is the reference's, by candle's tensors, with operations and weights of this crate.

#![cfg_attr(
    not(all(test, feature = "cuda")),
    allow(
        dead_code,
        reason = "a device runs one part of it, the tests on the emulator another"
    )
)]

mod adapters;
mod backend;
#[cfg(feature = "cuda")]
mod driver;
mod executor;
pub mod gpu;
mod graphs;
pub mod integer;
pub mod launches;
#[cfg(feature = "cuda")]
mod learning;
mod machine;
mod mixed_linear;
pub mod ops;
mod plan;
mod registers;
pub mod sources;
mod stacked;
mod storage;
pub mod tables;
#[cfg(any(test, feature = "test-support"))]
#[allow(missing_docs, reason = "the emulator is for tests")]
pub mod tests;
pub mod training;
mod weight;
mod weights;

pub use adapters::DeviceAdapter;
#[cfg(feature = "cuda")]
pub use backend::CudaBackend;
pub use backend::{Found, find, open};
#[cfg(feature = "cuda")]
pub use driver::CudaGpu;
pub use executor::{CudaExecutor, Options, bytes_per_block};
pub use gpu::{Element, Gpu};
pub use plan::{plan, stored};
pub use stacked::stacked;
pub use weight::Weight;

/// A decoder on a CUDA device.
pub(crate) type Model = realign_model::Decoder<Weight>;
type Layer = realign_model::Layer<Weight>;
type Linear = realign_model::Linear<Weight>;
