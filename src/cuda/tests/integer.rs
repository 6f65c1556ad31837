//! Matrices of integers: each kernel against candle's product with what the file's own blocks
//! dequantise to, whole models on the executor, and what training makes of them.

use candle_core::quantized::GgmlDType::{self, *};
use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result, Tensor, Var};

use super::executor::{compare_model, spec};
use super::{ELEMENTS, UnderTest, devices, random, random_floats, reference, rounded, tolerance};
use crate::Model;
use crate::Options;
use crate::gpu::{Buffer, Element, Integers, Matrix, Product};
use crate::integer::IntegerWeight;
use crate::launches::{self, Embed};
use realign_reference::{Plain, TensorModel, TensorWeight};

use crate::{Weight, stacked};
use realign_model::lora::{LoraPair, LoraSite, LoraWeights, Projection};
use realign_model::packing::{Example, Packed};
use realign_model::spec::{ModelSpec, Variant};

const SMALL: [GgmlDType; 5] = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0];
const LARGE: [GgmlDType; 5] = [Q2K, Q3K, Q4K, Q5K, Q6K];

/// A random matrix in a GGUF type: its bytes on the device under test, and its floats, which are near
/// to those of the file's own blocks (K-quants' scales are rounded to f16) or the same.
fn matrix(
    test: &UnderTest,
    shape: (usize, usize),
    dtype: GgmlDType,
) -> Result<(Buffer, Integers, Tensor)> {
    let stored = QTensor::quantize(&random(shape)?, dtype)?;
    let weight = IntegerWeight::new(&stored, &Device::Cpu, DType::F32)?.expect("integers");
    let exact = weight.dense()?;
    let near = if SMALL.contains(&dtype) { 1e-6 } else { 4e-3 };
    test.same("floats", &exact, &stored.dequantize(&Device::Cpu)?, near)?;
    let bytes = weight.data().flatten_all()?.to_vec1::<u8>()?;
    let buffer = test.bytes(&bytes)?;
    let integers = Integers {
        at: buffer.address,
        layout: weight.layout,
        row_bytes: weight.layout.row_bytes(shape.1),
    };
    Ok((buffer, integers, exact))
}

/// Types with shapes that they allow: one unit, parts of a warp's stretch, several stretches.
fn cases() -> Vec<(GgmlDType, usize)> {
    let of = |types: [GgmlDType; 5], widths: &'static [usize]| {
        types
            .into_iter()
            .flat_map(move |t| widths.iter().map(move |w| (t, *w)))
    };
    of(SMALL, &[32, 352, 1056])
        .chain(of(LARGE, &[256, 1280]))
        .collect()
}

#[test]
fn products_of_few_rows_agree_for_every_format() -> Result<()> {
    for test in devices() {
        for (dtype, inner) in cases() {
            for (element, rows, out) in [
                (Element::F32, 1, 9),
                (Element::Bf16, 1, 6),
                (Element::F16, 2, 5),
                (Element::F32, 3, 4),
                (Element::Bf16, 8, 7),
            ] {
                few_rows(&test, (dtype, element), [rows, inner, out])?;
            }
        }
    }
    Ok(())
}

fn few_rows(
    test: &UnderTest,
    (dtype, element): (GgmlDType, Element),
    [rows, inner, out]: [usize; 3],
) -> Result<()> {
    let (_held, weight, exact) = matrix(test, (out, inner), dtype)?;
    let x = random((rows, inner))?;
    let stride = out + 3;
    let before = random((rows, stride))?;
    let (y, at_x) = (test.put(&before, Element::F32)?, test.put(&x, element)?);
    test.gpu.launch(&launches::few_rows(&Product {
        element,
        weight: Matrix::Integers(weight),
        x: at_x.address,
        y: y.address + 4,
        rows,
        inner,
        out,
        stride,
    }))?;
    let got = test.get(&y, (rows, stride), Element::F32)?;
    let expected = rounded(&x, element)?.matmul(&exact.t()?)?;
    let what = format!("{dtype:?} ({rows}, {inner}, {out}) {element:?}");
    test.same(
        &what,
        &got.narrow(1, 1, out)?.contiguous()?,
        &expected,
        1e-4,
    )?;
    for beside in [(0, 1), (out + 1, 2)] {
        let part = |t: &Tensor| t.narrow(1, beside.0, beside.1)?.contiguous();
        test.same("columns beside it", &part(&got)?, &part(&before)?, 0.0)?;
    }
    Ok(())
}

#[test]
fn unpacked_matrices_and_embedded_rows_agree_for_every_format() -> Result<()> {
    for test in devices() {
        for (dtype, inner) in cases() {
            let (_held, weight, exact) = matrix(&test, (5, inner), dtype)?;
            let what = format!("{dtype:?} of {inner}");
            for element in ELEMENTS {
                // From the second row on, as a stripe begins.
                let y = test.room(4 * inner, element)?;
                let stripe = weight.skip_rows(1);
                test.gpu
                    .launch(&launches::unpack(element, &stripe, [4, inner], y.address))?;
                let got = test.get(&y, (4, inner), element)?;
                let expected = exact.narrow(0, 1, 4)?.contiguous()?;
                test.same(&what, &got, &expected, tolerance(element))?;
            }
            let ids = [4u32, 0, 4];
            let (tokens, x) = (test.numbers(&ids)?, test.room(3 * inner, Element::F32)?);
            let embed = Embed {
                tokens: tokens.address,
                table: Matrix::Integers(weight),
                scale: 3.0,
                rows: 3,
                width: inner,
                x: x.address,
            };
            test.gpu.launch(&launches::embed(Element::Bf16, &embed))?;
            let chosen = Tensor::new(&ids, &Device::Cpu)?;
            let expected = (exact.index_select(&chosen, 0)? * 3.0)?;
            let got = test.get(&x, (3, inner), Element::F32)?;
            test.same(&what, &got, &expected, 1e-5)?;
        }
    }
    Ok(())
}

/// The same model with its matrices in GGUF types, one after the other, as a device keeps them.
pub(super) fn with_integers(
    model: &Model,
    types: &[GgmlDType],
    (dtype, device): (DType, &Device),
) -> Result<Model> {
    let mut next = types.iter().cycle();
    let model = model.clone().map(|weight| {
        let floats = weight.dense()?.to_device(&Device::Cpu)?;
        let floats = floats.to_dtype(DType::F32)?;
        // Quantising reads a whole storage, whatever part of it a tensor is.
        let stored =
            QTensor::quantize(&floats.force_contiguous()?, *next.next().expect("endless"))?;
        let kept = IntegerWeight::new(&stored, device, dtype)?;
        Ok(Weight::Integers(kept.expect("integers")))
    })?;
    on_device(stacked(model)?, device)
}

/// Norms and biases on a device.
fn on_device(mut model: Model, device: &Device) -> Result<Model> {
    let there = |t: &Tensor| t.to_device(device);
    for layer in &mut model.layers {
        for map in layer.attention.iter_mut().chain(layer.mlp.maps_mut()) {
            map.bias = map.bias.as_ref().map(there).transpose()?;
        }
        let norms = [&mut layer.qk_norms, &mut layer.output_norms];
        let norms = norms.into_iter().flatten().flatten();
        for norm in norms.chain([&mut layer.attention_norm, &mut layer.mlp_norm]) {
            *norm = there(norm)?;
        }
    }
    model.final_norm = there(&model.final_norm)?;
    Ok(model)
}

fn llama(hidden: usize) -> ModelSpec {
    ModelSpec {
        hidden_size: hidden,
        intermediate_size: 3 * hidden / 2,
        ..spec(Variant::default())
    }
}

fn k_quants() -> ModelSpec {
    ModelSpec {
        hidden_size: 256,
        intermediate_size: 256,
        heads: 8,
        kv_heads: 2,
        tied_embeddings: true,
        qkv_bias: true,
        ..spec(Variant::default())
    }
}

#[test]
fn models_of_integers_agree_with_the_shared_decoder() -> Result<()> {
    // Stripes of a few rows, so that the prompts' products take several.
    let options = Options {
        stripe: 1000,
        ..Options::default()
    };
    for test in devices() {
        let check = |name: &str, spec: ModelSpec, types: &[GgmlDType], dtype: DType| {
            let floats = random_floats(spec, DType::F32, &Device::Cpu)?;
            let model = with_integers(&floats, types, (dtype, &test.device))?;
            let allowed = if dtype == DType::F32 { 1e-3 } else { 0.06 };
            compare_model(&test, (name, model), options, allowed)
        };
        // One form for q, k and v, which become one product; and a different one for each map.
        check("llama Q4_0", llama(64), &[Q4_0], DType::F32)?;
        check("llama mixed", llama(64), &SMALL, DType::F32)?;
        check("K-quants", k_quants(), &[Q4K, Q4K, Q6K], DType::F32)?;
        check("llama Q8_0, bf16", llama(64), &[Q8_0], DType::BF16)?;
    }
    Ok(())
}

#[test]
fn matrices_that_lie_one_behind_the_other_are_one_product() -> Result<()> {
    use crate::weights::Weights;
    let floats = random_floats(llama(64), DType::F32, &Device::Cpu)?;
    let products = |types: &[GgmlDType]| -> Result<usize> {
        let model = with_integers(&floats, types, (DType::F32, &Device::Cpu))?;
        let [q, k, v, _] = &model.layers[0].attention;
        Ok(Weights::new(&model)?.products(&[q, k, v])?.len())
    };
    assert_eq!(products(&[Q5_1])?, 1);
    assert_eq!(products(&[Q4_0, Q4_0, Q8_0])?, 3);
    let other = with_integers(&floats, &[Q4_0], (DType::F16, &Device::Cpu))?;
    let mut mixed = with_integers(&floats, &[Q4_0], (DType::F32, &Device::Cpu))?;
    mixed.head = other.head;
    let error = Weights::new(&mixed).err().map(|e| e.to_string());
    assert!(error.is_some_and(|e| e.contains("activations are F32")));
    Ok(())
}

/// The gradient of an adapter's factors under the log-probabilities of a response.
fn gradients<W: TensorWeight>(
    model: &TensorModel<W>,
    pairs: &[(LoraSite, Var, Var)],
) -> Result<Vec<Tensor>> {
    let pair = |(site, a, b): &(LoraSite, Var, Var)| {
        let pair = LoraPair {
            a: a.as_tensor().clone(),
            b: b.as_tensor().clone(),
            scale: 0.5,
        };
        (*site, pair)
    };
    let adapter: LoraWeights = pairs
        .iter()
        .map(pair)
        .collect::<std::collections::BTreeMap<_, _>>()
        .into();
    let example = Example::new(vec![3, 9, 27], vec![vec![20, 5, 1], vec![2, 44]]);
    let batch = Packed::new([&example]);
    let logprobs = model.token_logprobs(&batch, Some(&adapter))?;
    let store = logprobs.sum_all()?.backward()?;
    let of = |v: &Var| store.get(v).cloned();
    Ok(pairs
        .iter()
        .flat_map(|(_, a, b)| [of(a), of(b)])
        .map(|g| g.expect("a gradient"))
        .collect())
}

#[test]
fn training_on_integers_gives_the_gradients_of_their_floats() -> Result<()> {
    let floats = random_floats(llama(64), DType::F32, &Device::Cpu)?;
    let model = with_integers(&floats, &SMALL, (DType::F32, &Device::Cpu))?;
    let learnable = TensorModel {
        decoder: model.clone(),
        ops: &Plain,
    };
    let mut pairs = Vec::new();
    for projection in Projection::ALL {
        let (inner, out) = model.spec.projection_shape(projection);
        let site = LoraSite {
            layer: 0,
            projection,
        };
        let a = Var::randn(0f32, 0.2, (2, inner), &Device::Cpu)?;
        let b = Var::randn(0f32, 0.2, (out, 2), &Device::Cpu)?;
        pairs.push((site, a, b));
    }
    let got = gradients(&learnable, &pairs)?;
    let expected = gradients(&reference(&model)?, &pairs)?;
    for (g, e) in got.iter().zip(&expected) {
        let scale = e.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        let off = (g - e)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(scale > 1e-4 && off < 1e-3 * scale, "{off} of {scale}");
    }
    Ok(())
}
