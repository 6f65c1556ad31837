//! Experts by candle's differentiable primitives: each one on the rows that chose it.

use candle_core::{D, Result, Tensor};
use realign_model::{Activation, Experts};

use crate::linear::TensorWeight;
use crate::ops::TensorOps;

/// What the experts add to the residual stream for rows of `h` (rows, hidden): the sum of the
/// chosen ones' outputs, weighted by the router. Its choice is a constant; its weights are not.
pub(crate) fn mixed<W: TensorWeight>(
    experts: &Experts<W>,
    h: &Tensor,
    activation: Activation,
    ops: &dyn TensorOps,
) -> Result<Tensor> {
    let logits = experts.router.product(h)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let shifted = shifted.exp()?;
    let probabilities = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
    let chosen = chosen(&probabilities, experts.used)?;
    let index = Tensor::from_vec(chosen.concat(), (chosen.len(), experts.used), h.device())?;
    let mut weights = probabilities.gather(&index, D::Minus1)?; // (rows, used)
    if experts.normalised {
        weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    }
    let weights = weights.flatten_all()?;
    let (mut outputs, mut into) = (Vec::new(), Vec::new());
    for (number, [gate, up, down]) in experts.experts.iter().enumerate() {
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        for (row, experts) in chosen.iter().enumerate() {
            if let Some(at) = experts.iter().position(|e| *e as usize == number) {
                rows.push(row as u32);
                places.push((row * experts.len() + at) as u32);
            }
        }
        if rows.is_empty() {
            continue;
        }
        let count = rows.len();
        into.extend_from_slice(&rows);
        let rows = Tensor::from_vec(rows, count, h.device())?;
        let places = Tensor::from_vec(places, count, h.device())?;
        let x = h.index_select(&rows, 0)?;
        let inner = ops.gated(activation, &gate.product(&x)?, &up.product(&x)?)?;
        let weight = weights.index_select(&places, 0)?.reshape((count, 1))?;
        outputs.push(down.product(&inner)?.broadcast_mul(&weight)?);
    }
    let count = into.len();
    let into = Tensor::from_vec(into, count, h.device())?;
    h.zeros_like()?
        .index_add(&into, &Tensor::cat(&outputs, 0)?, 0)
}

/// The `used` likeliest experts of every row, the likeliest first, and the first of equal ones.
fn chosen(probabilities: &Tensor, used: usize) -> Result<Vec<Vec<u32>>> {
    let rows = probabilities.detach().to_vec2::<f32>()?;
    let likeliest = |row: &Vec<f32>| {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        order.truncate(used);
        order
    };
    Ok(rows.iter().map(likeliest).collect())
}
