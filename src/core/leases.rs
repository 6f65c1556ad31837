//! Who still holds which generation.

/// Sequences that hold a generation, by the generation's role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// On the generation that serves (the base model included while it is current).
    pub current: usize,
    /// On the one before it.
    pub previous: usize,
    /// On any other adapter.
    pub retired: usize,
    /// On the base model while it is neither current nor previous.
    pub base: usize,
}
