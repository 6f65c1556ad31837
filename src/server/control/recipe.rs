//! The recipe that a `[train]` section or a recipe file describes.

use serde::de::DeserializeOwned;

use crate::config::{Layers, TrainConfig};
use realign_align::train::Recipe;
use realign_align::train::choices::ModelSize;
use realign_align::train::recipe::RecipeError;

/// The recipe that a section describes, for a model of this size.
///
/// # Errors
/// [`RecipeError`], naming the field and what is allowed.
pub fn recipe(config: &TrainConfig, size: ModelSize) -> Result<Recipe, RecipeError> {
    let name = config.recipe.as_deref().unwrap_or("default");
    let base = Recipe::named(name, size)?;
    let mut recipe = base.clone();
    adapter(&mut recipe, config)?;
    steps(&mut recipe, config)?;
    losses(&mut recipe, config)?;
    recipe.check()?;
    if recipe != base {
        recipe.name = format!("{name}, changed");
    }
    Ok(recipe)
}

fn set<T: Clone>(field: &mut T, value: &Option<T>) {
    if let Some(value) = value {
        *field = value.clone();
    }
}

/// A field whose values have names.
fn choose<T: DeserializeOwned>(
    field: &mut T,
    value: &Option<String>,
    name: &'static str,
) -> Result<(), RecipeError> {
    let Some(value) = value else { return Ok(()) };
    // Serde's message lists the names that are allowed.
    *field = serde_json::from_value(value.as_str().into()).map_err(|error| RecipeError {
        field: name,
        what: error.to_string(),
    })?;
    Ok(())
}

fn adapter(recipe: &mut Recipe, config: &TrainConfig) -> Result<(), RecipeError> {
    set(&mut recipe.seed, &config.seed);
    set(&mut recipe.rank, &config.rank);
    set(&mut recipe.alpha, &config.alpha);
    set(&mut recipe.dropout, &config.dropout);
    set(&mut recipe.targets, &config.targets);
    set(&mut recipe.layer_share, &config.layer_share);
    if let Some(layers) = &config.layers {
        recipe.layers = list(layers)?;
    }
    Ok(())
}

fn steps(recipe: &mut Recipe, config: &TrainConfig) -> Result<(), RecipeError> {
    choose(&mut recipe.optimizer, &config.optimizer, "optimizer")?;
    choose(&mut recipe.schedule, &config.schedule, "schedule")?;
    choose(&mut recipe.precision, &config.precision, "precision")?;
    set(&mut recipe.learning_rate, &config.learning_rate);
    set(&mut recipe.betas, &config.betas);
    set(&mut recipe.epsilon, &config.epsilon);
    set(&mut recipe.weight_decay, &config.weight_decay);
    set(&mut recipe.warmup_ratio, &config.warmup_ratio);
    set(&mut recipe.epochs, &config.epochs);
    set(&mut recipe.pairs_per_step, &config.batch_pairs);
    set(&mut recipe.accumulation, &config.accumulation);
    set(&mut recipe.max_steps, &config.max_steps);
    set(&mut recipe.stop_gradient_norm, &config.stop_gradient_norm);
    set(&mut recipe.clip_norm, &config.clip_norm);
    set(&mut recipe.max_loss_ratio, &config.max_loss_ratio);
    Ok(())
}

fn losses(recipe: &mut Recipe, config: &TrainConfig) -> Result<(), RecipeError> {
    choose(
        &mut recipe.preference_loss,
        &config.preference_loss,
        "preference_loss",
    )?;
    choose(
        &mut recipe.weight_scale,
        &config.weight_scale,
        "weight_scale",
    )?;
    set(&mut recipe.beta, &config.beta);
    set(&mut recipe.alpha_kl, &config.alpha_kl);
    set(&mut recipe.alpha_sft, &config.alpha_sft);
    set(&mut recipe.gamma, &config.gamma);
    set(&mut recipe.gold_pairs, &config.gold_pairs);
    set(&mut recipe.max_pairs, &config.max_pairs);
    set(&mut recipe.max_tokens, &config.max_pair_tokens);
    Ok(())
}

/// Most layers that a range may span; a larger one is a slip of the pen.
const MOST_LAYERS: usize = 1024;

fn list(layers: &Layers) -> Result<Vec<usize>, RecipeError> {
    let wrong = |what: String| RecipeError {
        field: "layers",
        what,
    };
    let mut listed = match layers {
        Layers::List(list) => list.clone(),
        Layers::Range(text) => {
            let ends = text.split_once('-').and_then(|(first, last)| {
                let ends = (first.trim().parse().ok()?, last.trim().parse().ok()?);
                Some(ends).filter(|(a, b): &(usize, usize)| a <= b && b - a < MOST_LAYERS)
            });
            let Some((first, last)) = ends else {
                return Err(wrong(format!(
                    "{text:?} is no range; write \"first-last\", such as \"15-29\", or a list"
                )));
            };
            (first..=last).collect()
        }
    };
    listed.sort_unstable();
    listed.dedup();
    match listed.is_empty() {
        true => Err(wrong("is empty; name at least one layer, from 0".into())),
        false => Ok(listed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_align::train::choices::{OptimizerKind, Schedule};

    #[test]
    fn what_is_given_replaces_what_the_named_recipe_says() {
        let config = TrainConfig {
            recipe: Some("paper".into()),
            layers: Some(Layers::Range("2-4".into())),
            optimizer: Some("lion".into()),
            schedule: Some("constant".into()),
            max_steps: Some(7),
            ..TrainConfig::default()
        };
        let made = recipe(&config, ModelSize::Small).unwrap();
        assert_eq!(made.name, "paper, changed");
        assert_eq!(made.layers, [2, 3, 4]);
        assert_eq!(made.optimizer, OptimizerKind::Lion);
        assert_eq!(made.schedule, Schedule::Constant);
        assert_eq!((made.max_steps, made.rank), (7, Recipe::paper().rank));
        let untouched = recipe(&TrainConfig::default(), ModelSize::Large).unwrap();
        assert_eq!(untouched, Recipe::sized(ModelSize::Large));
    }

    #[test]
    fn mistakes_name_the_field_and_what_is_allowed() {
        let wrong = |config: TrainConfig, expect: &str| {
            let error = recipe(&config, ModelSize::Small).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        let config = TrainConfig::default;
        let optimizer = Some("sgdd".to_owned());
        wrong(
            TrainConfig {
                optimizer,
                ..config()
            },
            "`adamw` or `lion`",
        );
        let weight_scale = Some("mean".to_owned());
        wrong(
            TrainConfig {
                weight_scale,
                ..config()
            },
            "`sum-one`",
        );
        let layers = Some(Layers::Range("9-2".into()));
        wrong(TrainConfig { layers, ..config() }, "\"15-29\"");
        let layers = Some(Layers::List(vec![]));
        wrong(TrainConfig { layers, ..config() }, "train.layers: is empty");
        let warmup_ratio = Some(2.0);
        wrong(
            TrainConfig {
                warmup_ratio,
                ..config()
            },
            "train.warmup_ratio",
        );
    }
}
