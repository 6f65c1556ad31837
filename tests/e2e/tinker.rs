//! Training on a distributed engine, against the local trainer, and what happens where the engine fails.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use realign_align::train::examples::{Reference, TokenPair, with_reference};
use realign_align::train::passes::Passes;
use realign_align::train::tinker::{Patience, Session, Tinker, TinkerSpec};
use realign_align::train::{
    Begin, Objective, Observer, Recipe, StepReport, TrainError, TrainExample, TrainableLora,
    Trained, fresh, train,
};
use realign_core::Category;
use realign_engine::adapter::peft;
use realign_model::{Backend, LoraWeights, Precision};
use serde_json::Value;

use super::server::Server;
use super::tinker_stand_in::{Fault, Form, Reduction, TrainingEngine, backend};
use super::tiny_model;
use super::workspace::Workspace;

/// A random llama of two layers.
fn llama() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/llama")
}

/// Three steps of float32 without clipping.
fn recipe() -> Recipe {
    Recipe {
        rank: 2,
        layer_share: 1.0,
        min_steps: 0,
        max_steps: 3,
        pairs_per_step: 4,
        learning_rate: 0.01,
        clip_norm: 1e9,
        precision: realign_align::train::choices::RecipePrecision::F32,
        ..Recipe::default()
    }
}

const UNCLIPPED: Reduction = Reduction::Sum { clip: 1e9 };

fn pairs(categories: &[Category]) -> Vec<TokenPair> {
    let tokens = |seed: usize, length: usize| -> Vec<u32> {
        (0..length)
            .map(|i| (3 + (seed * 31 + i * 17) % 240) as u32)
            .collect()
    };
    let pair = |i: usize| TokenPair {
        id: i.to_string(),
        category: categories[i % categories.len()],
        prompt: tokens(i, 6 + i % 4),
        chosen: tokens(i + 100, 5 + i % 3),
        rejected: tokens(i + 200, 4 + i % 5),
    };
    (0..24).map(pair).collect()
}

/// Goes on for so many looks.
struct Looks(AtomicUsize);

impl Observer for Looks {
    fn proceed(&self) -> bool {
        let less = |n: usize| n.checked_sub(1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
    fn on_step(&self, _: &StepReport) {}
}

fn forever() -> Looks {
    Looks(AtomicUsize::new(usize::MAX))
}

fn tinker(url: &str) -> Tinker {
    let spec = TinkerSpec {
        url: url.into(),
        model: None,
        key_env: None,
    };
    Tinker {
        patience: Patience {
            attempts: 3,
            first_pause: Duration::from_millis(5),
        },
        ..Tinker::new(spec, Duration::from_secs(120), peft::read_bytes)
    }
}

fn remote(
    tinker: &Tinker,
    recipe: &Recipe,
    pairs: &[TokenPair],
    observer: &Looks,
) -> Result<Trained, TrainError> {
    let local = backend(&llama());
    let session = Session::open(tinker, &local, recipe, observer)?;
    let examples = pairs.iter().map(TrainExample::unmeasured).collect();
    let measured = session.measure(examples, &|_, _| ())?;
    session.train(&measured)
}

fn measured(backend: &dyn Backend, recipe: &Recipe, pairs: &[TokenPair]) -> Vec<TrainExample> {
    let at = Reference {
        backend,
        lowest_layer: recipe.lowest_layer(backend.spec().layers),
        precision: Precision::Exact,
        conflicts: true,
    };
    with_reference(at, pairs, 512, |_| true).unwrap().unwrap()
}

fn local(recipe: &Recipe, pairs: &[TokenPair]) -> Trained {
    let backend = backend(&llama());
    let examples = measured(&backend, recipe, pairs);
    train(&backend, &examples, recipe, Begin::default(), &forever()).unwrap()
}

/// How far an adapter has moved from where every run begins.
fn moved(weights: &LoraWeights, recipe: &Recipe) -> Vec<f64> {
    let flat = |weights: &LoraWeights| -> Vec<f64> {
        let tensors = weights.sites.values().flat_map(|pair| [&pair.a, &pair.b]);
        let values = tensors.flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        values.map(f64::from).collect()
    };
    let begin = fresh(&backend(&llama()), recipe)
        .unwrap()
        .snapshot()
        .unwrap();
    let (end, begin) = (flat(weights), flat(&begin));
    assert_eq!(end.len(), begin.len());
    end.iter().zip(&begin).map(|(a, b)| a - b).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The difference of two movements as a part of the second.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    (dot(&difference, &difference) / dot(b, b)).sqrt()
}

#[test]
fn three_steps_agree_with_the_local_trainer() {
    let pairs = pairs(&[Category::Invert, Category::Punish]);
    for accumulation in [1, 2] {
        let recipe = Recipe {
            accumulation,
            ..recipe()
        };
        let here = local(&recipe, &pairs);
        let expected = moved(&here.weights, &recipe);
        for reduction in [UNCLIPPED, Reduction::Mean] {
            let engine = TrainingEngine::start(&llama(), &recipe, reduction);
            let there = remote(&tinker(&engine.url), &recipe, &pairs, &forever()).unwrap();
            assert_eq!(there.steps, 3);
            assert_eq!(there.ending, here.ending);
            let apart = apart(&moved(&there.weights, &recipe), &expected);
            println!(
                "{reduction:?}, {accumulation} batches a step: {apart:.2e} of the movement apart"
            );
            assert!(apart < 1e-3, "{reduction:?}: {apart}");
            for (a, b) in there.curve.0.iter().zip(&here.curve.0) {
                assert!((a.total - b.total).abs() < 1e-4 * b.total, "{a:?} {b:?}");
                assert!((a.learning_rate - b.learning_rate).abs() < 1e-12);
                assert_eq!(a.tokens, b.tokens);
                let ratio = a.gradient_norm / b.gradient_norm;
                assert!((ratio - 1.0).abs() < 1e-3, "{ratio}");
            }
            assert_eq!(engine.asked("optim_step"), 3);
            assert_eq!(
                engine.asked("unload_model"),
                1,
                "it need not keep the model"
            );
        }
    }
}

/// The same bits go to both forms, so the same adapter comes back.
#[test]
fn engines_that_read_json_train_the_same() {
    let (recipe, pairs) = (recipe(), pairs(&Category::ALL));
    let trained = |form: Form| {
        let engine = TrainingEngine::start(&llama(), &recipe, UNCLIPPED);
        engine.speak(form);
        let there = remote(&tinker(&engine.url), &recipe, &pairs, &forever()).unwrap();
        // One request compares the models, two measure 24 pairs, each step has two; the first finds out the form.
        let expected = 1 + 2 + 3 * 2 + usize::from(form == Form::Json);
        assert_eq!(engine.asked("forward"), expected, "{form:?}");
        moved(&there.weights, &recipe)
    };
    assert_eq!(trained(Form::Proto), trained(Form::Json));
}

#[test]
fn gradients_are_clipped_as_the_engine_does() {
    let pairs = pairs(&[Category::Invert, Category::Punish]);
    let recipe = Recipe {
        clip_norm: 0.05,
        ..recipe()
    };
    let expected = moved(&local(&recipe, &pairs).weights, &recipe);
    let engine = TrainingEngine::start(&llama(), &recipe, Reduction::Sum { clip: 0.05 });
    let there = remote(&tinker(&engine.url), &recipe, &pairs, &forever()).unwrap();
    assert!(there.curve.0[0].gradient_norm > 0.05);
    let apart = apart(&moved(&there.weights, &recipe), &expected);
    assert!(apart < 1e-3, "{apart}");
}

/// The KL of RETAIN pairs to the base, a mean over their tokens, summed over the pairs.
fn distance(weights: &LoraWeights, pairs: &[TokenPair]) -> f64 {
    let backend = backend(&llama());
    let examples = measured(&backend, &recipe(), pairs);
    let retained: Vec<&TrainExample> = examples
        .iter()
        .filter(|e| e.category == Category::Retain)
        .collect();
    let objective = Objective {
        alpha_kl: 1.0,
        alpha_opening: 0.0,
        ..Objective::from(&recipe())
    };
    let lora = TrainableLora::from_weights(weights).unwrap();
    let mut passes = Passes::new(&backend, Precision::Exact).unwrap();
    passes.loss(&objective, &lora, &retained).unwrap().1.retain
}

/// KL over the vocabulary here, half a squared log-ratio of the token there.
#[test]
fn retained_pairs_are_held_by_their_tokens() {
    let pairs = pairs(&Category::ALL);
    let held = Recipe {
        max_steps: 12,
        epochs: 2,
        ..recipe()
    };
    let loose = Recipe {
        alpha_kl: 0.0,
        ..held.clone()
    };
    let there = |recipe: &Recipe| {
        let engine = TrainingEngine::start(&llama(), recipe, UNCLIPPED);
        remote(&tinker(&engine.url), recipe, &pairs, &forever()).unwrap()
    };
    let [free, engine] = [&loose, &held].map(&there);
    let here = local(&held, &pairs);
    let (a, b) = (moved(&engine.weights, &held), moved(&here.weights, &held));
    let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    let [free, engine, here] = [free, engine, here].map(|t| distance(&t.weights, &pairs));
    println!(
        "KL without RETAIN {free:.4}, by tokens {engine:.4}, by KL {here:.4}; cosine {cosine:.3}"
    );
    // One token of a nearly flat distribution says little about the others.
    assert!(
        here < engine && engine < 0.95 * free,
        "{here} {engine} {free}"
    );
}

fn fails(fault: Fault, change: impl Fn(&mut Tinker), looks: &Looks) -> (String, TrainingEngine) {
    let recipe = recipe();
    let engine = TrainingEngine::start_with(&llama(), &recipe, UNCLIPPED, fault);
    let mut tinker = tinker(&engine.url);
    change(&mut tinker);
    let pairs = pairs(&[Category::Invert]);
    let error = remote(&tinker, &recipe, &pairs, looks).unwrap_err();
    (error.to_string(), engine)
}

#[test]
fn an_engine_that_is_busy_for_a_while_is_waited_for() {
    let (recipe, pairs) = (recipe(), pairs(&[Category::Invert]));
    let engine = TrainingEngine::start_with(&llama(), &recipe, UNCLIPPED, Fault::Busy(2));
    let there = remote(&tinker(&engine.url), &recipe, &pairs, &forever()).unwrap();
    let apart = apart(
        &moved(&there.weights, &recipe),
        &moved(&local(&recipe, &pairs).weights, &recipe),
    );
    assert!(apart < 1e-3, "nothing was done twice: {apart}");
}

#[test]
fn faults_say_what_to_do_and_leave_nothing_behind() {
    let as_it_is = |_: &mut Tinker| ();
    let hurried = |tinker: &mut Tinker| tinker.max_time = Duration::from_millis(1500);
    let cases: [(Fault, &[&str]); 4] = [
        (
            Fault::Broken,
            &[
                "did not answer after 3 attempts",
                "status 500",
                "train.engine = \"local\"",
            ],
        ),
        (Fault::Short, &["log-probabilities for", "Tinker API"]),
        (
            Fault::Other,
            &["another one than the model served here", "3.00 nats"],
        ),
        (
            Fault::Slow,
            &["not done after 1 minutes", "train.max_minutes"],
        ),
    ];
    for (fault, parts) in cases {
        let (error, engine) = match fault {
            Fault::Slow => fails(fault, hurried, &forever()),
            _ => fails(fault, as_it_is, &forever()),
        };
        for part in parts {
            assert!(error.contains(part), "{fault:?}: {error}");
        }
        assert_eq!(engine.asked("unload_model"), 1, "{fault:?}");
        assert_eq!(engine.asked("optim_step"), 0, "{fault:?}");
    }
    let (error, engine) = fails(Fault::Key, as_it_is, &forever());
    assert!(
        error.contains("status 401") && error.contains("train.tinker.key_env"),
        "{error}"
    );
    assert_eq!(engine.asked("create_model"), 0);
    let nowhere = |tinker: &mut Tinker| tinker.spec.url = "http://127.0.0.1:9".into();
    let (error, _) = fails(Fault::None, nowhere, &forever());
    assert!(
        error.contains("http://127.0.0.1:9 did not answer after 3 attempts"),
        "{error}"
    );
    let unknown = |tinker: &mut Tinker| tinker.spec.model = Some("x".into());
    let (error, _) = fails(Fault::None, unknown, &forever());
    assert!(
        error.contains("no base model \"x\"") && error.contains("has: base"),
        "{error}"
    );
}

#[test]
fn a_cancelled_run_ends_at_once() {
    let began = Instant::now();
    let looks = Looks(AtomicUsize::new(120));
    let (error, engine) = fails(Fault::Slow, |_| (), &looks);
    assert_eq!(error, "cancelled");
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(engine.asked("unload_model"), 1);
}

fn command(workspace: &Workspace, args: &[&str], key: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    command.args(args).current_dir(workspace.path("."));
    if let Some(key) = key {
        command.env("TRAINERS_KEY", key);
    }
    command.output().unwrap()
}

/// The tiny model's workspace, with the section of an engine.
fn workspace(engine: &TrainingEngine, head: &str) -> Workspace {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml");
    let config = config.replace("[train]\n", &format!("[train]\n{head}"));
    let section = format!(
        "[train.tinker]\nurl = \"{}\"\nkey_env = \"TRAINERS_KEY\"\n",
        engine.url
    );
    workspace.write("realign.toml", &format!("{config}{section}"));
    workspace
}

#[test]
fn the_command_line_trains_on_an_engine() {
    let engine =
        TrainingEngine::start_with(tiny_model::directory(), &recipe(), UNCLIPPED, Fault::Key);
    let workspace = workspace(&engine, "");
    workspace.drop_policy("xyzzy");
    let args = ["train", "--engine", "tinker", "--out", "adapter", "--json"];
    let output = command(&workspace, &args, Some("let me in"));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    assert!(
        !errors.contains("let me in"),
        "the key is not logged: {errors}"
    );
    assert!(
        errors.contains("train.alpha") || errors.contains("train.layer_share"),
        "{errors}"
    );
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(summary["steps"].as_u64().unwrap() >= 3, "{summary}");
    assert!(
        workspace
            .path("adapter/adapter_model.safetensors")
            .is_file()
    );
    assert!(workspace.read("adapter/losses.jsonl").lines().count() >= 3);
    assert!(engine.asked("optim_step") >= 3);

    let failed = |args: &[&str], key: Option<&str>, part: &str| {
        let output = command(&workspace, args, key);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(errors.contains(part), "{errors}");
    };
    let again = ["train", "--engine", "tinker", "--out", "another"];
    failed(
        &again,
        None,
        "TRAINERS_KEY of train.tinker.key_env is not set",
    );
    failed(&again, Some("wrong"), "status 401");
    failed(
        &["train", "--engine", "ray"],
        None,
        "allowed are \"local\" and \"tinker\"",
    );
}

#[test]
fn a_realignment_trains_on_an_engine_and_passes_the_gate_as_any_other() {
    let engine = TrainingEngine::start(tiny_model::directory(), &recipe(), UNCLIPPED);
    let workspace = workspace(&engine, "engine = \"tinker\"\n");
    let config = workspace
        .read("realign.toml")
        .replace("key_env = \"TRAINERS_KEY\"\n", "");
    workspace.write("realign.toml", &config);
    let server = Server::start(&workspace);
    server.ended(1);
    workspace.drop_policy("xyzzy");
    let ended = server.ended(2);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let generation = ended["generation"].as_str().unwrap();
    let after = server.chat("tiny", "hello", 8);
    assert_eq!(after.generation.as_deref(), Some(generation));
    assert!(engine.asked("optim_step") >= 3);
    assert_eq!(engine.asked("unload_model"), 1);
}
