//! What every form of attention shares: how a layer scores.

use candle_core::{D, Result, Tensor};

use super::soft_cap;

/// How the heads of one layer attend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Columns of one head.
    pub head_dim: usize,
    /// Factor on q kᵀ, 1/√head_dim in most families.
    pub scale: f32,
    /// c in c · tanh(score / c), applied to scaled scores before the mask.
    pub cap: Option<f32>,
    /// How many tokens a row sees, itself included; `None` for all before it.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Scores scaled by 1/√head_dim over the whole past.
    pub fn full(head_dim: usize) -> Self {
        Self {
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            cap: None,
            window: None,
        }
    }

    /// Position of the oldest token that the token at `position` sees.
    pub fn first_visible(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX))
    }

    /// softmax(cap(q kᵀ · scale) + mask) v of (heads, rows, head_dim) by candle's primitives.
    pub(super) fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: &Tensor,
    ) -> Result<Tensor> {
        let scores = (q.matmul(&k.t()?)? * f64::from(self.scale))?; // (heads, rows, keys)
        let scores = match self.cap {
            Some(cap) => soft_cap(&scores, cap)?,
            None => scores,
        };
        let scores = scores.broadcast_add(mask)?;
        let shifted = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
            .exp()?;
        let weights = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
        weights.matmul(v)
    }
}
