//! Every fused operation against its plain twin, values and gradients, on random input.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::*;
use crate::spec::RopeSpec;

const DEVICE: Device = Device::Cpu;

fn random(shape: (usize, usize)) -> Result<Var> {
    Var::from_tensor(&Tensor::randn(0f32, 1.0, shape, &DEVICE)?)
}

fn max_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

/// Runs both forms, compares values, then gradients of a random projection of the output.
fn check(inputs: &[&Var], f: impl Fn(Ops) -> Result<Tensor>) -> Result<()> {
    let (fused, plain) = (f(Ops::Fused)?, f(Ops::Plain)?);
    assert_eq!(fused.shape(), plain.shape());
    assert!(
        max_difference(&fused, &plain)? < 1e-4,
        "values differ by {}",
        max_difference(&fused, &plain)?
    );
    let upstream = Tensor::randn(0f32, 1.0, fused.shape(), &DEVICE)?;
    let fused = (fused * &upstream)?.sum_all()?.backward()?;
    let plain = (plain * &upstream)?.sum_all()?.backward()?;
    for (i, var) in inputs.iter().enumerate() {
        let (a, b) = (fused.get(var), plain.get(var));
        let (a, b) = (
            a.expect("the fused form has a gradient"),
            b.expect("the plain form has a gradient"),
        );
        let size: f32 = b.abs()?.flatten_all()?.max(0)?.to_scalar()?;
        let difference = max_difference(a, b)?;
        assert!(
            size > 0.0 && difference < 2e-4 * size.max(1.0),
            "gradient {i} differs by {difference} of {size}"
        );
    }
    Ok(())
}

#[test]
fn frozen_linear_agrees_with_matmul() -> Result<()> {
    let (x, w) = (
        random((13, 24))?,
        Tensor::randn(0f32, 1.0, (37, 24), &DEVICE)?,
    );
    check(&[&x], |ops| frozen_linear(ops, &x, &w))
}

#[test]
fn rms_norm_agrees_with_primitives() -> Result<()> {
    let (x, w) = (random((9, 40))?, Tensor::randn(1f32, 0.3, 40, &DEVICE)?);
    check(&[&x], |ops| rms_norm(ops, &x, &w, 1e-5))
}

#[test]
fn rope_agrees_with_primitives_and_preserves_length() -> Result<()> {
    let x = random((7, 48))?;
    let frequencies = RopeSpec::plain(10_000.0).frequencies(16);
    let table = RopeTable::new(&[0, 1, 5, 900, 3, 3, 8191], &frequencies);
    check(&[&x], |ops| rope(ops, &x, &table))?;
    let norms = |t: &Tensor| t.sqr()?.sum(1);
    assert!(max_difference(&norms(&x)?, &norms(&rope(Ops::Fused, &x, &table)?)?)? < 1e-3);
    Ok(())
}

#[test]
fn swiglu_agrees_with_primitives() -> Result<()> {
    let (gate, up) = (random((11, 1000))?, random((11, 1000))?);
    check(&[&gate, &up], |ops| {
        gated(ops, Activation::Silu, &gate, &up)
    })
}

#[test]
fn geglu_agrees_with_primitives() -> Result<()> {
    let gate = Var::from_tensor(&Tensor::randn(0f32, 3.0, (11, 1000), &DEVICE)?)?;
    let up = random((11, 1000))?;
    check(&[&gate, &up], |ops| {
        gated(ops, Activation::GeluTanh, &gate, &up)
    })
}

#[test]
fn soft_cap_agrees_with_primitives_and_keeps_within_the_cap() -> Result<()> {
    let x = Var::from_tensor(&Tensor::randn(0f32, 8.0, (7, 333), &DEVICE)?)?;
    check(&[&x], |ops| soft_cap(ops, &x, 5.0))?;
    let capped = soft_cap(Ops::Fused, &(&*x * 100.0)?, 5.0)?.flatten_all()?;
    assert!(capped.abs()?.max(0)?.to_scalar::<f32>()? <= 5.0);
    Ok(())
}

/// Every way in which a layer may attend, each alone and all together.
fn attention_shapes() -> Vec<AttentionShape> {
    let full = AttentionShape::full(8);
    let capped = AttentionShape {
        cap: Some(0.7),
        ..full
    };
    let windowed = AttentionShape {
        window: Some(3),
        ..full
    };
    let all = AttentionShape {
        scale: 0.5,
        window: Some(4),
        ..capped
    };
    vec![full, capped, windowed, all]
}

fn segments() -> Arc<[Segment]> {
    Arc::from([
        Segment {
            start: 0,
            prompt: 5,
            branches: vec![3, 4],
        },
        Segment {
            start: 12,
            prompt: 1,
            branches: vec![],
        },
        Segment {
            start: 13,
            prompt: 2,
            branches: vec![6],
        },
    ])
}

#[test]
fn packed_attention_agrees_with_masked_matmul() -> Result<()> {
    let (q, k, v) = (
        random((21, 6 * 8))?,
        random((21, 2 * 8))?,
        random((21, 2 * 8))?,
    );
    for shape in attention_shapes() {
        check(&[&q, &k, &v], |ops| {
            packed_attention(ops, (&q, &k, &v), shape, &segments())
        })?;
    }
    Ok(())
}

#[test]
fn a_branch_never_sees_its_sibling() -> Result<()> {
    let (q, k, v) = (random((12, 16))?, random((12, 16))?, random((12, 16))?);
    let pair: Arc<[Segment]> = Arc::from([Segment {
        start: 0,
        prompt: 5,
        branches: vec![3, 4],
    }]);
    let out = packed_attention(Ops::Fused, (&q, &k, &v), AttentionShape::full(8), &pair)?;
    // The second branch alone behind the prompt gives the same rows.
    let rows = Tensor::new(&[0u32, 1, 2, 3, 4, 8, 9, 10, 11], &DEVICE)?;
    let alone: Arc<[Segment]> = Arc::from([Segment {
        start: 0,
        prompt: 5,
        branches: vec![4],
    }]);
    let pick = |t: &Tensor| t.index_select(&rows, 0);
    let expected = packed_attention(
        Ops::Fused,
        (&pick(&q)?, &pick(&k)?, &pick(&v)?),
        AttentionShape::full(8),
        &alone,
    )?;
    assert!(max_difference(&pick(&out)?, &expected)? < 1e-6);
    Ok(())
}

#[test]
fn paged_attention_agrees_with_its_twin_and_with_packed_attention() -> Result<()> {
    attention_shapes()
        .into_iter()
        .try_for_each(paged_attention_agrees)
}

fn paged_attention_agrees(shape: AttentionShape) -> Result<()> {
    let (heads, kv_heads, d, block_size) = (4, 2, 8, 4);
    let kv = PagedKv::new(1, kv_heads * d, 8, block_size, &DEVICE)?;
    let (q, k, v) = (
        random((9, heads * d))?,
        random((9, kv_heads * d))?,
        random((9, kv_heads * d))?,
    );
    let blocks: Arc<[u32]> = Arc::from([6u32, 1, 3]);
    // Prefill 6 tokens of one sequence, then 3 more, across block borders and out of order.
    let mut last = None;
    for (cached, rows) in [(0, 6), (6, 3)] {
        let part = |t: &Tensor| t.narrow(0, cached, rows);
        let sequences: Arc<[PagedSequence]> = Arc::from([PagedSequence {
            start: 0,
            rows,
            cached,
            blocks: blocks.clone(),
        }]);
        kv.write(0, &part(&k)?, &part(&v)?, &sequences)?;
        let fused = paged_attention(Ops::Fused, &part(&q)?, &kv, 0, &sequences, shape)?;
        let plain = paged_attention(Ops::Plain, &part(&q)?, &kv, 0, &sequences, shape)?;
        assert!(max_difference(&fused, &plain)? < 1e-5);
        last = Some(fused);
    }
    let whole: Arc<[Segment]> = Arc::from([Segment {
        start: 0,
        prompt: 9,
        branches: vec![],
    }]);
    let packed = packed_attention(Ops::Fused, (&q, &k, &v), shape, &whole)?.narrow(0, 6, 3)?;
    assert!(max_difference(&last.expect("two steps ran"), &packed)? < 1e-5);
    Ok(())
}

#[test]
fn token_losses_agree_with_log_softmax() -> Result<()> {
    let logits = Var::from_tensor(&Tensor::randn(0f32, 4.0, (6, 333), &DEVICE)?)?;
    let reference = Tensor::randn(0f32, 4.0, (6, 333), &DEVICE)?;
    check(&[&logits], |ops| {
        token_logprobs(ops, &logits, &[0, 332, 7, 7, 100, 5])
    })?;
    check(&[&logits], |ops| {
        kl_from_reference(ops, &reference, &logits)
    })?;
    let same = kl_from_reference(Ops::Fused, &logits, &logits)?
        .to_dtype(DType::F64)?
        .to_vec1::<f64>()?;
    assert!(
        same.iter().all(|kl| kl.abs() < 1e-5),
        "KL of a model to itself is {same:?}"
    );
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_errors() -> Result<()> {
    let x = random((3, 8))?;
    assert!(frozen_linear(Ops::Fused, &x, &Tensor::zeros((4, 9), DType::F32, &DEVICE)?).is_err());
    assert!(token_logprobs(Ops::Fused, &x, &[0, 1]).is_err());
    assert!(token_logprobs(Ops::Fused, &x, &[0, 1, 8]).is_err());
    assert!(rope(Ops::Fused, &x, &RopeTable::new(&[0, 1], &[1.0; 4])).is_err());
    Ok(())
}
