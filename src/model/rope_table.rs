//! Rotary position embedding (arXiv 2104.09864) in Hugging Face's rotate-half layout.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};

/// Cosines and sines of a batch's positions; made once per forward and shared by all layers.
#[derive(Clone, Debug)]
pub struct RopeTable {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    rows: usize,
    half: usize,
    /// The same as tensors, (rows, half) each, where they were asked for first.
    tensors: Arc<OnceLock<[Tensor; 2]>>,
}

impl RopeTable {
    /// Angles for `positions`, given the `head_dim / 2` frequencies in radians per token.
    pub fn new(positions: &[u32], frequencies: &[f32]) -> Self {
        let half = frequencies.len();
        let angles = || {
            positions
                .iter()
                .flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f))
        };
        Self {
            cos: angles().map(f32::cos).collect(),
            sin: angles().map(f32::sin).collect(),
            rows: positions.len(),
            half,
            tensors: Arc::default(),
        }
    }

    /// Cosines and sines as tensors, (rows, half) each. Uploaded once for all layers.
    pub fn on(&self, device: &Device) -> Result<[Tensor; 2]> {
        if let Some(tensors) = self.tensors.get()
            && tensors[0].device().same_device(device)
        {
            return Ok(tensors.clone());
        }
        let upload = |values: &[f32]| Tensor::from_slice(values, (self.rows, self.half), device);
        let tensors = [upload(&self.cos)?, upload(&self.sin)?];
        // Another device may have asked first: then this one's are not kept.
        self.tensors.get_or_init(|| tensors.clone());
        Ok(tensors)
    }

    /// Cosines and sines of one row's angles, (head_dim / 2) each.
    pub fn row(&self, index: usize) -> (&[f32], &[f32]) {
        let range = index * self.half..(index + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
