//! Causal attention over a packed batch, without a cache: what training and scoring use.

use candle_core::{D, Result, Tensor};
use realign_model::{AttentionShape, Segment};

use super::soft_cap;

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

    fn group(self) -> usize {
        self.query / self.key_value
    }
}

/// softmax(cap(q kᵀ · scale)) v for every segment of a packed batch, each row seeing its window.
///
/// `q` is (rows, heads · head_dim), `k` and `v` (rows, kv_heads · head_dim); the result has a
/// row for each of the segments', in their order.
pub fn packed_attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    shape: AttentionShape,
    segments: &[Segment],
) -> Result<Tensor> {
    let heads = Heads {
        query: q.dim(1)? / shape.head_dim,
        key_value: k.dim(1)? / shape.head_dim,
        shape,
    };
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
        let out = attend(&heads.shape, &q, &k, &v, &mask)?
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
    for past in segment.pasts() {
        let Some(own) = past.last() else { continue };
        for (row, position) in own.rows.clone().zip(own.position..) {
            for run in &past {
                let seen = run.seen(position, window);
                mask[row * n + seen.start..row * n + seen.end].fill(0.0);
            }
        }
    }
    Tensor::from_vec(mask, (1, n, n), device)
}

/// softmax(cap(q kᵀ · scale) + mask) v of (heads, rows, head_dim) by candle's primitives.
fn attend(
    shape: &AttentionShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
) -> Result<Tensor> {
    let scores = (q.matmul(&k.t()?)? * f64::from(shape.scale))?; // (heads, rows, keys)
    let scores = match shape.cap {
        Some(cap) => soft_cap(&scores, cap)?,
        None => scores,
    };
    let scores = scores.broadcast_add(mask)?;
    let shifted = scores
        .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
        .exp()?;
    let weights = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
    weights.matmul(v)
}
