//! An adapter as an engine returned it: whether it fits the model, and where it is computed with.

use candle_core::Device;
use realign_model::{LoraPair, LoraWeights, ModelSpec};

use super::error::TinkerError;
use super::{ReadPeft, archive};

/// Reads an archive.
///
/// # Errors
/// [`TinkerError::Adapter`] if it is none of an adapter for this model.
pub(super) fn read(
    bytes: &[u8],
    read: ReadPeft,
    spec: &ModelSpec,
    device: &Device,
) -> Result<LoraWeights, TinkerError> {
    let files = archive::read(bytes).map_err(TinkerError::Adapter)?;
    let weights = read(&files.config, &files.model).map_err(TinkerError::Adapter)?;
    check(&weights, spec).map_err(TinkerError::Adapter)?;
    placed(weights, device).map_err(|error| TinkerError::Adapter(error.to_string()))
}

fn check(weights: &LoraWeights, spec: &ModelSpec) -> Result<(), String> {
    if weights.sites.is_empty() {
        return Err("it adapts no module of the model".into());
    }
    for (site, LoraPair { a, b, .. }) in &weights.sites {
        let (layer, name) = (site.layer, site.projection.name());
        let Some((inner, out)) = spec.site_shape(*site) else {
            return Err(format!("the model has no {name} in layer {layer}"));
        };
        let fits = match (a.dims(), b.dims()) {
            ([rank, a_inner], [b_out, b_rank]) => {
                rank == b_rank && (*a_inner, *b_out) == (inner, out)
            }
            _ => false,
        };
        if !fits {
            let (a, b) = (a.dims(), b.dims());
            return Err(format!(
                "{name} of layer {layer} has factors of {a:?} and {b:?}, and the model's is {inner} by {out}"
            ));
        }
    }
    Ok(())
}

fn placed(mut weights: LoraWeights, device: &Device) -> candle_core::Result<LoraWeights> {
    for pair in weights.sites.values_mut() {
        pair.a = pair.a.to_device(device)?;
        pair.b = pair.b.to_device(device)?;
    }
    Ok(weights)
}
