//! A fresh adapter on the layers that the recipe names.

use candle_core::{Result, bail};

use super::recipe::Recipe;
use super::trainable::TrainableLora;
use realign_model::Model;

/// [`TrainableLora::init`] for the recipe, on its layers alone.
///
/// # Errors
/// If the model lacks a layer that the recipe names, or a target is unknown.
pub fn fresh(model: &Model, recipe: &Recipe) -> Result<TrainableLora> {
    let layers = model.spec.layers;
    let checked = recipe
        .check_layers(layers)
        .and_then(|()| recipe.projections());
    let projections = match checked {
        Ok(projections) => projections,
        Err(error) => bail!("{error}"),
    };
    let all = TrainableLora::init(&model.spec, recipe, &projections, &model.device)?;
    if recipe.layers.is_empty() {
        return Ok(all);
    }
    let mut weights = all.weights();
    weights
        .sites
        .retain(|site, _| recipe.adapts(site.layer, layers));
    TrainableLora::from_weights(&weights)
}
