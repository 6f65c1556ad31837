use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use super::*;
use crate::activations::{pair_row, round_row};

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

/// The same rows, as pairs too if wanted.
fn rounded(rows: usize, columns: usize, pairs: bool) -> Activations {
    let mut x = activations(rows, columns);
    if pairs {
        write_pairs(&mut x);
    }
    x
}

fn write_pairs(x: &mut Activations) {
    x.pair();
    let stride = pairs_of(x.columns);
    for row in 0..x.rows {
        let values = &x.values[row * x.columns..][..x.columns];
        pair_row(values, &mut x.pairs[row * stride..][..stride]);
    }
}

/// Shapes that are no multiple of a panel, of a pair or of a vector.
const ODD: [(usize, usize); 6] = [(20, 50), (33, 77), (5, 1), (16, 31), (1, 2), (48, 96)];

/// A matrix in every type of floats.
fn floats(shape: (usize, usize)) -> Result<Vec<PackedWeight>> {
    let dense = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?;
    [DType::F32, DType::BF16, DType::F16]
        .into_iter()
        .map(|dtype| PackedWeight::from_dense(&dense.to_dtype(dtype)?))
        .collect()
}

/// AVX-VNNI's kernel, in the encoding of processors with AVX-512.
#[cfg(target_arch = "x86_64")]
#[test]
fn dot_products_of_256_bits_give_what_plain_code_gives() -> Result<()> {
    if !(is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni")) {
        return Ok(());
    }
    for (name, weight) in weights()? {
        let Encoding::Integer(format) = weight.encoding else {
            continue;
        };
        let x = activations(19, 512);
        for (first, rows) in [(0, 16), (0, 1), (3, 2), (16, 3), (5, 7)] {
            let mut tiles = [[[0f32; PANEL]; ROW_SLACK]; 2];
            let [fast, slow] = &mut tiles;
            let (bytes, view) = (weight.panel(1), Rows::new(&x, first));
            // SAFETY: the processor has the features, and `Rows::new` checked the shapes.
            unsafe { vnni::extended::integer(format, bytes, view, rows, fast) };
            portable::integer(format, bytes, view, rows, slow);
            for (fast, slow) in fast[..rows].iter().zip(&slow[..rows]) {
                for (a, b) in fast.iter().zip(slow) {
                    assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{name}: {a} {b}");
                }
            }
        }
    }
    Ok(())
}

/// The instruction sets that this processor can run.
fn available() -> Vec<Isa> {
    Isa::available().collect()
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

/// The same weights in every run: sums that nearly cancel would miss a tight bound now and then.
fn weights() -> Result<Vec<(String, PackedWeight)>> {
    let mut state = 5u64;
    let mut uniform = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let values = (0..37 * 512).map(|_| uniform() + uniform() + uniform());
    let dense = Tensor::from_iter(values, &Device::Cpu)?.reshape((37, 512))?;
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

fn near(ours: &[f32], expected: &[f32], what: &str) {
    for (i, (a, b)) in ours.iter().zip(expected).enumerate() {
        let tolerance = 2e-4 * b.abs().max(10.0);
        assert!((a - b).abs() < tolerance, "{what}, {i}: {a}, not {b}");
    }
}

#[test]
fn every_instruction_set_computes_what_the_portable_form_does() -> Result<()> {
    for pairs in [false, true] {
        let x = rounded(11, 512, pairs);
        for (name, weight) in weights()? {
            let expected = product(Isa::Portable, &weight, &x, 16);
            for isa in available() {
                let what = format!("{name}, {pairs}, {isa:?}");
                near(&product(isa, &weight, &x, 16), &expected, &what);
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
    for pairs in [false, true] {
        let x = rounded(13, 512, pairs);
        for (name, weight) in weights()? {
            for isa in available() {
                let alone = product(isa, &weight, &x, 1);
                for group in [2, 3, 4, 5, 7, 8, 9, 12, 16] {
                    let together = product(isa, &weight, &x, group);
                    assert_eq!(together, alone, "{name}, {pairs}, {isa:?}, {group}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn float_panels_take_any_number_of_rows_and_columns() -> Result<()> {
    for (shape, pairs) in ODD.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let columns = shape.1;
        let x = rounded(5, columns, pairs);
        for weight in floats(shape)? {
            let rounded = pairs && weight.encoding == Encoding::Bf16;
            let values = x.values[..5 * columns].iter().map(|v| match rounded {
                true => half::bf16::from_f32(*v).to_f32(),
                false => *v,
            });
            let floats = Tensor::from_iter(values, &Device::Cpu)?.reshape((5, columns))?;
            let exact = floats.matmul(&weight.dequantize()?.t()?)?;
            let exact = exact.flatten_all()?.to_vec1::<f32>()?;
            for isa in available() {
                let what = format!("{shape:?}, {:?}, {pairs}, {isa:?}", weight.encoding);
                near(&product(isa, &weight, &x, 16), &exact, &what);
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_not_finite_stays_so() -> Result<()> {
    for pairs in [false, true] {
        for weight in floats((16, 34))? {
            for (value, isa) in available()
                .into_iter()
                .flat_map(|isa| [(f32::NAN, isa), (f32::INFINITY, isa)])
            {
                let mut x = activations(2, 34);
                x.values[5] = value;
                if pairs {
                    write_pairs(&mut x);
                }
                let y = product(isa, &weight, &x, 16);
                assert!(y[..16].iter().all(|y| !y.is_finite()), "{pairs}, {isa:?}");
                assert!(y[16..].iter().all(|y| y.is_finite()), "{pairs}, {isa:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn models_say_which_forms_their_weights_want() {
    let integers = Encoding::Integer(Format::of(GgmlDType::Q4_0).unwrap());
    use Precision::{Exact, Mixed};
    let of = |encodings: &[Encoding], precision| {
        wanted(Isa::detect(), encodings.iter().copied(), precision)
    };
    let (only, both) = (
        of(&[integers], Mixed),
        of(&[integers, Encoding::F16], Mixed),
    );
    assert_eq!((only.integers, only.pairs), (true, false));
    assert_eq!((both.integers, both.pairs), (true, false));
    let exact = of(&[Encoding::Bf16], Exact);
    assert_eq!((exact.integers, exact.pairs), (false, false));
    let fast = brain::is_fast(Isa::detect());
    for mixed in [
        [Encoding::Bf16, Encoding::F16],
        [Encoding::F16, Encoding::Bf16],
    ] {
        assert_eq!(of(&mixed, Mixed).pairs, fast);
    }
}
