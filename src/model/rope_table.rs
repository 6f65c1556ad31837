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
    head_dim: usize,
    /// The same as tensors, (rows, half) each, where they were asked for first.
    tensors: Arc<OnceLock<[Tensor; 2]>>,
}

impl RopeTable {
    /// Angles for `positions`, given the `head_dim / 2` frequencies in radians per token.
    pub fn new(positions: &[u32], frequencies: &[f32]) -> Self {
        Self::scaled(positions, frequencies, 1.0)
    }

    /// As [`RopeTable::new`], with a factor on cosines and sines.
    pub fn scaled(positions: &[u32], frequencies: &[f32], amplitude: f64) -> Self {
        let amplitude = amplitude as f32;
        let half = frequencies.len();
        let angles = || {
            positions
                .iter()
                .flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f))
        };
        Self {
            cos: angles().map(|angle| amplitude * angle.cos()).collect(),
            sin: angles().map(|angle| amplitude * angle.sin()).collect(),
            rows: positions.len(),
            half,
            head_dim: 2 * half,
            tensors: Arc::default(),
        }
    }

    /// The same rotation of heads of this width, of which the columns beyond those that the
    /// frequencies are for stay as they are.
    pub(crate) fn of_heads(self, head_dim: usize) -> Self {
        Self { head_dim, ..self }
    }

    /// Columns of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
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

    /// Cosines and sines of one row's angles, one of each per two columns that are rotated.
    pub fn row(&self, index: usize) -> (&[f32], &[f32]) {
        let range = index * self.half..(index + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
