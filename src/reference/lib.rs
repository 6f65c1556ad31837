//! The slow twin: the decoder on candle's primitives, in f32 on the CPU, which everything else is
//! compared with. A device that candle knows trains on the same code with operations of its own
//! ([`ops::TensorOps`]) and weights in a form of its own ([`TensorWeight`]).

mod backend;
mod decoder;
mod executor;
mod experts;
mod linear;
pub mod memory;
pub mod ops;
mod passes;
mod stepwise;
mod whole;

pub use backend::{ReferenceBackend, load};
pub use decoder::{Batch, TensorModel};
pub use linear::{AdapterRows, TensorWeight};
pub use ops::{Plain, TensorOps};
pub use passes::TensorPasses;
pub use stepwise::{Stepwise, head_rows};

/// The decoder in f32 on the CPU.
pub type Reference = TensorModel<candle_core::Tensor>;
