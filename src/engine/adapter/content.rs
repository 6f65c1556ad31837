//! Ids of generations: hashes of an adapter's content and of the base model it belongs to.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::generation::GenerationId;
use super::{AdapterError, numbers, peft};
use realign_model::lora::{LoraSite, LoraWeights};

/// The id of the base model itself, without an adapter.
pub fn base_id(base_hash: &str) -> GenerationId {
    short(
        Sha256::new()
            .chain_update("realign base\n")
            .chain_update(base_hash),
    )
}

/// The id of an adapter on a base model: a hash over the base's hash and, in site order, each
/// site's name, shapes, scale (as f32, which is what serving computes with) and values.
///
/// # Errors
/// [`AdapterError::Tensor`] if weights cannot be copied to the CPU.
pub fn content_id(base_hash: &str, weights: &LoraWeights) -> Result<GenerationId, AdapterError> {
    let mut hash = Sha256::new()
        .chain_update("realign adapter\n")
        .chain_update(base_hash);
    for (site, pair) in &weights.sites {
        hash.update(format!(
            "\n{}.{} {:?} {:?}\n",
            site.layer,
            site.projection.name(),
            pair.a.dims(),
            pair.b.dims()
        ));
        hash.update((pair.scale as f32).to_le_bytes());
        hash.update(peft::f32_bytes(&pair.a)?);
        hash.update(peft::f32_bytes(&pair.b)?);
    }
    Ok(short(hash))
}

fn short(hash: Sha256) -> GenerationId {
    let mut digits = hex::encode(hash.finalize());
    digits.truncate(12);
    GenerationId(digits)
}

/// Checks every site against the base model's linear maps, and its numbers against what executors
/// compute with. `shape_of` gives (in, out) features of a site, or `None` if the model has no such
/// site.
///
/// # Errors
/// [`AdapterError::Shape`], naming the site and both shapes; [`AdapterError::Numbers`], naming the
/// tensor and the value.
pub fn validate(
    weights: &LoraWeights,
    shape_of: &dyn Fn(LoraSite) -> Option<(usize, usize)>,
) -> Result<(), AdapterError> {
    for (site, pair) in &weights.sites {
        let name = format!("layer {} {}", site.layer, site.projection.name());
        let Some((inputs, outputs)) = shape_of(*site) else {
            return Err(AdapterError::Shape(format!(
                "{name} does not exist in the base model"
            )));
        };
        let (rank, a_in) = pair.a.dims2()?;
        let (b_out, b_rank) = pair.b.dims2()?;
        if rank != b_rank {
            return Err(AdapterError::Shape(format!(
                "{name}: A has rank {rank}, B has rank {b_rank}"
            )));
        }
        if (a_in, b_out) != (inputs, outputs) {
            return Err(AdapterError::Shape(format!(
                "{name} maps {inputs} to {outputs} features, the adapter {a_in} to {b_out}"
            )));
        }
        numbers::check(*site, pair)?;
    }
    Ok(())
}

/// Reads a PEFT directory that was made elsewhere, and checks that it fits the base model; `shape_of`
/// as for [`validate`]. Every way by which an adapter of others comes in begins here.
///
/// # Errors
/// As [`peft::read_dir`] and [`validate`].
pub fn read_foreign(
    dir: &Path,
    shape_of: &dyn Fn(LoraSite) -> Option<(usize, usize)>,
) -> Result<peft::PeftAdapter, AdapterError> {
    let adapter = peft::read_dir(dir)?;
    validate(&adapter.weights, shape_of)?;
    Ok(adapter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::test_support::small_weights;

    #[test]
    fn the_id_depends_on_everything_that_changes_the_output() {
        let weights = small_weights(2, 1.0);
        let id = content_id("base", &weights).unwrap();
        assert!(super::super::registry::is_generation_id(&id.0));
        assert_eq!(id, content_id("base", &weights.clone()).unwrap());
        assert_ne!(id, content_id("other", &weights).unwrap());
        assert_ne!(id, base_id("base"));
        let mut scaled = weights.clone();
        scaled.sites.values_mut().for_each(|p| p.scale = 2.0);
        assert_ne!(id, content_id("base", &scaled).unwrap());
        let mut fewer = weights.clone();
        fewer.sites.pop_last();
        assert_ne!(id, content_id("base", &fewer).unwrap());
    }

    #[test]
    fn shapes_are_checked_against_the_base() {
        let weights = small_weights(2, 1.0);
        assert!(validate(&weights, &|_| Some((6, 4))).is_ok());
        for (shape, expect) in [(None, "does not exist"), (Some((6, 5)), "6 to 5")] {
            let error = validate(&weights, &|_| shape).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
    }
}
