//! Rotary position embedding (arXiv 2104.09864) in Hugging Face's rotate-half layout.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};
use rayon::prelude::*;

use super::{Ops, f32_slice, rows_columns};
#[cfg(feature = "cuda")]
use crate::cuda::{
    learning::{Input, run},
    training,
};

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
    fn on(&self, device: &Device) -> Result<[Tensor; 2]> {
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

/// Rotates every head of `x` (rows, heads · head_dim) by its row's angles.
pub fn rope(ops: Ops, x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    match ops {
        Ops::Plain => plain(x, table),
        Ops::Fused | Ops::Device => x.contiguous()?.apply_op1(Rope {
            table: table.clone(),
            direction: 1.0,
        }),
    }
}

fn plain(x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let half = table.half;
    let x = x.reshape((rows, width / (2 * half), 2 * half))?; // (rows, heads, head_dim)
    let [cos, sin] = table.on(x.device())?;
    let (cos, sin) = (cos.reshape((rows, 1, half))?, sin.reshape((rows, 1, half))?);
    let (low, high) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let rotated_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let rotated_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[rotated_low, rotated_high], 2)?.reshape((rows, width))
}

struct Rope {
    table: RopeTable,
    /// 1 rotates forward; −1 is the inverse rotation, which is also the gradient.
    direction: f32,
}

impl Rope {
    /// (rows, columns), if the table is for them.
    fn fit(&self, layout: &Layout) -> Result<(usize, usize)> {
        let (rows, width) = rows_columns(layout)?;
        if rows != self.table.rows || !width.is_multiple_of(2 * self.table.half) {
            bail!(
                "rope: {rows} rows of {width} do not fit a table of {} rows, head_dim {}",
                self.table.rows,
                2 * self.table.half
            );
        }
        Ok((rows, width))
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout, self.name())?;
        let (_, width) = self.fit(layout)?;
        let half = self.table.half;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .enumerate()
            .with_min_len(16)
            .for_each(|(row, (y, x))| {
                let cos = &self.table.cos[row * half..(row + 1) * half];
                let sin = &self.table.sin[row * half..(row + 1) * half];
                for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                    for i in 0..half {
                        let s = sin[i] * self.direction;
                        y[i] = x[i] * cos[i] - x[i + half] * s;
                        y[i + half] = x[i + half] * cos[i] + x[i] * s;
                    }
                }
            });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, width) = self.fit(layout)?;
        let half = self.table.half;
        let [cos, sin] = self
            .table
            .on(&Device::Cuda(BackendStorage::device(x).clone()))?;
        let ((cos, cos_layout), (sin, sin_layout)) =
            (cos.storage_and_layout(), sin.storage_and_layout());
        let inputs = [
            Input::F32(x, layout),
            Input::beside(&cos, cos_layout)?,
            Input::beside(&sin, sin_layout)?,
        ];
        let y = run(self.name(), inputs, rows * width, |[x, cos, sin], y| {
            training::rotate([rows, width, half], self.direction, [x, cos, sin, y])
        })?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let inverse = Rope {
            table: self.table.clone(),
            direction: -self.direction,
        };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&inverse)?))
    }
}
