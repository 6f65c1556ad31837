//! How many sequences still hold each generation.

/// Number of sequences holding a generation, by the generation's role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// On the current generation (which may be the base model).
    pub current: usize,
    /// On the previous generation.
    pub previous: usize,
    /// On any other adapter.
    pub retired: usize,
    /// On the base model while it is neither current nor previous.
    pub base: usize,
}
