//! Buffers that flow from step to step of a layer. They grow to the largest step and stay.

use candle_core::Result;

use super::gpu::{Buffer, Gpu};

/// A buffer that grows. What it held is lost when it does.
#[derive(Debug, Default)]
pub(crate) struct Growing(Option<Buffer>);

impl Growing {
    /// Makes room for `bytes`, with a quarter to spare, and gives the address. Call it between
    /// steps: the old memory is freed.
    ///
    /// # Errors
    /// If there is no memory left.
    pub(crate) fn at_least(&mut self, gpu: &impl Gpu, bytes: usize) -> Result<u64> {
        if let Some(buffer) = self.0.as_ref().filter(|b| b.bytes >= bytes) {
            return Ok(buffer.address);
        }
        // Freed first: both together might not fit.
        self.0 = None;
        let buffer = gpu.allocate((bytes + bytes / 4).next_multiple_of(256).max(256))?;
        Ok(self.0.insert(buffer).address)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    /// The residual stream, (rows, hidden), f32.
    pub(crate) x: Growing,
    /// What a projection adds to it, (rows, hidden), f32.
    pub(crate) y: Growing,
    /// The normalised stream, (rows, hidden).
    pub(crate) h: Growing,
    /// What a sublayer's last projection reads, (rows, heads · head_dim or intermediate).
    pub(crate) m: Growing,
    /// Queries, keys and values, or gate and up, (rows, …), f32: never both at once.
    pub(crate) wide: Growing,
    /// Sums of attention's splits.
    pub(crate) partial: Growing,
    /// What adapters' A factors give.
    pub(crate) shrunk: Growing,
    /// Cosines and sines: of layers that see all, then of those with a window.
    pub(crate) angles: [Growing; 4],
    /// A step's tables.
    pub(crate) tables: Growing,
    /// (outputs, vocabulary), f32.
    pub(crate) logits: Growing,
    /// Drawn tokens.
    pub(crate) tokens: Growing,
}

/// Where they are in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// See [`Registers`]; the same names.
    pub(crate) x: u64,
    /// As above.
    pub(crate) y: u64,
    /// As above.
    pub(crate) h: u64,
    /// As above.
    pub(crate) m: u64,
    /// As above.
    pub(crate) wide: u64,
    /// As above.
    pub(crate) partial: u64,
    /// As above.
    pub(crate) shrunk: u64,
    /// As above.
    pub(crate) angles: [[u64; 2]; 2],
    /// As above; 0 in a step without outputs.
    pub(crate) logits: u64,
    /// As above; 0 in a step without draws.
    pub(crate) tokens: u64,
}
