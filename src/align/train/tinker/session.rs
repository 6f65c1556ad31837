//! A run on an engine: its session and model, from the first request to the last.

use std::cell::Cell;

use realign_core::Category;
use realign_model::packing::{Example, Packed};
use realign_model::{Backend, LoraWeights, Projection};
use serde_json::{Value, json};

use super::client::Client;
use super::error::TinkerError;
use super::passes::{Form, Pass};
use super::wire::{self, Sequence};
use super::{ReadPeft, Tinker, fetched};
use crate::train::Recipe;
use crate::train::choices::OptimizerKind;
use crate::train::examples::TrainExample;
use crate::train::passes::Passes;
use crate::train::run::{Observer, TrainError};

/// Sequences of one request for log-probabilities.
const SEQUENCES: usize = 32;
/// Pairs by which the engine's base model is compared with the local one.
const COMPARED: usize = 2;
/// Mean absolute difference per token from which on it is another model: quantised weights and 16-bit
/// activations come to a tenth of this.
const OTHER_BASE: f64 = 0.7;
/// LoRA alpha of every adapter that an engine makes.
const ENGINES_ALPHA: f64 = 32.0;

/// A model under training on an engine.
#[derive(Debug)]
pub struct Session<'a> {
    pub(super) client: Client<'a>,
    pub(super) backend: &'a dyn Backend,
    pub(super) recipe: &'a Recipe,
    pub(super) observer: Seen<'a>,
    read: ReadPeft,
    base: String,
    pub(super) model: String,
    requests: Cell<u32>,
    pub(super) form: Cell<Option<Form>>,
}

/// An observer, for a `Debug` that leaves it out.
pub(super) struct Seen<'a>(pub(super) &'a dyn Observer);

impl std::fmt::Debug for Seen<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// A pair with what the base says about it.
#[derive(Debug)]
pub struct Measured {
    pub(super) example: TrainExample,
    /// RETAIN: the base's log-probability of each token of the response; otherwise empty.
    pub(super) tokens: Vec<f32>,
}

impl<'a> Session<'a> {
    /// Begins a session and has the engine make an adapter.
    ///
    /// # Errors
    /// A recipe that the API cannot say, an engine that does not answer, or none with the base model.
    pub fn open(
        tinker: &Tinker,
        backend: &'a dyn Backend,
        recipe: &'a Recipe,
        observer: &'a dyn Observer,
    ) -> Result<Self, TrainError> {
        recipe.check()?;
        can_be_said(recipe)?;
        let client = Client::new(tinker, observer)?;
        let base = base(&client, tinker.spec.model.as_deref())?;
        let session = client.post(
            "create_session",
            json!({ "tags": ["realign"], "sdk_version": "realign", "type": "create_session" }),
        )?;
        let session = wire::text(&session, "session_id")?;
        client.keep_alive(session.clone());
        let made = client.post(
            "create_model",
            json!({ "session_id": session, "base_model": base, "lora_config": lora(recipe)? }),
        )?;
        let result = client.result(&made)?;
        let model = wire::text(&made, "model_id").or_else(|_| wire::text(&result, "model_id"))?;
        let url = &tinker.spec.url;
        tracing::info!(url, base, model, "training on an engine");
        for what in differences(recipe) {
            tracing::warn!("the training engine {what}");
        }
        Ok(Self {
            client,
            backend,
            recipe,
            observer: Seen(observer),
            read: tinker.read,
            base,
            model,
            requests: Cell::new(0),
            form: Cell::new(None),
        })
    }

    /// Measures pairs by the base, which a fresh adapter leaves as it is. `progress` is told before each
    /// request how many of how many are done.
    ///
    /// # Errors
    /// [`TinkerError::OtherBase`], or an engine that does not answer.
    pub fn measure(
        &self,
        examples: Vec<TrainExample>,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Vec<Measured>, TrainError> {
        self.compare(&examples)?;
        let mut measured = Vec::with_capacity(examples.len());
        let mut left = examples.into_iter();
        let units = left.len().div_ceil(SEQUENCES / 2);
        for unit in 0..units {
            progress(unit, units);
            let group: Vec<TrainExample> = left.by_ref().take(SEQUENCES / 2).collect();
            let packed = Packed::new(group.iter().map(|e| &e.example));
            let values = self.logprobs(&wire::sequences(group.iter().map(|e| &e.example)))?;
            for (i, mut example) in group.into_iter().enumerate() {
                for response in 0..example.example.responses.len().min(2) {
                    let tokens = &values[packed.span(i, response)];
                    example.reference[response] = tokens.iter().map(|v| f64::from(*v)).sum();
                }
                let tokens = match example.category {
                    Category::Retain => values[packed.span(i, 0)].to_vec(),
                    Category::Invert | Category::Punish => Vec::new(),
                };
                measured.push(Measured { example, tokens });
            }
        }
        Ok(measured)
    }

    /// The current log-probability of every response token.
    pub(super) fn logprobs(&self, sequences: &[Sequence]) -> Result<Vec<f32>, TrainError> {
        let result = self.pass(&Pass {
            forward_only: true,
            loss: "cross_entropy",
            data: sequences.iter().map(Sequence::datum).collect(),
        })?;
        Ok(wire::logprobs(&result, sequences)?)
    }

    /// Asks for something about the model. An engine that gets the same number twice does it once.
    pub(super) fn run(&self, path: &str, mut body: Value) -> Result<Value, TrainError> {
        body["model_id"] = self.model.as_str().into();
        body["seq_id"] = self.number().into();
        self.client.run(path, body)
    }

    /// The number of the next request.
    pub(super) fn number(&self) -> u32 {
        let number = self.requests.get() + 1;
        self.requests.set(number);
        number
    }

    /// The adapter as it is now.
    pub(super) fn fetch(&self) -> Result<LoraWeights, TrainError> {
        let name = match self.save("realign") {
            // An attempt before may have been made without its answer being heard.
            Err(TrainError::Remote(TinkerError::Refused { status: 409, .. })) => {
                self.save("realign-again")?
            }
            saved => saved?,
        };
        let model = &self.model;
        let path = format!("training_runs/{model}/checkpoints/{name}/download");
        let archive = self.client.download(&path)?;
        let (spec, device) = (self.backend.spec(), self.backend.device());
        Ok(fetched::read(&archive, self.read, spec, device)?)
    }

    fn save(&self, name: &'static str) -> Result<&'static str, TrainError> {
        let kind = "save_weights_for_sampler";
        self.run(kind, json!({ "path": name, "type": kind }))?;
        Ok(name)
    }

    /// Compares the engine's base model with the local one.
    fn compare(&self, examples: &[TrainExample]) -> Result<(), TrainError> {
        let few: Vec<Example> = examples
            .iter()
            .take(COMPARED)
            .map(|e| e.example.clone())
            .collect();
        if few.is_empty() {
            return Ok(());
        }
        let theirs = self.logprobs(&wire::sequences(&few))?;
        let mut passes = match Passes::new(self.backend, self.recipe.precision.into()) {
            Ok(passes) => passes,
            // Such weights may be what the engine is for.
            Err(error) => {
                tracing::warn!(%error, "the engine's base model cannot be compared with the one here");
                return Ok(());
            }
        };
        let (_, ours) = passes.reference(&Packed::new(&few), None)?;
        let distances = theirs
            .iter()
            .zip(&ours)
            .map(|(a, b)| f64::from((a - b).abs()));
        let difference = distances.sum::<f64>() / ours.len().max(1) as f64;
        tracing::info!(
            difference,
            "nats a token between the engine's base model and the one here"
        );
        if difference <= OTHER_BASE {
            return Ok(());
        }
        Err(TinkerError::OtherBase {
            model: self.base.clone(),
            difference: format!("{difference:.2}"),
            limit: OTHER_BASE.to_string(),
        }
        .into())
    }
}

impl Drop for Session<'_> {
    /// The engine may forget the model, whatever became of the run.
    fn drop(&mut self) {
        let body = json!({ "model_id": self.model, "type": "unload_model" });
        self.client.goodbye("unload_model", body);
    }
}

/// The base model's name on the engine.
fn base(client: &Client<'_>, wanted: Option<&str>) -> Result<String, TrainError> {
    let answer = client.get("get_server_capabilities")?;
    let models = answer["supported_models"].as_array();
    let models = models.ok_or_else(|| TinkerError::Answer("no supported_models".into()))?;
    let names: Vec<&str> = models
        .iter()
        .filter_map(|m| m["model_name"].as_str())
        .collect();
    let what = match (wanted, &names[..]) {
        (Some(wanted), _) if names.contains(&wanted) => return Ok(wanted.into()),
        (None, [only]) => return Ok((*only).into()),
        (Some(wanted), _) => format!("the training engine has no base model {wanted:?}"),
        (None, _) => format!("the training engine has {} base models", names.len()),
    };
    let known = names.join(", ");
    Err(TinkerError::Model { what, known }.into())
}

fn lora(recipe: &Recipe) -> Result<Value, TrainError> {
    let targets = recipe.projections()?;
    let any = |parent| targets.iter().any(|p: &Projection| p.parent() == parent);
    Ok(json!({
        "rank": recipe.rank,
        // Engines take 32 bits.
        "seed": recipe.seed & 0x7fff_ffff,
        "train_attn": any("self_attn"), "train_mlp": any("mlp"), "train_unembed": false,
    }))
}

/// Refuses what would train something else than the recipe says.
fn can_be_said(recipe: &Recipe) -> Result<(), TinkerError> {
    if recipe.optimizer == OptimizerKind::Lion {
        return Err(TinkerError::Unsupported {
            field: "optimizer",
            value: "lion",
            advice: "the Tinker API has AdamW alone: set \"adamw\"",
        });
    }
    Ok(())
}

/// What an engine decides by its own configuration, where the recipe says something else.
fn differences(recipe: &Recipe) -> Vec<&'static str> {
    let all = recipe.targets.len() == Projection::ALL.len();
    let found = [
        (
            recipe.alpha != ENGINES_ALPHA,
            "sets LoRA's alpha itself (SkyRL: 32): train.alpha has no effect",
        ),
        (
            recipe.layer_share < 1.0 || !recipe.layers.is_empty() || !all,
            "adapts the layers and modules of its own configuration: train.layer_share, train.layers and train.targets \
             have no effect",
        ),
        (
            recipe.dropout > 0.0,
            "drops nothing that it is not configured to: train.dropout has no effect",
        ),
    ];
    let that_apply = found.into_iter().filter(|(applies, _)| *applies);
    that_apply.map(|(_, what)| what).collect()
}
