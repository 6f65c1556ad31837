//! The operations that training differentiates, in the form that calls our own kernels, against
//! candle's primitives in the same place. On the CPU the emulator runs the kernels.

use candle_core::{Device, Result, Tensor, Var};

use super::places;
use realign_model::{Activation, RopeTable};
use realign_reference::{Plain, TensorOps};

use crate::ops::Kernels;

fn variable(shape: (usize, usize), device: &Device) -> Result<Var> {
    Var::randn(0f32, 1.5, shape, device)
}

fn furthest(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

/// Values, and gradients of a random projection of them, in both forms.
fn check(what: &str, of: &[&Var], f: impl Fn(&dyn TensorOps) -> Result<Tensor>) -> Result<()> {
    let (own, plain) = (f(&Kernels)?, f(&Plain)?);
    assert_eq!(own.dims(), plain.dims(), "{what}");
    let device = own.device().clone();
    let size = furthest(&plain, &plain.zeros_like()?)?;
    let off = furthest(&own, &plain)?;
    assert!(
        off <= 2e-5 * size.max(1.0),
        "{what} on {device:?}: off by {off} of {size}"
    );
    let upstream = Tensor::randn(0f32, 1.0, own.shape(), &device)?;
    let gradients = |y: Tensor| (y * &upstream)?.sum_all()?.backward();
    let (own, plain) = (gradients(own)?, gradients(plain)?);
    for (i, var) in of.iter().enumerate() {
        let (Some(own), Some(plain)) = (own.get(var), plain.get(var)) else {
            panic!("{what} on {device:?}: input {i} has no gradient");
        };
        let size = furthest(plain, &plain.zeros_like()?)?;
        let off = furthest(own, plain)?;
        assert!(
            size > 0.0 && off <= 1e-4 * size.max(1.0),
            "{what} on {device:?}: the gradient of input {i} is off by {off} of {size}"
        );
    }
    Ok(())
}

#[test]
fn norms_rotations_and_gates_in_their_own_form() -> Result<()> {
    for device in places() {
        for (rows, width) in [(1, 64), (5, 300), (3, 3584)] {
            let (x, weight) = (
                variable((rows + 2, width), &device)?,
                Tensor::randn(1f32, 0.3, width, &device)?,
            );
            check("norm", &[&x], |ops| {
                // Rows from the middle: the kernel has to begin where they do.
                ops.rms_norm(&x.narrow(0, 1, rows)?, &weight, 1e-5)
            })?;
            check("norm of columns", &[&x], |ops| {
                let half = weight.narrow(0, 3, width / 2)?;
                ops.rms_norm(&x.narrow(1, width / 4, width / 2)?, &half, 1e-6)
            })?;
            let up = variable((rows + 2, width), &device)?;
            for activation in [Activation::Silu, Activation::GeluTanh] {
                check("gate", &[&x, &up], |ops| {
                    let (gate, up) = (x.narrow(0, 2, rows)?, up.narrow(0, 0, rows)?);
                    ops.gated(activation, &gate, &up)
                })?;
            }
        }
        let frequencies: Vec<f32> = (0..32).map(|i| 1.0 / (1.0 + i as f32)).collect();
        let table = RopeTable::new(&[0, 3, 11, 4000], &frequencies);
        for heads in [1, 3, 9] {
            let x = variable((4, heads * 64), &device)?;
            check("rotation", &[&x], |ops| ops.rope(&x, &table))?;
        }
    }
    Ok(())
}

#[test]
fn losses_of_tokens_in_their_own_form() -> Result<()> {
    for device in places() {
        for vocabulary in [7, 1000, 32_003] {
            let p = variable((5, vocabulary), &device)?;
            let q = Tensor::randn(0f32, 1.5, (5, vocabulary), &device)?;
            let last = vocabulary as u32 - 1;
            let targets = [0, last, 3, 3, last / 2];
            check("log p", &[&p], |ops| ops.token_logprobs(&p, &targets))?;
            check("log p of some rows", &[&p], |ops| {
                ops.token_logprobs(&p.narrow(0, 1, 3)?, &targets[1..4])
            })?;
            check("KL", &[&p], |ops| ops.kl_from_reference(&q, &p))?;
            check("KL of some rows", &[&p], |ops| {
                let rows = |t: &Tensor| t.narrow(0, 2, 3);
                ops.kl_from_reference(&rows(&q)?, &rows(&p)?)
            })?;
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error_in_their_own_form_too() -> Result<()> {
    for device in places() {
        let x = variable((3, 8), &device)?;
        let wrong = Tensor::zeros(9, candle_core::DType::F32, &device)?;
        assert!(Kernels.rms_norm(&x, &wrong, 1e-5).is_err());
        let other = variable((3, 9), &device)?;
        assert!(Kernels.gated(Activation::Silu, &x, &other).is_err());
        assert!(Kernels.token_logprobs(&x, &[0, 1, 8]).is_err());
        let table = RopeTable::new(&[0, 1], &[1.0; 4]);
        assert!(Kernels.rope(&x, &table).is_err());
    }
    Ok(())
}
