//! The steps between attention: products, adapters, norms, rotation, gates, embedding.

use candle_core::{Device, Result, Tensor};

use super::{ELEMENTS, UnderTest, devices, random, rounded, tolerance};
use crate::gpu::{Element, Matrix, Product};
use crate::launches::{self, AddNorm, Embed, Heads, Lora, RopeWrite};
use realign_model::{Activation, RopeTable};
use realign_reference::{Plain, TensorOps};

#[test]
fn few_rows_are_a_matrix_product() -> Result<()> {
    for test in devices() {
        for element in ELEMENTS {
            for (rows, inner, out) in [
                (1, 512, 9),
                (2, 264, 5),
                (3, 8, 4),
                (5, 776, 6),
                (8, 256, 7),
            ] {
                few_rows(&test, element, (rows, inner, out))?;
            }
        }
    }
    Ok(())
}

fn few_rows(
    test: &UnderTest,
    element: Element,
    (rows, inner, out): (usize, usize, usize),
) -> Result<()> {
    let (x, w) = (random((rows, inner))?, random((out, inner))?);
    let stride = out + 3;
    let before = random((rows, stride))?;
    let y = test.put(&before, Element::F32)?;
    let (at_x, at_w) = (test.put(&x, element)?, test.put(&w, element)?);
    let product = Product {
        element,
        weight: Matrix::Floats(at_w.address),
        x: at_x.address,
        // Not the first column, as k and v begin within a row.
        y: y.address + 4,
        rows,
        inner,
        out,
        stride,
    };
    let expected = rounded(&x, element)?.matmul(&rounded(&w, element)?.t()?)?;
    for own in [true, false] {
        match own {
            true => test.gpu.launch(&launches::few_rows(&product))?,
            false => test.gpu.product(&product)?,
        }
        let got = test.get(&y, (rows, stride), Element::F32)?;
        test.same(
            "product",
            &got.narrow(1, 1, out)?.contiguous()?,
            &expected,
            1e-4,
        )?;
        let beside = got.narrow(1, out + 1, 2)?.contiguous()?;
        let untouched = before.narrow(1, out + 1, 2)?.contiguous()?;
        test.same("columns beside it", &beside, &untouched, 0.0)?;
    }
    Ok(())
}

#[test]
fn adapters_act_on_their_own_rows_alone() -> Result<()> {
    for test in devices() {
        for element in ELEMENTS {
            adapters(&test, element)?;
        }
    }
    Ok(())
}

/// Rows 0, 3 carry adapter 0, row 2 adapter 1, row 1 none; of two sites, adapter 1 has the second.
fn adapters(test: &UnderTest, element: Element) -> Result<()> {
    let (inner, widths, ranks, places) = (40, [6, 300], [4usize, 7], 7);
    let h = random((4, inner))?;
    let owners = [0i32, -1, 1, 0];
    let factors: Vec<(Tensor, Tensor)> = (0..4)
        .map(|i| {
            Ok((
                random((ranks[i / 2], inner))?,
                random((widths[i % 2], ranks[i / 2]))?,
            ))
        })
        .collect::<Result<_>>()?;
    let (mut kept, mut sites) = (Vec::new(), Vec::new());
    for (i, (a, b)) in factors.iter().enumerate() {
        let (a, b) = (test.put(a, element)?, test.put(b, element)?);
        let rank = if i == 2 { 0 } else { ranks[i / 2] as u32 };
        sites.extend(a.address.to_le_bytes());
        sites.extend(b.address.to_le_bytes());
        sites.extend(rank.to_le_bytes());
        sites.extend(0.5f32.to_le_bytes());
        kept.push((a, b));
    }
    let y_before = random((4, 306))?;
    let y = test.put(&y_before, Element::F32)?;
    let (h_at, sites) = (test.put(&h, element)?, test.bytes(&sites)?);
    let owner_bytes: Vec<u8> = owners.iter().flat_map(|o| o.to_le_bytes()).collect();
    let owner_at = test.bytes(&owner_bytes)?;
    let shrunk = test.room(4 * 2 * places, Element::F32)?;
    let lora = Lora {
        owners: owner_at.address,
        sites: sites.address,
        site_count: 2,
        first: 0,
        columns: &[(0, 6), (6, 300)],
        rows: 4,
        places,
        shrunk: shrunk.address,
    };
    test.gpu
        .launch(&launches::lora_shrink(element, &lora, h_at.address, inner))?;
    test.gpu
        .launch(&launches::lora_expand(element, &lora, y.address, 306))?;
    let rows: Vec<Tensor> = (0..4)
        .map(|row| {
            let base = y_before.narrow(0, row, 1)?;
            let Ok(owner) = usize::try_from(owners[row]) else {
                return Ok(base);
            };
            let x = rounded(&h.narrow(0, row, 1)?, element)?;
            let delta = |site: usize| -> Result<Tensor> {
                let (a, b) = &factors[owner * 2 + site];
                let (a, b) = (rounded(a, element)?, rounded(b, element)?);
                let scale = if owner * 2 + site == 2 { 0.0 } else { 0.5 };
                x.matmul(&a.t()?)?.matmul(&b.t()?)? * scale
            };
            base + Tensor::cat(&[delta(0)?, delta(1)?], 1)?
        })
        .collect::<Result<_>>()?;
    let got = test.get(&y, (4, 306), Element::F32)?;
    test.same("adapters", &got, &Tensor::cat(&rows, 0)?, 1e-4)
}

#[test]
fn a_norm_adds_what_was_pending_first() -> Result<()> {
    for test in devices() {
        for element in ELEMENTS {
            for (with_y, with_norm, chosen) in [
                (false, false, false),
                (true, false, false),
                (true, true, false),
                (true, true, true),
            ] {
                norm(&test, element, (with_y, with_norm, chosen))?;
            }
        }
    }
    Ok(())
}

fn norm(
    test: &UnderTest,
    element: Element,
    (with_y, with_norm, chosen): (bool, bool, bool),
) -> Result<()> {
    let (rows, width, eps) = (3, 300, 1e-5);
    let (x, y) = (random((rows, width))?, random((rows, width))?);
    let (weight, y_weight) = (random(width)?, random(width)?);
    let list = [2u32, 0];
    let count = if chosen { 2 } else { rows };
    let at = [&x, &y, &weight, &y_weight].map(|t| test.put(t, Element::F32));
    let [x_at, y_at, weight_at, y_weight_at] = at;
    let (x_at, y_at, weight_at, y_weight_at) = (x_at?, y_at?, weight_at?, y_weight_at?);
    let (list_at, h) = (test.numbers(&list)?, test.room(count * width, element)?);
    let if_so = |yes: bool, at: u64| if yes { at } else { 0 };
    test.gpu.launch(&launches::add_norm(
        element,
        &AddNorm {
            x: x_at.address,
            y: if_so(with_y, y_at.address),
            y_weight: if_so(with_norm, y_weight_at.address),
            weight: weight_at.address,
            rows: if_so(chosen, list_at.address),
            count,
            eps: eps as f32,
            width,
            h: h.address,
        },
    ))?;
    let added = match (with_y, with_norm) {
        (false, _) => x.clone(),
        (true, false) => (&x + &y)?,
        (true, true) => (&x + Plain.rms_norm(&y, &y_weight, eps)?)?,
    };
    let mut expected = Plain.rms_norm(&added, &weight, eps)?;
    if chosen {
        expected = expected.index_select(&Tensor::new(&list[..], &Device::Cpu)?, 0)?;
    } else {
        test.same(
            "stream",
            &test.get(&x_at, (rows, width), Element::F32)?,
            &added,
            1e-5,
        )?;
    }
    let got = test.get(&h, (count, width), element)?;
    test.same("norm", &got, &expected, tolerance(element))
}

#[test]
fn heads_are_rotated_and_written_to_their_slots() -> Result<()> {
    for test in devices() {
        for element in ELEMENTS {
            for (biased, normed) in [(false, false), (true, false), (false, true), (true, true)] {
                rotation(&test, element, (biased, normed))?;
            }
        }
    }
    Ok(())
}

fn rotation(test: &UnderTest, element: Element, (biased, normed): (bool, bool)) -> Result<()> {
    let heads = Heads {
        queries: 4,
        kv: 2,
        dim: 64,
    };
    let (rows, slots, eps) = (3, 48, 1e-6);
    let (positions, places) = ([0u32, 5, 4000], [17u32, 3, 40]);
    let frequencies: Vec<f32> = (0..32).map(|i| 10000f32.powf(-(i as f32) / 32.0)).collect();
    let (qkv, biases) = (random((rows, heads.width()))?, random(heads.width())?);
    let norms = [random(64)?, random(64)?];
    let at = test.put(&qkv, Element::F32)?;
    let bias_at = test.put(&biases, Element::F32)?;
    let norms_at = [
        test.put(&norms[0], Element::F32)?,
        test.put(&norms[1], Element::F32)?,
    ];
    let positions_at = test.numbers(&positions)?;
    let frequencies_at = test.put(&Tensor::new(&frequencies[..], &Device::Cpu)?, Element::F32)?;
    let angles = [
        test.room(rows * 32, Element::F32)?,
        test.room(rows * 32, Element::F32)?,
    ];
    let slots_at = test.numbers(&places)?;
    let empty = Tensor::zeros((slots, 128), candle_core::DType::F32, &Device::Cpu)?;
    let cache = [test.put(&empty, element)?, test.put(&empty, element)?];
    let angles_at = [angles[0].address, angles[1].address];
    let from = [positions_at.address, frequencies_at.address];
    test.gpu
        .launch(&launches::rope_table(rows, 32, from, angles_at))?;
    let write = RopeWrite {
        qkv: at.address,
        biases: if biased { bias_at.address } else { 0 },
        norms: [0, 1].map(|i| if normed { norms_at[i].address } else { 0 }),
        angles: angles_at,
        slots: slots_at.address,
        eps: eps as f32,
        rows,
        cache: [cache[0].address, cache[1].address],
    };
    test.gpu
        .launch(&launches::rope_write(element, heads, &write))?;

    let table = RopeTable::new(&positions, &frequencies);
    let input = if biased {
        qkv.broadcast_add(&biases)?
    } else {
        qkv
    };
    let turned = |first: usize, width: usize, norm: &Tensor| -> Result<Tensor> {
        let mut x = input.narrow(1, first, width)?.contiguous()?;
        if normed {
            let heads = x.reshape((rows * width / 64, 64))?;
            x = Plain.rms_norm(&heads, norm, eps)?.reshape((rows, width))?;
        }
        Plain.rope(&x, &table)
    };
    let (q, k) = (turned(0, 256, &norms[0])?, turned(256, 128, &norms[1])?);
    let got = test.get(&at, (rows, heads.width()), Element::F32)?;
    // The angle of position 4000 carries what f32 leaves of it.
    test.same("q", &got.narrow(1, 0, 256)?.contiguous()?, &q, 1e-3)?;
    let written = Tensor::new(&places[..], &Device::Cpu)?;
    let v = input.narrow(1, 384, 128)?.contiguous()?;
    for (cache, expected) in cache.iter().zip([k, v]) {
        let all = test.get(cache, (slots, 128), element)?;
        let got = all.index_select(&written, 0)?;
        test.same("cache", &got, &expected, tolerance(element).max(1e-3))?;
        let sum = |t: &Tensor| t.abs()?.sum_all()?.to_scalar::<f32>();
        assert!(
            (sum(&all)? - sum(&got)?).abs() < 1e-2,
            "other slots stay as they are"
        );
    }
    Ok(())
}

#[test]
fn gates_caps_biases_and_embeddings_agree_with_their_twins() -> Result<()> {
    for test in devices() {
        for element in ELEMENTS {
            small_steps(&test, element)?;
        }
        let (y, bias) = (random((2, 300))?, random(300)?);
        let (at, bias_at) = (test.put(&y, Element::F32)?, test.put(&bias, Element::F32)?);
        test.gpu
            .launch(&launches::add_bias([2, 300], [at.address, bias_at.address]))?;
        let got = test.get(&at, (2, 300), Element::F32)?;
        test.same("bias", &got, &y.broadcast_add(&bias)?, 1e-6)?;
        let (v, cap) = ((random((2, 300))? * 20.0)?, 30f32);
        let at = test.put(&v, Element::F32)?;
        test.gpu.launch(&launches::soft_cap(at.address, cap, 600))?;
        let expected = realign_reference::ops::soft_cap(&v, cap)?;
        test.same(
            "cap",
            &test.get(&at, (2, 300), Element::F32)?,
            &expected,
            1e-5,
        )?;
    }
    Ok(())
}

fn small_steps(test: &UnderTest, element: Element) -> Result<()> {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let both = (random((3, 600))? * 3.0)?;
        let (at, m) = (test.put(&both, Element::F32)?, test.room(3 * 300, element)?);
        let gelu = activation == Activation::GeluTanh;
        let launch = launches::gated(element, gelu, [3, 300], [at.address, m.address]);
        test.gpu.launch(&launch)?;
        let part = |first| both.narrow(1, first, 300)?.contiguous();
        let expected = Plain.gated(activation, &part(0)?, &part(300)?)?;
        let got = test.get(&m, (3, 300), element)?;
        test.same("gate", &got, &expected, tolerance(element))?;
    }
    let table = random((9, 70))?;
    let (at, ids, x) = (
        test.put(&table, element)?,
        test.numbers(&[8, 0, 3])?,
        test.room(3 * 70, Element::F32)?,
    );
    test.gpu.launch(&launches::embed(
        element,
        &Embed {
            tokens: ids.address,
            table: Matrix::Floats(at.address),
            scale: 2.0,
            rows: 3,
            width: 70,
            x: x.address,
        },
    ))?;
    let chosen = Tensor::new(&[8u32, 0, 3], &Device::Cpu)?;
    let expected = (rounded(&table, element)?.index_select(&chosen, 0)? * 2.0)?;
    test.same(
        "embedding",
        &test.get(&x, (3, 70), Element::F32)?,
        &expected,
        1e-6,
    )
}
