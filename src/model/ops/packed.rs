//! Causal attention over a packed batch, without a cache: what training and scoring use.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::attention::{AttentionShape, capped_softmax};
use super::kernels::{axpy, dot, soft_cap_backward};
use super::segment::{Seen, Segment};
use super::{Ops, f32_slice, rows_columns};

/// Heads of grouped-query attention and how each attends.
#[derive(Clone, Copy, Debug)]
struct Heads {
    query: usize,
    key_value: usize,
    shape: AttentionShape,
}

impl Heads {
    /// Columns of one head.
    fn dim(self) -> usize {
        self.shape.head_dim
    }

    /// Columns of q, k and v side by side.
    fn width(self) -> usize {
        (self.query + 2 * self.key_value) * self.dim()
    }

    fn group(self) -> usize {
        self.query / self.key_value
    }
}

/// softmax(cap(q kᵀ · scale)) v for every segment of a packed batch, each row seeing its window.
///
/// `q` is (rows, heads · head_dim), `k` and `v` (rows, kv_heads · head_dim); the result has q's
/// shape. Rows outside every segment come out as zero.
pub fn packed_attention(
    ops: Ops,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    shape: AttentionShape,
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    let heads = Heads {
        query: q.dim(1)? / shape.head_dim,
        key_value: k.dim(1)? / shape.head_dim,
        shape,
    };
    match ops {
        Ops::Plain | Ops::Device => plain(q, k, v, heads, segments),
        Ops::Fused => {
            let qkv = Tensor::cat(&[q, k, v], 1)?;
            qkv.apply_op1(PackedAttention {
                heads,
                segments: segments.clone(),
            })
        }
    }
}

fn plain(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, segments: &[Segment]) -> Result<Tensor> {
    let mut outputs = Vec::with_capacity(segments.len());
    for segment in segments {
        let rows = segment.rows();
        let split = |x: &Tensor, count: usize| -> Result<Tensor> {
            x.narrow(0, rows.start, rows.len())?
                .reshape((rows.len(), count, heads.dim()))?
                .transpose(0, 1)?
                .contiguous()
        };
        let repeat = |x: Tensor| -> Result<Tensor> {
            let (count, t, d) = x.dims3()?;
            x.unsqueeze(1)?
                .expand((count, heads.group(), t, d))?
                .reshape((count * heads.group(), t, d))
        };
        let (q, k, v) = (
            split(q, heads.query)?,
            repeat(split(k, heads.key_value)?)?,
            repeat(split(v, heads.key_value)?)?,
        );
        let mask = mask(segment, heads.shape.window, q.device())?;
        let out = heads
            .shape
            .plain(&q, &k, &v, &mask)?
            .transpose(0, 1)?
            .reshape((rows.len(), heads.query * heads.dim()))?;
        outputs.push(out);
    }
    Tensor::cat(&outputs, 0)
}

/// 0 where a row may look, −1e30 elsewhere; (1, rows, rows).
fn mask(segment: &Segment, window: Option<usize>, device: &candle_core::Device) -> Result<Tensor> {
    let n = segment.rows().len();
    let mut mask = vec![-1e30f32; n * n];
    for (row, seen) in segment.visible(window).into_iter().enumerate() {
        for range in [seen.prompt, seen.own] {
            mask[row * n + range.start..row * n + range.end].fill(0.0);
        }
    }
    Tensor::from_vec(mask, (1, n, n), device)
}

#[derive(Clone)]
struct PackedAttention {
    heads: Heads,
    segments: Arc<[Segment]>,
}

impl PackedAttention {
    /// One task per (segment, kv head): the unit that owns its slice of dk and dv.
    fn tasks(&self) -> Vec<(&Segment, usize)> {
        self.segments
            .iter()
            .flat_map(|s| (0..self.heads.key_value).map(move |h| (s, h)))
            .collect()
    }
}

/// The columns of one head inside a packed qkv matrix, restricted to a segment's rows.
struct HeadRows<'a> {
    data: &'a [f32],
    width: usize,
    first_row: usize,
    column: usize,
    dim: usize,
}

impl<'a> HeadRows<'a> {
    fn row(&self, i: usize) -> &'a [f32] {
        let at = (self.first_row + i) * self.width + self.column;
        &self.data[at..at + self.dim]
    }
}

/// Capped scores of one query row over the keys it sees, oldest first.
fn scores(q: &[f32], keys: &HeadRows, seen: &Seen, scale: f32, scores: &mut Vec<f32>) {
    scores.clear();
    scores.extend(seen.rows().map(|j| dot(q, keys.row(j)) * scale));
}

impl PackedAttention {
    fn head_rows<'a>(&self, qkv: &'a [f32], segment: &Segment, column_head: usize) -> HeadRows<'a> {
        let d = self.heads.dim();
        HeadRows {
            data: qkv,
            width: self.heads.width(),
            first_row: segment.start,
            column: column_head * d,
            dim: d,
        }
    }

    /// Output of one task, (rows, group · head_dim).
    fn forward_task(&self, qkv: &[f32], segment: &Segment, kv_head: usize) -> Vec<f32> {
        let (d, group, shape) = (self.heads.dim(), self.heads.group(), self.heads.shape);
        let keys = self.head_rows(qkv, segment, self.heads.query + kv_head);
        let values = self.head_rows(
            qkv,
            segment,
            self.heads.query + self.heads.key_value + kv_head,
        );
        let visible = segment.visible(self.heads.shape.window);
        let mut out = vec![0f32; visible.len() * group * d];
        let mut weights = Vec::new();
        for g in 0..group {
            let queries = self.head_rows(qkv, segment, kv_head * group + g);
            for (i, seen) in visible.iter().enumerate() {
                scores(queries.row(i), &keys, seen, shape.scale, &mut weights);
                capped_softmax(&mut weights, shape.cap, None);
                let out = &mut out[(i * group + g) * d..][..d];
                for (w, j) in weights.iter().zip(seen.rows()) {
                    axpy(*w, values.row(j), out);
                }
            }
        }
        out
    }

    /// Gradients of one task: dq (rows, group · head_dim), dk and dv (rows, head_dim).
    fn backward_task(
        &self,
        qkv: &[f32],
        grad: &[f32],
        segment: &Segment,
        kv_head: usize,
    ) -> [Vec<f32>; 3] {
        let (d, group, shape) = (self.heads.dim(), self.heads.group(), self.heads.shape);
        let keys = self.head_rows(qkv, segment, self.heads.query + kv_head);
        let values = self.head_rows(
            qkv,
            segment,
            self.heads.query + self.heads.key_value + kv_head,
        );
        let visible = segment.visible(self.heads.shape.window);
        let n = visible.len();
        let (mut dq, mut dk, mut dv) = (
            vec![0f32; n * group * d],
            vec![0f32; n * d],
            vec![0f32; n * d],
        );
        let (mut weights, mut capped, mut d_scores) = (Vec::new(), Vec::new(), Vec::new());
        for g in 0..group {
            let head = kv_head * group + g;
            let queries = self.head_rows(qkv, segment, head);
            let upstream = HeadRows {
                data: grad,
                width: self.heads.query * d,
                first_row: segment.start,
                column: head * d,
                dim: d,
            };
            for (i, seen) in visible.iter().enumerate() {
                let (q, go) = (queries.row(i), upstream.row(i));
                scores(q, &keys, seen, shape.scale, &mut weights);
                capped_softmax(&mut weights, shape.cap, Some(&mut capped));
                d_scores.clear();
                d_scores.extend(seen.rows().map(|j| dot(go, values.row(j))));
                let mean = dot(&weights, &d_scores);
                for (ds, w) in d_scores.iter_mut().zip(&weights) {
                    *ds = w * (*ds - mean) * shape.scale;
                }
                if let Some(cap) = shape.cap {
                    soft_cap_backward(&capped, cap, &mut d_scores);
                }
                let dq = &mut dq[(i * group + g) * d..][..d];
                for ((w, ds), j) in weights.iter().zip(&d_scores).zip(seen.rows()) {
                    let ds = *ds;
                    axpy(*w, go, &mut dv[j * d..][..d]);
                    axpy(ds, keys.row(j), dq);
                    axpy(ds, q, &mut dk[j * d..][..d]);
                }
            }
        }
        [dq, dk, dv]
    }
}

/// Copies a (rows, columns) block into a wider row-major matrix.
fn place(
    block: &[f32],
    columns: usize,
    into: &mut [f32],
    width: usize,
    (row, column): (usize, usize),
) {
    for (i, source) in block.chunks_exact(columns).enumerate() {
        into[(row + i) * width + column..][..columns].copy_from_slice(source);
    }
}

impl CustomOp1 for PackedAttention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = f32_slice(storage, layout, self.name())?;
        let (rows, width) = rows_columns(layout)?;
        if width != self.heads.width() || self.segments.iter().any(|s| s.rows().end > rows) {
            bail!(
                "packed-attention: {rows} rows of {width} do not fit {:?} and its segments",
                self.heads
            );
        }
        let (group_width, out_width) = (
            self.heads.group() * self.heads.dim(),
            self.heads.query * self.heads.dim(),
        );
        let tasks = self.tasks();
        let blocks: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|(s, h)| self.forward_task(qkv, s, *h))
            .collect();
        let mut out = vec![0f32; rows * out_width];
        for ((segment, h), block) in tasks.iter().zip(&blocks) {
            place(
                block,
                group_width,
                &mut out,
                out_width,
                (segment.start, h * group_width),
            );
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, out_width))))
    }

    fn bwd(&self, qkv: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let backward = PackedAttentionBackward(self.clone());
        Ok(Some(qkv.apply_op2_no_bwd(&grad.contiguous()?, &backward)?))
    }
}

/// Recomputes the softmax weights rather than keeping them: they are quadratic in the length.
struct PackedAttentionBackward(PackedAttention);

impl CustomOp2 for PackedAttentionBackward {
    fn name(&self) -> &'static str {
        "packed-attention-backward"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (qkv, grad) = (
            f32_slice(s1, l1, self.name())?,
            f32_slice(s2, l2, self.name())?,
        );
        let heads = self.0.heads;
        let (group_width, width) = (heads.group() * heads.dim(), heads.width());
        let tasks = self.0.tasks();
        let blocks: Vec<[Vec<f32>; 3]> = tasks
            .par_iter()
            .map(|(s, h)| self.0.backward_task(qkv, grad, s, *h))
            .collect();
        let mut d_qkv = vec![0f32; qkv.len()];
        for ((segment, h), [dq, dk, dv]) in tasks.iter().zip(&blocks) {
            let k_column = (heads.query + h) * heads.dim();
            let v_column = k_column + heads.key_value * heads.dim();
            place(
                dq,
                group_width,
                &mut d_qkv,
                width,
                (segment.start, h * group_width),
            );
            place(
                dk,
                heads.dim(),
                &mut d_qkv,
                width,
                (segment.start, k_column),
            );
            place(
                dv,
                heads.dim(),
                &mut d_qkv,
                width,
                (segment.start, v_column),
            );
        }
        Ok((CpuStorage::F32(d_qkv), l1.shape().clone()))
    }
}
