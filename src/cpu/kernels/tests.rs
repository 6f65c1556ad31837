use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use super::*;
use crate::activations::round_row;

fn activations(rows: usize, columns: usize) -> Activations {
    let mut x = Activations::default();
    x.reshape(rows, columns);
    for (i, v) in x.values.iter_mut().enumerate() {
        *v = ((i * 2_654_435_761) % 1_000) as f32 / 250.0 - 2.0;
    }
    if columns.is_multiple_of(UNIT) {
        for row in 0..rows {
            let at = row * columns;
            let (values, rounded) = (
                &x.values[at..at + columns],
                &mut x.rounded[at..at + columns],
            );
            round_row(
                values,
                rounded,
                &mut x.units[at / UNIT..(at + columns) / UNIT],
            );
        }
    }
    x
}

/// The instruction sets that this processor can run.
fn available() -> Vec<Isa> {
    let all = [Isa::Portable, Isa::Avx2, Isa::Avx512];
    all.into_iter()
        .filter(|isa| *isa <= Isa::detect())
        .collect()
}

fn product(isa: Isa, weight: &PackedWeight, x: &Activations, group: usize) -> Vec<f32> {
    let mut y = vec![0f32; x.rows * weight.out];
    let mut tile = [[0f32; PANEL]; ROW_SLACK];
    for index in 0..weight.panels() {
        for first in (0..x.rows).step_by(group) {
            let rows = group.min(x.rows - first);
            panel(isa, weight, index, x, first, rows, &mut tile);
            for r in 0..rows {
                for lane in 0..PANEL.min(weight.out - index * PANEL) {
                    y[(first + r) * weight.out + index * PANEL + lane] = tile[r][lane];
                }
            }
        }
    }
    y
}

fn weights() -> Result<Vec<(String, PackedWeight)>> {
    let dense = Tensor::randn(0f32, 1.0, (37, 512), &Device::Cpu)?;
    let mut all = Vec::new();
    use GgmlDType::*;
    for dtype in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
        let packed = PackedWeight::from_quantized(&QTensor::quantize(&dense, dtype)?)?;
        all.push((format!("{dtype:?}"), packed));
    }
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let packed = PackedWeight::from_dense(&dense.to_dtype(dtype)?)?;
        all.push((format!("{dtype:?}"), packed));
    }
    Ok(all)
}

#[test]
fn every_instruction_set_computes_what_the_portable_form_does() -> Result<()> {
    let x = activations(11, 512);
    for (name, weight) in weights()? {
        let expected = product(Isa::Portable, &weight, &x, 16);
        for isa in available() {
            let ours = product(isa, &weight, &x, 16);
            for (i, (a, b)) in ours.iter().zip(&expected).enumerate() {
                let tolerance = 2e-4 * b.abs().max(10.0);
                assert!(
                    (a - b).abs() < tolerance,
                    "{name}, {isa:?}, {i}: {a}, not {b}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_portable_form_is_near_the_float_product() -> Result<()> {
    let x = activations(3, 512);
    for (name, weight) in weights()? {
        let ours = product(Isa::Portable, &weight, &x, 16);
        let floats = Tensor::from_slice(&x.values[..3 * 512], (3, 512), &Device::Cpu)?;
        let exact = floats.matmul(&weight.dequantize()?.t()?)?;
        for (a, b) in ours.iter().zip(exact.flatten_all()?.to_vec1::<f32>()?) {
            // 8-bit rounding of 512 activations of size one to two.
            assert!((a - b).abs() < 1.0, "{name}: {a}, not {b}");
        }
    }
    Ok(())
}

#[test]
fn a_rows_result_does_not_depend_on_its_companions() -> Result<()> {
    let x = activations(13, 512);
    for (name, weight) in weights()? {
        for isa in available() {
            let alone = product(isa, &weight, &x, 1);
            for group in [2, 3, 4, 5, 8, 9, 16] {
                assert_eq!(
                    product(isa, &weight, &x, group),
                    alone,
                    "{name}, {isa:?}, {group}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn float_panels_take_any_number_of_columns() -> Result<()> {
    let dense = Tensor::randn(0f32, 1.0, (20, 50), &Device::Cpu)?;
    let weight = PackedWeight::from_dense(&dense)?;
    let x = activations(2, 50);
    let floats = Tensor::from_slice(&x.values[..100], (2, 50), &Device::Cpu)?;
    let exact = floats
        .matmul(&dense.t()?)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    for isa in available() {
        for (a, b) in product(isa, &weight, &x, 16).iter().zip(&exact) {
            assert!((a - b).abs() < 1e-3, "{isa:?}: {a}, not {b}");
        }
    }
    Ok(())
}
