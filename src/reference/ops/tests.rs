//! What the operations are by their definitions.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use realign_model::spec::RopeSpec;
use realign_model::{AttentionShape, Segment};

use super::*;

const DEVICE: Device = Device::Cpu;

fn random(shape: (usize, usize)) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &DEVICE)
}

fn max_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

#[test]
fn rope_preserves_length() -> Result<()> {
    let x = random((7, 48))?;
    let frequencies = RopeSpec::plain(10_000.0).frequencies(16);
    let table = RopeTable::new(&[0, 1, 5, 900, 3, 3, 8191], &frequencies);
    let norms = |t: &Tensor| t.sqr()?.sum(1);
    assert!(max_difference(&norms(&x)?, &norms(&Plain.rope(&x, &table)?)?)? < 1e-3);
    assert!(Plain.rope(&x, &RopeTable::new(&[0, 1], &[1.0; 4])).is_err());
    Ok(())
}

#[test]
fn soft_cap_keeps_within_the_cap() -> Result<()> {
    let x = (random((7, 333))? * 800.0)?;
    let capped = soft_cap(&x, 5.0)?.flatten_all()?;
    assert!(capped.abs()?.max(0)?.to_scalar::<f32>()? <= 5.0);
    Ok(())
}

#[test]
fn a_branch_never_sees_its_sibling() -> Result<()> {
    let (q, k, v) = (random((12, 16))?, random((12, 16))?, random((12, 16))?);
    let pair: Arc<[Segment]> = Arc::from([Segment::branched(0, 5, &[3, 4])]);
    let out = packed_attention((&q, &k, &v), AttentionShape::full(8), &pair)?;
    // The second branch alone behind the prompt gives the same rows.
    let rows = Tensor::new(&[0u32, 1, 2, 3, 4, 8, 9, 10, 11], &DEVICE)?;
    let alone: Arc<[Segment]> = Arc::from([Segment::branched(0, 5, &[4])]);
    let pick = |t: &Tensor| t.index_select(&rows, 0);
    let expected = packed_attention(
        (&pick(&q)?, &pick(&k)?, &pick(&v)?),
        AttentionShape::full(8),
        &alone,
    )?;
    assert!(max_difference(&pick(&out)?, &expected)? < 1e-6);
    Ok(())
}

#[test]
fn a_model_diverges_from_itself_by_nothing() -> Result<()> {
    let logits = (random((6, 333))? * 4.0)?;
    let same = Plain.kl_from_reference(&logits, &logits)?;
    let same = same.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    assert!(same.iter().all(|kl| kl.abs() < 1e-5), "{same:?}");
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_errors() -> Result<()> {
    let x = random((3, 8))?;
    assert!(Plain.token_logprobs(&x, &[0, 1]).is_err());
    assert!(Plain.token_logprobs(&x, &[0, 1, 8]).is_err());
    assert!(Plain.kl_from_reference(&x, &random((3, 9))?).is_err());
    Ok(())
}
