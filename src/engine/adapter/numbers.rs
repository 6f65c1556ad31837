//! Whether an adapter's numbers can be computed with: factors that fit f16, alone and times their
//! scale, and an update of the base's weights that does too.
//!
//! Executors pack factors as f16 or bf16 and multiply in f32; other engines merge the update into 16-bit
//! weights. What a trained adapter holds is orders of magnitude below these bounds.

use realign_model::lora::{LoraPair, LoraSite};

use super::AdapterError;
use super::peft::{Factor, tensor_name};
use realign_model::vector::max;

/// The largest f16.
const LARGEST: f32 = 65504.0;

/// Why an adapter's numbers cannot be computed with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NumberError {
    /// A factor holds NaN, an infinity or a value beyond f16.
    #[error(
        "tensor {tensor:?} holds {value:e} at [{row}, {column}], and factors must be finite and within \
         ±{LARGEST}; its training diverged, train it again"
    )]
    Value {
        /// The tensor's name in the file.
        tensor: String,
        /// What it holds.
        value: f32,
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// The scale is no positive number of f32, or times it a factor is beyond f16.
    #[error(
        "tensor {tensor:?}: the scale lora_alpha / r (or lora_alpha / sqrt(r)) is {scale:e}, and times \
         its largest value {largest:e} that must be above zero and within {LARGEST}; correct lora_alpha"
    )]
    Scale {
        /// The tensor's name in the file.
        tensor: String,
        /// The scale.
        scale: f64,
        /// The tensor's largest magnitude.
        largest: f32,
    },
    /// The update may be beyond f16.
    #[error(
        "tensors {a:?} and {b:?}: their product times the scale {scale} may reach {bound:e}, and changes \
         of the base's weights must be within ±{LARGEST}; the training diverged, train it again"
    )]
    Update {
        /// Name of the down-projection in the file.
        a: String,
        /// Name of the up-projection in the file.
        b: String,
        /// The scale.
        scale: f64,
        /// Bound on the product's elements.
        bound: f64,
    },
}

/// Checks one site's factors, A of (rank, in) and B of (out, rank), and their scale.
///
/// # Errors
/// [`AdapterError::Numbers`], naming the tensor and the value.
pub(super) fn check(site: LoraSite, pair: &LoraPair) -> Result<(), AdapterError> {
    let (a, b) = (tensor_name(site, Factor::A), tensor_name(site, Factor::B));
    let (down, up) = (values(&a, &pair.a)?, values(&b, &pair.b)?);
    let scale = pair.scale as f32;
    for (tensor, rows) in [(&a, &down), (&b, &up)] {
        let largest = magnitude(rows);
        if !scale.is_normal() || !(0.0..=LARGEST).contains(&scale) || largest * scale > LARGEST {
            let (tensor, scale) = (tensor.clone(), pair.scale);
            return Err(NumberError::Scale {
                tensor,
                scale,
                largest,
            }
            .into());
        }
    }
    // |row of B · column of A| is at most the product of their lengths.
    let longest_row = up.iter().map(|row| square(row.iter())).fold(0.0, f64::max);
    let width = down.first().map_or(0, Vec::len);
    let column = |c: usize| square(down.iter().map(|row| &row[c]));
    let longest_column = (0..width).map(column).fold(0.0, f64::max);
    let bound = pair.scale * (longest_row * longest_column).sqrt();
    if bound > f64::from(LARGEST) {
        let scale = pair.scale;
        return Err(NumberError::Update { a, b, scale, bound }.into());
    }
    Ok(())
}

/// A factor's rows, all of whose values are within bounds.
fn values(name: &str, factor: &candle_core::Tensor) -> Result<Vec<Vec<f32>>, AdapterError> {
    let factor = factor.to_device(&candle_core::Device::Cpu)?;
    let rows = factor.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
    let sound = |v: &f32| v.abs() <= LARGEST;
    for (row, values) in rows.iter().enumerate() {
        if let Some(column) = values.iter().position(|v| !sound(v)) {
            let (tensor, value) = (name.to_string(), values[column]);
            return Err(NumberError::Value {
                tensor,
                value,
                row,
                column,
            }
            .into());
        }
    }
    Ok(rows)
}

fn magnitude(rows: &[Vec<f32>]) -> f32 {
    let of_row = |row: &Vec<f32>| row.iter().fold(0f32, |most, v| most.max(v.abs()));
    max(&rows.iter().map(of_row).collect::<Vec<_>>())
}

fn square<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    values.map(|v| f64::from(*v).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use realign_model::lora::Projection;

    use super::*;

    fn problem(a: f32, b: f32, scale: f64) -> Option<String> {
        let full = |value, shape| Tensor::full(value, shape, &Device::Cpu).unwrap();
        let site = LoraSite {
            layer: 3,
            projection: Projection::Up,
        };
        let pair = LoraPair {
            a: full(a, (4, 6)),
            b: full(b, (8, 4)),
            scale,
        };
        check(site, &pair).err().map(|error| error.to_string())
    }

    #[test]
    fn numbers_that_cannot_be_computed_with_are_named() {
        let cases = [
            (3e38, 0.1, 2.0, "lora_A", "3e38"),
            (0.1, -3e38, 2.0, "lora_B", "-3e38"),
            (f32::NAN, 0.1, 2.0, "lora_A", "NaN"),
            (0.1, f32::INFINITY, 2.0, "lora_B", "inf"),
            (65536.0, 0.0, 1.0, "lora_A", "6.5536e4"),
            (0.1, 0.1, 1.25e38, "lora_A", "1.25e38"),
            (0.1, 0.1, f64::INFINITY, "lora_A", "inf"),
            (0.1, 0.1, f64::NAN, "lora_A", "NaN"),
            (0.1, 0.1, -2.0, "lora_A", "-2e0"),
            (0.1, 0.1, 0.0, "lora_A", "0e0"),
            (0.1, 0.1, 1e-44, "lora_A", "1e-44"),
            (40000.0, 0.0, 2.0, "lora_A", "4e4"),
            (0.1, 40000.0, 2.0, "lora_B", "4e4"),
            (200.0, 200.0, 1.0, "lora_B", "1.6e5"),
        ];
        for (a, b, scale, tensor, value) in cases {
            let problem = problem(a, b, scale).expect(value);
            let place = format!("layers.3.mlp.up_proj.{tensor}.weight");
            assert!(
                problem.contains(&place) && problem.contains(value),
                "{problem}"
            );
        }
    }

    #[test]
    fn what_training_comes_to_passes() {
        for (a, b, scale) in [
            (0.02, 0.0, 2.0),
            (0.5, 0.5, 16.0),
            (-5.0, 5.0, 64.0),
            (0.0, 0.0, 0.125),
        ] {
            assert_eq!(problem(a, b, scale), None, "{a} {b} {scale}");
        }
    }
}
