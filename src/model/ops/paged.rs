//! Attention over a paged KV cache: what serving uses.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::attention::{AttentionShape, capped_softmax};
use super::kernels::{axpy, dot};
use super::{Ops, f32_slice};

/// Keys and values of all sequences, in blocks of `block_size` tokens. Allocated once.
#[derive(Clone, Debug)]
pub struct PagedKv {
    /// Per layer: keys, then values, each (blocks · block_size, kv_heads · head_dim).
    layers: Vec<(Tensor, Tensor)>,
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks in the pool.
    pub blocks: usize,
}

/// One sequence's part of a batch.
#[derive(Clone, Debug)]
pub struct PagedSequence {
    /// First of its rows in the batch.
    pub start: usize,
    /// Its rows in the batch: 1 for decode, more for prefill.
    pub rows: usize,
    /// Tokens it has in the cache before this batch.
    pub cached: usize,
    /// Its blocks, in order; they hold at least `cached + rows` tokens.
    pub blocks: Arc<[u32]>,
}

impl PagedSequence {
    fn slot(&self, position: usize, block_size: usize) -> usize {
        self.blocks[position / block_size] as usize * block_size + position % block_size
    }

    fn end(&self) -> usize {
        self.cached + self.rows
    }
}

impl PagedKv {
    /// A pool of `blocks` blocks for `layers` layers of `width` = kv_heads · head_dim columns, f32.
    pub fn new(
        layers: usize,
        width: usize,
        blocks: usize,
        block_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let one = || Tensor::zeros((blocks * block_size, width), DType::F32, device);
        let layers = (0..layers)
            .map(|_| Ok((one()?, one()?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            block_size,
            blocks,
        })
    }

    /// Bytes of keys and values per block.
    pub fn bytes_per_block(layers: usize, width: usize, block_size: usize) -> usize {
        2 * layers * width * block_size * size_of::<f32>()
    }

    /// Writes the batch's new keys and values, (batch rows, width), where the sequences keep them.
    pub fn write(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        sequences: &[PagedSequence],
    ) -> Result<()> {
        let (keys, values) = &self.layers[layer];
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        for sequence in sequences {
            let mut done = 0;
            while done < sequence.rows {
                let position = sequence.cached + done;
                let run = (self.block_size - position % self.block_size).min(sequence.rows - done);
                let slot = sequence.slot(position, self.block_size);
                let row = sequence.start + done;
                keys.slice_set(&k.narrow(0, row, run)?, 0, slot)?;
                values.slice_set(&v.narrow(0, row, run)?, 0, slot)?;
                done += run;
            }
        }
        Ok(())
    }
}

/// softmax(cap(q kᵀ · scale)) v where each row of `q` (rows, heads · head_dim) sees the window of
/// its own sequence's cache that ends with itself. Keys and values must have been written before.
pub fn paged_attention(
    ops: Ops,
    q: &Tensor,
    kv: &PagedKv,
    layer: usize,
    sequences: &Arc<[PagedSequence]>,
    shape: AttentionShape,
) -> Result<Tensor> {
    let (keys, values) = &kv.layers[layer];
    match ops {
        Ops::Plain | Ops::Device => plain(q, (keys, values), kv.block_size, sequences, shape),
        Ops::Fused => {
            let op = PagedAttention {
                sequences: sequences.clone(),
                shape,
                block_size: kv.block_size,
            };
            q.contiguous()?.apply_op3_no_bwd(keys, values, &op)
        }
    }
}

fn plain(
    q: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    block_size: usize,
    sequences: &[PagedSequence],
    shape: AttentionShape,
) -> Result<Tensor> {
    let d = shape.head_dim;
    let (query_heads, kv_heads) = (q.dim(1)? / d, keys.dim(1)? / d);
    let mut outputs = Vec::with_capacity(sequences.len());
    for s in sequences {
        let slots: Vec<u32> = (0..s.end()).map(|p| s.slot(p, block_size) as u32).collect();
        let slots = Tensor::from_vec(slots, s.end(), q.device())?;
        let gather = |cache: &Tensor| -> Result<Tensor> {
            let x = cache
                .index_select(&slots, 0)?
                .reshape((s.end(), kv_heads, 1, d))?;
            let x = x.expand((s.end(), kv_heads, query_heads / kv_heads, d))?;
            x.reshape((s.end(), query_heads, d))?
                .transpose(0, 1)?
                .contiguous()
        };
        let q = q
            .narrow(0, s.start, s.rows)?
            .reshape((s.rows, query_heads, d))?
            .transpose(0, 1)?
            .contiguous()?;
        let mask = mask(s, shape, q.device())?;
        let out = shape.plain(&q, &gather(keys)?, &gather(values)?, &mask)?;
        outputs.push(out.transpose(0, 1)?.reshape((s.rows, query_heads * d))?);
    }
    Tensor::cat(&outputs, 0)
}

/// 0 where a row may look, −1e30 elsewhere; (1, rows, cached + rows).
fn mask(s: &PagedSequence, shape: AttentionShape, device: &Device) -> Result<Tensor> {
    let mut mask = vec![-1e30f32; s.rows * s.end()];
    for (i, row) in mask.chunks_exact_mut(s.end()).enumerate() {
        let position = s.cached + i;
        row[shape.first_visible(position)..=position].fill(0.0);
    }
    Tensor::from_vec(mask, (1, s.rows, s.end()), device)
}

struct PagedAttention {
    sequences: Arc<[PagedSequence]>,
    shape: AttentionShape,
    block_size: usize,
}

impl PagedAttention {
    /// One row, all heads: reads each cached key and value where it lies.
    fn row(
        &self,
        q: &[f32],
        (keys, values): (&[f32], &[f32]),
        width: usize,
        (s, position): (&PagedSequence, usize),
        out: &mut [f32],
    ) {
        let d = self.shape.head_dim;
        let group = q.len() / width;
        let first = self.shape.first_visible(position);
        let mut weights = vec![0f32; position + 1 - first];
        for (head, (q, out)) in q.chunks_exact(d).zip(out.chunks_exact_mut(d)).enumerate() {
            let column = head / group * d;
            for (seen, w) in (first..).zip(weights.iter_mut()) {
                let at = s.slot(seen, self.block_size) * width + column;
                *w = dot(q, &keys[at..at + d]) * self.shape.scale;
            }
            capped_softmax(&mut weights, self.shape.cap, None);
            for (seen, w) in (first..).zip(&weights) {
                let at = s.slot(seen, self.block_size) * width + column;
                axpy(*w, &values[at..at + d], out);
            }
        }
    }
}

impl CustomOp3 for PagedAttention {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = f32_slice(s1, l1, self.name())?;
        let (keys, values) = (
            f32_slice(s2, l2, self.name())?,
            f32_slice(s3, l3, self.name())?,
        );
        let (rows, q_width) = l1.shape().dims2()?;
        let (slots, width) = l2.shape().dims2()?;
        let mut owners: Vec<Option<(&PagedSequence, usize)>> = vec![None; rows];
        for s in self.sequences.iter() {
            let blocks_hold = s.blocks.len() * self.block_size;
            let in_pool = s
                .blocks
                .iter()
                .all(|&b| (b as usize + 1) * self.block_size <= slots);
            if s.start + s.rows > rows || s.end() > blocks_hold || !in_pool {
                bail!("paged-attention: sequence {s:?} does not fit {rows} rows and {slots} slots");
            }
            for i in 0..s.rows {
                owners[s.start + i] = Some((s, s.cached + i));
            }
        }
        let mut out = vec![0f32; rows * q_width];
        out.par_chunks_mut(q_width)
            .zip(q.par_chunks(q_width))
            .zip(owners)
            .for_each(|((out, q), owner)| {
                if let Some(owner) = owner {
                    self.row(q, (keys, values), width, owner, out);
                }
            });
        Ok((CpuStorage::F32(out), Shape::from((rows, q_width))))
    }
}
