//! How a token is to be drawn, for the executor that holds the logits.

/// What an executor that draws gives in place of a token if the logits are not finite numbers.
pub const NOT_FINITE: u32 = u32::MAX;

/// The sampler's parameters and its random number, so that the same seed draws the same text
/// wherever its logits are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawRequest {
    /// In [0, 1).
    pub uniform: f64,
    /// 0 takes the most probable token.
    pub temperature: f32,
    /// Nucleus; 1 keeps all.
    pub top_p: f32,
    /// Share of the most probable token's probability; 0 keeps all.
    pub min_p: f32,
    /// Most probable tokens; 0 keeps all.
    pub top_k: usize,
}
