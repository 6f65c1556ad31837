//! What training differentiates, against candle's primitives and their gradients.

use candle_core::{Device, Result, Tensor, Var};

use super::{UnderTest, devices, random};
use crate::gpu::{Buffer, Element};
use crate::training;
use realign_model::{Activation, RopeTable};
use realign_reference::{Plain, TensorOps};

fn put(test: &UnderTest, t: &Tensor) -> Result<Buffer> {
    test.put(t, Element::F32)
}

fn room(test: &UnderTest, count: usize) -> Result<Buffer> {
    test.room(count, Element::F32)
}

fn get(test: &UnderTest, b: &Buffer, shape: (usize, usize)) -> Result<Tensor> {
    test.get(b, shape, Element::F32)
}

/// The gradient of `y · g` in a variable.
fn gradient(y: &Tensor, g: &Tensor, of: &Var) -> Result<Tensor> {
    let store = (y * g)?.sum_all()?.backward()?;
    Ok(store.get(of).expect("a gradient").clone())
}

#[test]
fn norms_rotations_and_gates_send_the_gradients_of_their_twins() -> Result<()> {
    for test in devices() {
        norm(&test)?;
        rotation(&test)?;
        for activation in [Activation::Silu, Activation::GeluTanh] {
            gate(&test, activation)?;
        }
    }
    Ok(())
}

fn norm(test: &UnderTest) -> Result<()> {
    let (shape, sizes, eps) = ((3, 300), [3, 300], 1e-5);
    let (x, weight, g) = (
        Var::from_tensor(&random(shape)?)?,
        random(300)?,
        random(shape)?,
    );
    let twin = Plain.rms_norm(&x, &weight, eps)?;
    let at = [put(test, &x)?, put(test, &weight)?, put(test, &g)?];
    let (y, dx) = (room(test, 900)?, room(test, 900)?);
    let [x_at, w, g_at] = [0, 1, 2].map(|i| at[i].address);
    let eps = eps as f32;
    test.gpu
        .launch(&training::norm_forward(sizes, eps, [x_at, w, y.address]))?;
    test.gpu.launch(&training::norm_backward(
        sizes,
        eps,
        [x_at, w, g_at, dx.address],
    ))?;
    test.same("norm", &get(test, &y, shape)?, &twin, 1e-5)?;
    test.same(
        "norm's gradient",
        &get(test, &dx, shape)?,
        &gradient(&twin, &g, &x)?,
        2e-5,
    )
}

fn rotation(test: &UnderTest) -> Result<()> {
    let frequencies: Vec<f32> = (0..16).map(|i| 1.0 / (1.0 + i as f32)).collect();
    let table = RopeTable::new(&[0, 3, 11], &frequencies);
    let (x, g) = (Var::from_tensor(&random((3, 96))?)?, random((3, 96))?);
    let twin = Plain.rope(&x, &table)?;
    let (mut cosines, mut sines) = (Vec::new(), Vec::new());
    for row in 0..3 {
        let (c, s) = table.row(row);
        cosines.extend_from_slice(c);
        sines.extend_from_slice(s);
    }
    let values = |v: Vec<f32>| -> Result<Buffer> { put(test, &Tensor::new(v, &Device::Cpu)?) };
    let (cosines, sines) = (values(cosines)?, values(sines)?);
    for (direction, input, expected) in [
        (1.0, x.as_tensor(), twin.clone()),
        (-1.0, &g, gradient(&twin, &g, &x)?),
    ] {
        let (from, y) = (put(test, input)?, room(test, 288)?);
        let at = [from.address, cosines.address, sines.address, y.address];
        test.gpu
            .launch(&training::rotate([3, 96, 16], direction, at))?;
        test.same("rotation", &get(test, &y, (3, 96))?, &expected, 1e-5)?;
    }
    Ok(())
}

fn gate(test: &UnderTest, activation: Activation) -> Result<()> {
    let shape = (3, 100);
    let (gate, up) = (
        Var::from_tensor(&(random(shape)? * 3.0)?)?,
        Var::from_tensor(&random(shape)?)?,
    );
    let g = random(shape)?;
    let twin = Plain.gated(activation, &gate, &up)?;
    let gelu = activation == Activation::GeluTanh;
    let at = [put(test, &gate)?, put(test, &up)?, put(test, &g)?];
    let out = [room(test, 300)?, room(test, 300)?, room(test, 300)?];
    let [gate_at, up_at, g_at] = [0, 1, 2].map(|i| at[i].address);
    let [y, d_gate, d_up] = [0, 1, 2].map(|i| out[i].address);
    test.gpu
        .launch(&training::gate_forward(gelu, 300, [gate_at, up_at, y]))?;
    test.gpu.launch(&training::gate_backward(
        gelu,
        300,
        [gate_at, up_at, g_at, d_gate, d_up],
    ))?;
    test.same("gate", &get(test, &out[0], shape)?, &twin, 1e-5)?;
    let gradients = [gradient(&twin, &g, &gate)?, gradient(&twin, &g, &up)?];
    for (got, expected) in out[1..].iter().zip(gradients) {
        test.same("gate's gradient", &get(test, got, shape)?, &expected, 2e-5)?;
    }
    Ok(())
}

#[test]
fn token_losses_and_their_gradients_agree_over_a_vocabulary() -> Result<()> {
    for test in devices() {
        let (shape, sizes) = ((3, 1000), [3, 1000]);
        let (p, q) = (Var::from_tensor(&(random(shape)? * 2.0)?)?, random(shape)?);
        let g = random(3)?;
        let targets = [7u32, 999, 0];
        let at = [put(&test, &p)?, put(&test, &q)?, put(&test, &g)?];
        let [p_at, q_at, g_at] = [0, 1, 2].map(|i| at[i].address);
        let targets_at = test.numbers(&targets)?;
        let (out, sums, d) = (room(&test, 3)?, room(&test, 6)?, room(&test, 3000)?);
        let [o, s, d_at] = [out.address, sums.address, d.address];

        let twin = Plain.token_logprobs(&p, &targets)?;
        let (forward, backward) = (
            training::logprob_forward(sizes, [p_at, targets_at.address, o, s]),
            training::logprob_backward(sizes, [p_at, targets_at.address, s, g_at, d_at]),
        );
        test.gpu.launch(&forward)?;
        test.gpu.launch(&backward)?;
        test.same("log p", &test.get(&out, 3, Element::F32)?, &twin, 1e-5)?;
        test.same(
            "its gradient",
            &get(&test, &d, shape)?,
            &gradient(&twin, &g, &p)?,
            1e-5,
        )?;

        let twin = Plain.kl_from_reference(&q, &p)?;
        test.gpu
            .launch(&training::kl_forward(sizes, [p_at, q_at, o, s]))?;
        test.gpu
            .launch(&training::kl_backward(sizes, [p_at, q_at, s, g_at, d_at]))?;
        test.same("KL", &test.get(&out, 3, Element::F32)?, &twin, 1e-5)?;
        test.same(
            "its gradient",
            &get(&test, &d, shape)?,
            &gradient(&twin, &g, &p)?,
            1e-5,
        )?;
    }
    Ok(())
}
