//! The decoder's operations on candle's tensors.
//!
//! `Ops::Plain` is made of candle's differentiable primitives: it runs on every device, and the tests
//! hold everything else against it, values and gradients. candle-nn's fused softmax, RMSNorm and
//! rotary ops return no gradient and raise no error, which is why none of those is used anywhere.
//! `Ops::Device` is for a CUDA device: our own kernels for norms, rotations, gates and the losses of
//! tokens ([`crate::cuda::ops`]), candle's primitives for the rest.

mod attention;
mod frozen_linear;
mod gated;
mod mixed_linear;
mod packed;
mod paged;
mod rms_norm;
mod rope;
mod segment;
mod soft_cap;
mod token_loss;

pub use attention::AttentionShape;
pub use frozen_linear::frozen_linear;
pub use gated::{Activation, gated};
pub use mixed_linear::integer_linear;
pub use packed::packed_attention;
pub use paged::PagedSequence;
pub use rms_norm::rms_norm;
pub use rope::{RopeTable, rope};
pub use segment::{Seen, Segment};
pub use soft_cap::soft_cap;
pub use token_loss::{kl_from_reference, token_logprobs};

use candle_core::Device;

/// Which form of each operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ops {
    /// Candle primitives: any device, differentiable, slower.
    Plain,
    /// Own CUDA kernels where there are some, each with its own backward; else candle's primitives.
    Device,
}

impl Ops {
    /// The fastest form that runs on a device.
    pub fn for_device(device: &Device) -> Self {
        match device {
            Device::Cuda(_) => Ops::Device,
            Device::Cpu | Device::Metal(_) => Ops::Plain,
        }
    }
}
