//! `--recipe FILE|default|paper` of the commands that train.

use std::path::Path;

use super::CliError;
use realign_align::train::{ModelSize, Recipe};
use realign_model::{ModelSource, ModelSpec};
use realign_server::config::{TrainConfig, recipe_file};

/// The size of a model on this machine, for the recipe's defaults. Nothing is downloaded, and a
/// model that cannot be read counts as small.
pub(super) fn size_of(model: &str) -> ModelSize {
    let files = match ModelSource::parse(model) {
        Ok(source @ (ModelSource::Gguf(_) | ModelSource::Directory(_))) => source.fetch(),
        Ok(ModelSource::Hub { .. }) | Err(_) => return ModelSize::default(),
    };
    let spec = files.and_then(|files| files.spec());
    spec.map_or_else(|_| ModelSize::default(), |spec| ModelSize::from(&spec))
}

/// The `[train]` section that `--recipe` names, instead of the configured one: a named recipe, or a
/// file with the keys of `[train]`.
pub(super) fn section(
    given: Option<&str>,
    configured: &TrainConfig,
) -> Result<TrainConfig, CliError> {
    Ok(match given {
        None => configured.clone(),
        Some(name @ ("default" | "paper")) => configured.with_recipe(name)?,
        // What computes is no part of a recipe.
        Some(file) => TrainConfig::resolve(recipe_file(Path::new(file))?)?.or_engine_of(configured),
    })
}

/// The recipe for a loaded model.
pub(super) fn for_model(section: &TrainConfig, spec: &ModelSpec) -> Result<Recipe, CliError> {
    let recipe = section.recipe(ModelSize::from(spec)).clone();
    recipe.check_layers(spec.layers)?;
    Ok(recipe)
}
