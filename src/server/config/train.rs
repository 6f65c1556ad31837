//! `[train]`, resolved: the recipe for each model size, and how training is executed.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Layers, RawCorrective, RawTinker, RawTrain};
use realign_align::oracle::corrective::CorrectiveSpec;
use realign_align::train::Recipe;
use realign_align::train::choices::ModelSize;
use realign_align::train::recipe::RecipeError;
use realign_align::train::tinker::{Tinker, TinkerSpec};
use realign_core::ranges;
use realign_engine::adapter::{TrainedBy, peft};
use realign_model::Recompute;

/// Default fraction of compute time given to training while requests are running.
const SHARE: f64 = 0.25;
/// Default niceness of learning threads: the lowest priority, so that steps of the engine wait least.
const NICE: u8 = 19;

/// How adapters are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    recipes: Recipes,
    /// Fraction of compute time given to training while requests are running, within
    /// [`ranges::SHARE`].
    pub share: f64,
    /// Niceness of the threads that learn, within [`ranges::NICE`].
    pub nice: u8,
    /// Time after which no further round of a realignment begins.
    pub max_time: Duration,
    /// Memory limit of a run, in MB; `None` means the memory that is free.
    pub memory_mb: Option<u64>,
    /// Whether activations are recomputed for gradients.
    pub recompute: Recompute,
    /// What computes the steps.
    pub engine: TrainEngine,
    /// The distributed engine, if one is configured.
    pub tinker: Option<TinkerSpec>,
    /// The endpoint that writes compliant responses for pairs in which both responses violate, if
    /// configured.
    pub corrective: Option<CorrectiveSpec>,
}

/// What computes the steps of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainEngine {
    /// This process.
    #[default]
    Local,
    /// A distributed engine that speaks the Tinker API.
    Tinker,
}

/// The recipe for each model size.
#[derive(Clone, Debug, PartialEq)]
struct Recipes {
    small: Recipe,
    medium: Recipe,
    large: Recipe,
}

impl Recipes {
    fn new(raw: &RawTrain) -> Result<Self, RecipeError> {
        Ok(Self {
            small: recipe(raw, ModelSize::Small)?,
            medium: recipe(raw, ModelSize::Medium)?,
            large: recipe(raw, ModelSize::Large)?,
        })
    }
}

impl TrainConfig {
    /// Validates a section and fills in defaults.
    ///
    /// # Errors
    /// [`RecipeError`], naming the key and what is allowed.
    pub fn resolve(raw: RawTrain) -> Result<Self, RecipeError> {
        let recipes = Recipes::new(&raw)?;
        let share = raw.share.unwrap_or(SHARE);
        RecipeError::unless_inside(ranges::SHARE, share)?;
        let nice = raw.nice.unwrap_or(NICE);
        RecipeError::unless_inside(ranges::NICE, f64::from(nice))?;
        let tinker = raw.tinker.filter(|tinker| *tinker != RawTinker::default());
        let config = Self {
            recipes,
            share,
            nice,
            engine: TrainEngine::Local,
            tinker: tinker.map(tinker_spec).transpose()?,
            max_time: Duration::from_secs(raw.max_minutes.unwrap_or(10).saturating_mul(60)),
            memory_mb: raw.memory_mb,
            recompute: recompute(raw.recompute.as_deref())?,
            // A heading without keys configures nothing.
            corrective: raw
                .corrective
                .filter(|c| *c != RawCorrective::default())
                .map(corrective)
                .transpose()?,
        };
        match &raw.engine {
            None => Ok(config),
            Some(name) => config.with_engine(name),
        }
    }

    /// The same settings with steps on the named engine.
    ///
    /// # Errors
    /// [`RecipeError`] if there is no such engine, or it is not configured.
    pub fn with_engine(self, name: &str) -> Result<Self, RecipeError> {
        let engine = match name {
            "local" => TrainEngine::Local,
            "tinker" if self.tinker.is_some() => TrainEngine::Tinker,
            "tinker" => {
                return Err(RecipeError::Other {
                    field: "tinker.url",
                    what: "give the address of the engine that is to train, such as http://trainer:8000".into(),
                });
            }
            other => {
                return Err(RecipeError::Value {
                    field: "engine",
                    value: format!("{other:?}"),
                    allowed: "allowed are \"local\" and \"tinker\"".into(),
                });
            }
        };
        Ok(Self { engine, ..self })
    }

    /// The same settings, with the engine of others if these name no distributed one.
    pub fn or_engine_of(self, others: &Self) -> Self {
        match self.tinker {
            Some(_) => self,
            None => Self {
                engine: others.engine,
                tinker: others.tinker.clone(),
                ..self
            },
        }
    }

    /// The distributed engine, if it is to train.
    pub fn remote(&self) -> Option<Tinker> {
        let spec = match self.engine {
            TrainEngine::Local => None,
            TrainEngine::Tinker => self.tinker.clone(),
        };
        spec.map(|spec| Tinker::new(spec, self.max_time, peft::read_bytes))
    }

    /// What computes the steps, as manifests record it.
    pub fn trained_by(&self) -> TrainedBy {
        match (self.engine, &self.tinker) {
            (TrainEngine::Tinker, Some(spec)) => TrainedBy {
                engine: "tinker".into(),
                address: Some(without_credentials(&spec.url)),
            },
            _ => TrainedBy {
                engine: "local".into(),
                address: None,
            },
        }
    }

    /// The same settings with the named recipe, unmodified.
    ///
    /// # Errors
    /// [`RecipeError`] if there is no such recipe.
    pub fn with_recipe(&self, name: &str) -> Result<Self, RecipeError> {
        let raw = RawTrain {
            recipe: Some(name.into()),
            ..RawTrain::default()
        };
        Ok(Self {
            recipes: Recipes::new(&raw)?,
            ..self.clone()
        })
    }

    /// The recipe for a model of this size.
    pub fn recipe(&self, size: ModelSize) -> &Recipe {
        match size {
            ModelSize::Small => &self.recipes.small,
            ModelSize::Medium => &self.recipes.medium,
            ModelSize::Large => &self.recipes.large,
        }
    }
}

fn recompute(name: Option<&str>) -> Result<Recompute, RecipeError> {
    let Some(name) = name else {
        return Ok(Recompute::default());
    };
    name.parse().map_err(|allowed: &str| RecipeError::Value {
        field: "recompute",
        value: format!("{name:?}"),
        allowed: allowed.into(),
    })
}

/// The recipe that a section describes, for a model of this size.
fn recipe(config: &RawTrain, size: ModelSize) -> Result<Recipe, RecipeError> {
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

/// Sets a field from the name of one of its values.
fn choose<T: DeserializeOwned>(
    field: &mut T,
    value: &Option<String>,
    name: &'static str,
) -> Result<(), RecipeError> {
    let Some(value) = value else { return Ok(()) };
    // Serde's message lists the names that are allowed.
    *field = serde_json::from_value(value.as_str().into()).map_err(|error| RecipeError::Other {
        field: name,
        what: error.to_string(),
    })?;
    Ok(())
}

fn adapter(recipe: &mut Recipe, config: &RawTrain) -> Result<(), RecipeError> {
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

fn steps(recipe: &mut Recipe, config: &RawTrain) -> Result<(), RecipeError> {
    choose(&mut recipe.optimizer, &config.optimizer, "optimizer")?;
    choose(&mut recipe.schedule, &config.schedule, "schedule")?;
    choose(&mut recipe.precision, &config.precision, "precision")?;
    set(&mut recipe.learning_rate, &config.learning_rate);
    set(&mut recipe.betas, &config.betas);
    set(&mut recipe.epsilon, &config.epsilon);
    set(&mut recipe.weight_decay, &config.weight_decay);
    set(&mut recipe.warmup_ratio, &config.warmup_ratio);
    set(&mut recipe.epochs, &config.epochs);
    set(&mut recipe.min_steps, &config.min_steps);
    set(&mut recipe.rounds, &config.rounds);
    set(&mut recipe.pairs_per_step, &config.batch_pairs);
    set(&mut recipe.accumulation, &config.accumulation);
    set(&mut recipe.max_steps, &config.max_steps);
    set(&mut recipe.stop_gradient_norm, &config.stop_gradient_norm);
    set(&mut recipe.clip_norm, &config.clip_norm);
    set(&mut recipe.max_loss_ratio, &config.max_loss_ratio);
    Ok(())
}

fn losses(recipe: &mut Recipe, config: &RawTrain) -> Result<(), RecipeError> {
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
    set(&mut recipe.alpha_opening, &config.alpha_opening);
    set(&mut recipe.gamma, &config.gamma);
    set(&mut recipe.gold_pairs, &config.gold_pairs);
    set(&mut recipe.max_pairs, &config.max_pairs);
    set(&mut recipe.controls, &config.controls);
    set(&mut recipe.situations, &config.situations);
    set(&mut recipe.max_tokens, &config.max_pair_tokens);
    Ok(())
}

/// Maximum number of layers in a range; a larger one is taken for a typo.
const MAX_LAYERS: usize = 1024;

fn list(layers: &Layers) -> Result<Vec<usize>, RecipeError> {
    let wrong = |what: String| RecipeError::Other {
        field: "layers",
        what,
    };
    let mut listed = match layers {
        Layers::List(list) => list.clone(),
        Layers::Range(text) => {
            let ends = text.split_once('-').and_then(|(first, last)| {
                let ends = (first.trim().parse().ok()?, last.trim().parse().ok()?);
                Some(ends).filter(|(a, b): &(usize, usize)| a <= b && b - a < MAX_LAYERS)
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
    if listed.is_empty() {
        return Err(wrong("is empty; name at least one layer, from 0".into()));
    }
    Ok(listed)
}

/// An address without what stands before an `@` in its host, and without what follows its path: both may be secrets.
fn without_credentials(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// The engine that `[train.tinker]` names.
fn tinker_spec(raw: RawTinker) -> Result<TinkerSpec, RecipeError> {
    let url = raw.url.unwrap_or_default();
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(RecipeError::Other {
            field: "tinker.url",
            what: "give the engine's root, such as http://trainer:8000".into(),
        });
    }
    Ok(TinkerSpec {
        url,
        model: raw.model.filter(|model| !model.is_empty()),
        key_env: raw.key_env.filter(|name| !name.is_empty()),
    })
}

/// The endpoint that `[train.corrective]` names.
fn corrective(raw: RawCorrective) -> Result<CorrectiveSpec, RecipeError> {
    let wrong = |field, what: &str| RecipeError::Other {
        field,
        what: what.to_owned(),
    };
    let url = raw.url.unwrap_or_default();
    let url = url.trim_end_matches('/');
    if !url.starts_with("http://") && !url.starts_with("https://") {
        let what = "give an endpoint's base URL, such as http://127.0.0.1:8000/v1";
        return Err(wrong("corrective.url", what));
    }
    let Some(model) = raw.model.filter(|m| !m.is_empty()) else {
        return Err(wrong("corrective.model", "name the model to ask"));
    };
    let spec = CorrectiveSpec {
        url: url.to_owned(),
        model,
        key_env: raw.key_env,
        template: raw.template,
        max_tokens: raw.max_tokens.unwrap_or(160),
        attempts: raw.attempts.unwrap_or(3),
        concurrency: raw.concurrency.unwrap_or(4),
    };
    for (range, value) in [
        (ranges::CORRECTIVE_MAX_TOKENS, spec.max_tokens),
        (ranges::CORRECTIVE_ATTEMPTS, spec.attempts),
        (ranges::CORRECTIVE_CONCURRENCY, spec.concurrency),
    ] {
        RecipeError::unless_inside(range, value as f64)?;
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_align::train::choices::{OptimizerKind, Schedule};

    #[test]
    fn what_is_given_replaces_what_the_named_recipe_says() {
        let config = RawTrain {
            recipe: Some("paper".into()),
            layers: Some(Layers::Range("2-4".into())),
            optimizer: Some("lion".into()),
            schedule: Some("constant".into()),
            max_steps: Some(7),
            ..RawTrain::default()
        };
        let made = recipe(&config, ModelSize::Small).unwrap();
        assert_eq!(made.name, "paper, changed");
        assert_eq!(made.layers, [2, 3, 4]);
        assert_eq!(made.optimizer, OptimizerKind::Lion);
        assert_eq!(made.schedule, Schedule::Constant);
        assert_eq!((made.max_steps, made.rank), (7, Recipe::paper().rank));
        let untouched = TrainConfig::resolve(RawTrain::default()).unwrap();
        for size in [ModelSize::Small, ModelSize::Medium, ModelSize::Large] {
            assert_eq!(*untouched.recipe(size), Recipe::sized(size));
        }
    }

    #[test]
    fn mistakes_name_the_field_and_what_is_allowed() {
        let wrong = |config: RawTrain, expect: &str| {
            let error = recipe(&config, ModelSize::Small).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        let config = RawTrain::default;
        let optimizer = Some("sgdd".to_owned());
        wrong(
            RawTrain {
                optimizer,
                ..config()
            },
            "`adamw` or `lion`",
        );
        let weight_scale = Some("mean".to_owned());
        wrong(
            RawTrain {
                weight_scale,
                ..config()
            },
            "`sum-one`",
        );
        let layers = Some(Layers::Range("9-2".into()));
        wrong(RawTrain { layers, ..config() }, "\"15-29\"");
        let layers = Some(Layers::List(vec![]));
        wrong(RawTrain { layers, ..config() }, "train.layers: is empty");
        let warmup_ratio = Some(2.0);
        wrong(
            RawTrain {
                warmup_ratio,
                ..config()
            },
            "train.warmup_ratio",
        );
    }

    #[test]
    fn manifests_name_an_engine_without_credentials() {
        for (url, recorded) in [
            ("http://trainer:8000", "http://trainer:8000"),
            (
                "https://me:secret@trainer/api?key=secret#x",
                "https://trainer/api",
            ),
            ("http://a@b@[::1]:8000/", "http://[::1]:8000/"),
            ("http://trainer?key=a/b@c", "http://trainer"),
        ] {
            assert_eq!(without_credentials(url), recorded);
        }
    }

    #[test]
    fn an_engine_needs_an_address() {
        let resolve = |engine: &str, url: Option<&str>| {
            TrainConfig::resolve(RawTrain {
                engine: Some(engine.into()),
                tinker: Some(RawTinker {
                    url: url.map(str::to_owned),
                    ..RawTinker::default()
                }),
                ..RawTrain::default()
            })
        };
        let remote = resolve("tinker", Some("http://127.0.0.1:9"))
            .unwrap()
            .remote();
        assert_eq!(remote.unwrap().spec.url, "http://127.0.0.1:9");
        let beside = resolve("local", Some("http://127.0.0.1:9")).unwrap();
        assert!(beside.remote().is_none());
        assert_eq!(beside.trained_by().engine, "local");
        assert_eq!(beside.trained_by().address, None);
        for (engine, url, expect) in [
            ("tinker", None, "train.tinker.url: give"),
            ("local", Some("127.0.0.1"), "train.tinker.url: give"),
            ("ray", None, "train.engine is \"ray\"; allowed are"),
        ] {
            let error = resolve(engine, url).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
    }

    #[test]
    fn a_section_names_an_endpoint_and_mistakes_are_named() {
        let resolve = |corrective: RawCorrective| {
            TrainConfig::resolve(RawTrain {
                corrective: Some(corrective),
                ..RawTrain::default()
            })
        };
        let empty = resolve(RawCorrective::default()).unwrap();
        assert_eq!(empty.corrective, None, "a heading without keys");
        let whole = RawCorrective {
            url: Some("http://127.0.0.1:9/v1/".into()),
            model: Some("m".into()),
            ..RawCorrective::default()
        };
        let spec = resolve(whole.clone()).unwrap().corrective.unwrap();
        assert_eq!(
            (spec.url.as_str(), spec.attempts),
            ("http://127.0.0.1:9/v1", 3)
        );
        for (spoilt, expect) in [
            (
                RawCorrective {
                    url: None,
                    ..whole.clone()
                },
                "train.corrective.url",
            ),
            (
                RawCorrective {
                    model: None,
                    ..whole.clone()
                },
                "train.corrective.model",
            ),
            (
                RawCorrective {
                    attempts: Some(0),
                    ..whole.clone()
                },
                "train.corrective.attempts is 0; from 1 to 16",
            ),
        ] {
            let error = resolve(spoilt).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
    }
}
