//! The soft cap of Gemma 2 (arXiv 2408.00118, section 2): y = c · tanh(x / c).

use candle_core::{Result, Tensor};

/// Keeps every element of `x` within ±`cap`, smoothly; the shape stays.
pub fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    (x / cap)?.tanh()? * cap
}
