//! What every form of attention shares: how a layer scores.

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
    /// Whether its heads are rotated by the model's second rotary embedding.
    pub local_rope: bool,
}

impl AttentionShape {
    /// Scores scaled by 1/√head_dim over the whole past.
    pub fn full(head_dim: usize) -> Self {
        Self {
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            cap: None,
            window: None,
            local_rope: false,
        }
    }

    /// Position of the oldest token that the token at `position` sees.
    pub fn first_visible(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX))
    }
}
