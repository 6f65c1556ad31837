//! The decoder's operations on candle's tensors, where they come in several forms.
//!
//! candle-nn's fused softmax, RMSNorm and rotary operations return no gradient and raise no error,
//! which is why none of those is used anywhere.

mod packed;
mod plain;
mod soft_cap;

use std::fmt::Debug;

use candle_core::{Result, Tensor, bail};
use realign_model::{Activation, RopeTable};

pub use packed::packed_attention;
pub use plain::Plain;
pub use soft_cap::soft_cap;

/// Operations that a device may have kernels of its own for. All are differentiable.
pub trait TensorOps: Debug + Send + Sync {
    /// Normalises each row of `x` (rows, width) and scales it by `weight` (width): y = x / √(mean(x²)
    /// + ε) · w (arXiv 1910.07467). The weight is frozen: only x gets a gradient.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device refuses.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor>;

    /// Rotates every head of `x` (rows, heads · head_dim) by its row's angles (arXiv 2104.09864), in
    /// Hugging Face's rotate-half layout.
    ///
    /// # Errors
    /// As above.
    fn rope(&self, x: &Tensor, table: &RopeTable) -> Result<Tensor>;

    /// activation(gate) · up, element by element (arXiv 2002.05202); both of one shape.
    ///
    /// # Errors
    /// As above.
    fn gated(&self, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor>;

    /// log softmax(logits)[target] for each row of `logits` (rows, vocabulary), in f32: shape (rows).
    ///
    /// # Errors
    /// If there is not a target for each row, or one is not in the vocabulary.
    fn token_logprobs(&self, logits: &Tensor, targets: &[u32]) -> Result<Tensor>;

    /// KL(reference ‖ policy) over the vocabulary for each row, from both models' logits
    /// (rows, vocabulary), in f32: shape (rows). Only the policy gets a gradient.
    ///
    /// # Errors
    /// If the shapes differ.
    fn kl_from_reference(&self, reference: &Tensor, policy: &Tensor) -> Result<Tensor>;
}

/// Whether there is a target for each row of `logits`, all in the vocabulary.
///
/// # Errors
/// If not.
pub fn check_targets(logits: &Tensor, targets: &[u32]) -> Result<()> {
    let (rows, vocabulary) = logits.dims2()?;
    if rows != targets.len() || targets.iter().any(|&t| t as usize >= vocabulary) {
        bail!(
            "token_logprobs: {} targets do not fit {rows} rows over {vocabulary} tokens",
            targets.len()
        );
    }
    Ok(())
}

/// Whether both models' logits are of one shape.
///
/// # Errors
/// If not.
pub fn check_shapes(reference: &Tensor, policy: &Tensor) -> Result<()> {
    if reference.dims2()? != policy.dims2()? {
        bail!(
            "kl_from_reference: shapes differ, {:?} and {:?}",
            reference.shape(),
            policy.shape()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
