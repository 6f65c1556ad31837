//! A fresh adapter on the layers that the recipe names.

use candle_core::{Result, bail};

use super::recipe::Recipe;
use super::trainable::TrainableLora;
use realign_model::Backend;

/// [`TrainableLora::init`] for the recipe, on its layers alone.
///
/// # Errors
/// If the model lacks a layer that the recipe names, or a target is unknown, or none of them
/// can carry an adapter.
pub fn fresh(backend: &dyn Backend, recipe: &Recipe) -> Result<TrainableLora> {
    let spec = backend.spec();
    let layers = spec.layers;
    let checked = recipe
        .check_layers(layers)
        .and_then(|()| recipe.projections());
    let projections = match checked {
        Ok(projections) => projections,
        Err(error) => bail!("{error}"),
    };
    let all = TrainableLora::init(spec, recipe, &projections, backend.device())?;
    if all.vars().next().is_none() {
        bail!(
            "train.targets names projections of the MLP alone, and models with experts carry adapters on \
             attention alone: add q_proj, k_proj, v_proj or o_proj"
        );
    }
    if recipe.layers.is_empty() {
        return Ok(all);
    }
    let mut weights = all.weights();
    weights
        .sites
        .retain(|site, _| recipe.adapts(site.layer, layers));
    TrainableLora::from_weights(&weights)
}
