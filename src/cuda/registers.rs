//! Buffers that flow from step to step of a layer. They grow to the largest step and stay.

use candle_core::Result;

use super::gpu::{Buffer, Gpu};

/// A buffer that grows. What it held is lost when it does.
#[derive(Debug, Default)]
pub struct Growing(Option<Buffer>);

impl Growing {
    /// Makes room for `bytes`, with a quarter to spare, and gives the address. Call it between
    /// steps: the old memory is freed.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn at_least(&mut self, gpu: &impl Gpu, bytes: usize) -> Result<u64> {
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
pub struct Registers {
    /// The residual stream, (rows, hidden), f32.
    pub x: Growing,
    /// What a projection adds to it, (rows, hidden), f32.
    pub y: Growing,
    /// The normalised stream, (rows, hidden).
    pub h: Growing,
    /// What a sublayer's last projection reads, (rows, heads · head_dim or intermediate).
    pub m: Growing,
    /// Queries, keys and values, or gate and up, (rows, …), f32: never both at once.
    pub wide: Growing,
    /// Sums of attention's splits.
    pub partial: Growing,
    /// What adapters' A factors give.
    pub shrunk: Growing,
    /// Cosines and sines: of layers that see all, then of those with a window.
    pub angles: [Growing; 4],
    /// A step's tables.
    pub tables: Growing,
    /// (outputs, vocabulary), f32.
    pub logits: Growing,
    /// Drawn tokens.
    pub tokens: Growing,
}

/// Where they are in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// See [`Registers`]; the same names.
    pub x: u64,
    /// As above.
    pub y: u64,
    /// As above.
    pub h: u64,
    /// As above.
    pub m: u64,
    /// As above.
    pub wide: u64,
    /// As above.
    pub partial: u64,
    /// As above.
    pub shrunk: u64,
    /// As above.
    pub angles: [[u64; 2]; 2],
    /// As above; 0 in a step without outputs.
    pub logits: u64,
    /// As above; 0 in a step without draws.
    pub tokens: u64,
}
