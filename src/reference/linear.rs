//! Products with frozen weights, and adapters along with them.

use std::fmt::Debug;
use std::ops::Range;

use candle_core::{Result, Tensor};
use realign_model::{Linear, LoraPair, LoraWeights};

/// A frozen weight, (out, in), in a form that candle's tensors multiply with.
pub trait TensorWeight: Clone + Debug + Send + Sync + 'static {
    /// `x` (rows, in) times the transposed weight: (rows, out). Sends gradients to x.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device refuses.
    fn product(&self, x: &Tensor) -> Result<Tensor>;

    /// Rows of the weight, for an embedding look-up: (ids, in).
    ///
    /// # Errors
    /// If an id is beyond the weight's rows.
    fn rows(&self, ids: &Tensor) -> Result<Tensor>;
}

impl TensorWeight for Tensor {
    fn product(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.t()?)
    }

    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        self.index_select(ids, 0)
    }
}

/// Rows of a batch and the adapter they carry.
#[derive(Clone, Debug)]
pub struct AdapterRows<'a> {
    /// Consecutive rows of the batch.
    pub rows: Range<usize>,
    /// The adapter, on the device of the weights.
    pub adapter: &'a LoraWeights,
}

/// `W x + b`, plus `scale · B (A x)` on the rows of each adapter that has this site.
///
/// Adapters stay unmerged, so one batch holds sequences of different generations. The ranges must be
/// ascending and disjoint.
///
/// # Errors
/// If the shapes do not fit, or the device refuses.
pub(crate) fn project<W: TensorWeight>(
    map: &Linear<W>,
    x: &Tensor,
    adapters: &[AdapterRows],
) -> Result<Tensor> {
    let mut y = map.weight.product(x)?;
    if let Some(bias) = &map.bias {
        y = y.broadcast_add(bias)?;
    }
    let pairs: Vec<(&Range<usize>, &LoraPair)> = adapters
        .iter()
        .filter_map(|a| a.adapter.sites.get(&map.site).map(|pair| (&a.rows, pair)))
        .collect();
    match pairs.as_slice() {
        [] => Ok(y),
        [(rows, pair)] if **rows == (0..x.dim(0)?) => y + lora_delta(x, pair)?,
        some => {
            let out = y.dim(1)?;
            y + ragged_delta(x, some, out)?
        }
    }
}

/// `scale · B (A x)`, (rows, out).
fn lora_delta(x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
    let product = |x: &Tensor, w: &Tensor| x.matmul(&w.t()?);
    product(&product(x, &pair.a)?, &pair.b)? * pair.scale
}

/// The deltas of several row ranges stitched together, zero between them.
fn ragged_delta(x: &Tensor, pairs: &[(&Range<usize>, &LoraPair)], out: usize) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let zeros = |n: usize| Tensor::zeros((n, out), x.dtype(), x.device());
    let mut parts = Vec::with_capacity(2 * pairs.len() + 1);
    let mut next = 0;
    for (range, pair) in pairs {
        if range.start > next {
            parts.push(zeros(range.start - next)?);
        }
        parts.push(lora_delta(&x.narrow(0, range.start, range.len())?, pair)?);
        next = range.end;
    }
    if next < rows {
        parts.push(zeros(rows - next)?);
    }
    Tensor::cat(&parts, 0)
}
