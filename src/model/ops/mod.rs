//! The decoder's operations, each in several forms.
//!
//! `Ops::Fused` are our own CPU kernels. Every one of them carries its own backward, so gradients
//! flow through them; candle-nn's fused softmax, RMSNorm and rotary ops return none and raise no
//! error, which is why none of those is used anywhere. `Ops::Plain` is the slow twin made of
//! candle's differentiable primitives: it runs on every device, and the tests hold the other forms
//! against it, values and gradients. `Ops::Device` is for a CUDA device: our own kernels for norms,
//! rotations, gates and the losses of tokens, candle's primitives for the rest.

mod attention;
mod frozen_linear;
mod gated;
mod kernels;
pub mod matmul;
mod mixed_linear;
mod packed;
mod paged;
mod quantized_linear;
mod rms_norm;
mod rope;
mod segment;
mod soft_cap;
mod token_loss;

pub use attention::{AttentionShape, capped_softmax};
pub use frozen_linear::frozen_linear;
pub use gated::{Activation, gated};
pub use kernels::{
    dot, exp_shifted_sum, kl_gradient, kl_sum, logsumexp, quantize_block, scaled_exp,
    soft_cap_backward, soft_cap_in_place,
};
pub use mixed_linear::integer_linear;
pub use packed::packed_attention;
pub use paged::{PagedKv, PagedSequence, paged_attention};
pub use quantized_linear::quantized_linear;
pub use rms_norm::{inverse_rms, rms_norm};
pub use rope::{RopeTable, rope};
pub use segment::{Seen, Segment};
pub use soft_cap::soft_cap;
pub use token_loss::{kl_from_reference, token_logprobs};

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, bail};

#[cfg(test)]
mod tests;

/// Which form of each operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ops {
    /// Own CPU kernels with their own backward.
    Fused,
    /// Candle primitives: any device, differentiable, slower.
    Plain,
    /// Own CUDA kernels where there are some, each with its own backward; else candle's primitives.
    Device,
}

impl Ops {
    /// The fastest form that runs on a device.
    pub fn for_device(device: &Device) -> Self {
        match device {
            Device::Cpu => Ops::Fused,
            Device::Cuda(_) => Ops::Device,
            Device::Metal(_) => Ops::Plain,
        }
    }
}

/// The elements of a contiguous f32 argument of a custom op.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op}: the argument must be contiguous, got {layout:?}");
    };
    match storage {
        CpuStorage::F32(data) => Ok(&data[start..end]),
        other => bail!(
            "{op}: the argument must be f32, got {:?}",
            candle_core::backend::BackendStorage::dtype(other)
        ),
    }
}

/// Runs `f` on the elements of a tensor that a custom op holds beside its arguments.
fn with_f32<R>(tensor: &Tensor, op: &str, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (guard, layout) = tensor.storage_and_layout();
    match &*guard {
        Storage::Cpu(storage) => Ok(f(f32_slice(storage, layout, op)?)),
        _ => bail!("{op}: one argument is on the CPU, another is not"),
    }
}

/// (rows, columns) of an argument seen as a matrix over its last dimension.
fn rows_columns(layout: &Layout) -> Result<(usize, usize)> {
    let columns = layout.shape().dims().last().copied().unwrap_or(0);
    if columns == 0 {
        bail!("expected a matrix with at least one column, got {layout:?}");
    }
    Ok((layout.shape().elem_count() / columns, columns))
}
