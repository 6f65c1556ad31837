//! A stand-in for a distributed training engine: the Tinker HTTP API as SkyRL 0.4 serves it, with losses and
//! gradients of the reference backend and Adam of its own state. It answers as that was seen to.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;
use realign_align::train::adamw::AdamW;
use realign_align::train::{Gradients, Recipe, TrainableLora, fresh};
use realign_engine::adapter::peft;
use realign_model::learning::{SiteGradients, logprobs_of};
use realign_model::packing::{Example, Packed};
use realign_model::{Backend, Measured, ModelSource, PassOptions, Precision, Recompute};
use realign_reference::ReferenceBackend;
use serde_json::{Value, json};

use super::tinker_proto;

const PROTO: &str = "application/x-protobuf";

/// How an engine adds losses up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reduction {
    /// A sum over tokens and sequences, with gradients clipped to a norm: SkyRL's FSDP and Megatron.
    Sum { clip: f64 },
    /// By the sum of weights of a sequence, then the mean over sequences: SkyRL's JAX.
    Mean,
}

/// How passes are asked for and answered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Form {
    /// As protocol buffers, and both by one route: SkyRL 0.4.
    #[default]
    Proto,
    /// As JSON: SkyRL before that.
    Json,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Fault {
    #[default]
    None,
    /// So many answers of 503 to computations, then none.
    Busy(usize),
    /// Every gradient fails.
    Broken,
    /// No gradient is ever done.
    Slow,
    /// One log-probability is missing.
    Short,
    /// Another base model.
    Other,
    /// The key is refused.
    Key,
}

/// A running stand-in.
pub(super) struct TrainingEngine {
    pub(super) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    backend: ReferenceBackend,
    recipe: Recipe,
    reduction: Reduction,
    fault: Fault,
    form: Mutex<Form>,
    busy: AtomicUsize,
    state: Mutex<State>,
    asked: Mutex<Vec<String>>,
}

#[derive(Default)]
struct State {
    model: Option<Model>,
    results: HashMap<String, Value>,
    saved: HashMap<String, Vec<u8>>,
}

struct Model {
    lora: TrainableLora,
    adam: AdamW,
    sum: Option<SiteGradients>,
    sequences: usize,
}

pub(super) fn backend(directory: &Path) -> ReferenceBackend {
    let source = ModelSource::parse(&directory.to_string_lossy()).unwrap();
    let files = source.fetch().unwrap();
    ReferenceBackend::new(realign_reference::load(&files).unwrap())
}

impl TrainingEngine {
    /// Adapts what the recipe adapts.
    pub(super) fn start(directory: &Path, recipe: &Recipe, reduction: Reduction) -> Self {
        Self::start_with(directory, recipe, reduction, Fault::None)
    }

    pub(super) fn start_with(
        directory: &Path,
        recipe: &Recipe,
        reduction: Reduction,
        fault: Fault,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let busy = match fault {
            Fault::Busy(times) => times,
            _ => 0,
        };
        let shared = Arc::new(Shared {
            backend: backend(directory),
            recipe: recipe.clone(),
            reduction,
            fault,
            form: Mutex::default(),
            busy: AtomicUsize::new(busy),
            state: Mutex::default(),
            asked: Mutex::default(),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { url, shared }
    }

    /// From now on it reads and answers in this form.
    pub(super) fn speak(&self, form: Form) {
        *self.shared.form.lock().unwrap() = form;
    }

    /// How often a route was asked.
    pub(super) fn asked(&self, route: &str) -> usize {
        let asked = self.shared.asked.lock().unwrap();
        asked.iter().filter(|path| path.contains(route)).count()
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(&stream);
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let (mut length, mut key, mut kind) = (0, String::new(), String::new());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.trim();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap(),
                "x-api-key" => key = value.trim().to_owned(),
                "content-type" => kind = value.trim().to_owned(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let path = first.split(' ').nth(1).unwrap();
        let path = path.strip_prefix("/api/v1/").unwrap_or(path).to_owned();
        self.asked.lock().unwrap().push(path.clone());
        let form = *self.form.lock().unwrap();
        let read = match form == Form::Proto && path == "forward_backward" {
            true if kind != PROTO => Err((415, r#"{"detail":"requires a protobuf body"}"#)),
            true => tinker_proto::request(&body).ok_or((422, r#"{"detail":"invalid body"}"#)),
            false => match serde_json::from_slice(&body) {
                _ if body.is_empty() => Ok((Value::Null, false)),
                Ok(body) => Ok((body, path == "forward")),
                Err(_) => Err((422, r#"{"detail":"no JSON"}"#)),
            },
        };
        let (status, mut answer) = match (self.fault == Fault::Key && key != "let me in", read) {
            (true, _) => (401, br#"{"detail":"no key"}"#.to_vec()),
            (_, Err((status, why))) => (status, why.as_bytes().to_vec()),
            (_, Ok(_)) if form == Form::Proto && path == "forward" => {
                (404, br#"{"detail":"Not Found"}"#.to_vec())
            }
            (_, Ok((body, true))) => self.answer("forward", &body),
            (_, Ok((body, false))) => self.answer(&path, &body),
        };
        let mut kind = "application/json";
        // Results of passes are protocol buffers, whatever the client accepts.
        if form == Form::Proto && path == "retrieve_future" {
            let result: Value = serde_json::from_slice(&answer).unwrap();
            if let Some(sequences) = result["loss_fn_outputs"].as_array() {
                (kind, answer) = (PROTO, tinker_proto::result(sequences));
            }
        }
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n",
            answer.len()
        );
        let mut stream = &stream;
        // The client may have given up.
        let _gone = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&answer));
    }

    fn answer(&self, path: &str, body: &Value) -> (u16, Vec<u8>) {
        let json = |value: Value| (200, value.to_string().into_bytes());
        let mut state = self.state.lock().unwrap();
        match path {
            "get_server_capabilities" => {
                json(json!({ "supported_models": [{ "model_name": "base" }] }))
            }
            "create_session" => json(json!({ "session_id": "session-1" })),
            "session_heartbeat" => json(json!({ "type": "session_heartbeat" })),
            "create_model" => {
                state.model = Some(Model::new(
                    &self.backend,
                    &self.recipe,
                    &body["lora_config"],
                ));
                state
                    .results
                    .insert("0".into(), json!({ "model_id": "model-1" }));
                json(json!({ "model_id": "model-1", "request_id": "0" }))
            }
            "unload_model" => {
                state.model = None;
                json(json!({ "request_id": "0" }))
            }
            "retrieve_future" => {
                let id = body["request_id"].as_str().unwrap();
                match state.results.get(id) {
                    Some(result) if result["slow"] == true => (408, b"{}".to_vec()),
                    Some(result) if result["broken"] == true => (500, b"{}".to_vec()),
                    Some(result) => json(result.clone()),
                    None => (404, br#"{"detail":"Future not found"}"#.to_vec()),
                }
            }
            path if path.ends_with("/download") => {
                let name = path.split('/').nth(3).unwrap();
                (200, state.saved[name].clone())
            }
            path => {
                let less = |n: usize| n.checked_sub(1);
                if self
                    .busy
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                    .is_ok()
                {
                    return (503, b"busy".to_vec());
                }
                let id = body["seq_id"].to_string();
                // The same number twice is the same request.
                if !state.results.contains_key(&id) {
                    let result = self.compute(path, body, &mut state);
                    state.results.insert(id.clone(), result);
                }
                json(json!({ "future_id": id, "status": "pending", "request_id": id }))
            }
        }
    }

    fn compute(&self, path: &str, body: &Value, state: &mut State) -> Value {
        let State { model, saved, .. } = state;
        let model = model.as_mut().expect("a model");
        match (path, self.fault) {
            ("forward_backward", Fault::Slow) => json!({ "slow": true }),
            ("forward_backward", Fault::Broken) => json!({ "broken": true }),
            ("forward", _) => {
                let mut values = model.logprobs(&self.backend, &data(input(body)));
                match self.fault {
                    Fault::Short => drop(values[0].pop()),
                    Fault::Other => values.iter_mut().flatten().for_each(|v| *v -= 3.0),
                    _ => {}
                }
                outputs(values)
            }
            ("forward_backward", _) => {
                assert_eq!(input(body)["loss_fn"], "importance_sampling");
                let data = data(input(body));
                outputs(model.accumulate(&self.backend, &data, self.reduction))
            }
            ("optim_step", _) => {
                let rate = body["adam_params"]["learning_rate"].as_f64().unwrap();
                json!({ "metrics": { "skyrl.ai/grad_norm": model.update(rate, self.reduction) } })
            }
            ("save_weights_for_sampler", _) => {
                let name = body["path"].as_str().unwrap();
                saved.insert(name.into(), archive(&model.lora));
                json!({ "path": format!("tinker://model-1/sampler_weights/{name}") })
            }
            (path, _) => panic!("no route {path}"),
        }
    }
}

/// What a pass is over: each form has its own name for it.
fn input(body: &Value) -> &Value {
    let names = ["input", "forward_input", "forward_backward_input"];
    let found = names.iter().map(|name| &body[*name]);
    found.into_iter().find(|input| !input.is_null()).unwrap()
}

/// A sequence as it was sent.
struct Datum {
    example: Example,
    weights: Vec<f32>,
    logprobs: Vec<f32>,
    advantages: Vec<f32>,
}

fn data(input: &Value) -> Vec<Datum> {
    let datum = |datum: &Value| {
        let inputs = &datum["loss_fn_inputs"];
        let floats = |key: &str| -> Vec<f32> {
            let numbers = inputs[key]["data"].as_array().into_iter().flatten();
            numbers.map(|n| n.as_f64().unwrap() as f32).collect()
        };
        let ids = |value: &Value| -> Vec<u32> {
            let ids = value.as_array().unwrap().iter();
            ids.map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let tokens = ids(&datum["model_input"]["chunks"][0]["tokens"]);
        let targets = ids(&inputs["target_tokens"]["data"]);
        assert_eq!(tokens[1..], targets[..targets.len() - 1]);
        Datum {
            example: Example::new(vec![tokens[0]], vec![targets]),
            weights: floats("weights"),
            logprobs: floats("logprobs"),
            advantages: floats("advantages"),
        }
    };
    input["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(datum)
        .collect()
}

fn outputs(values: Vec<Vec<f32>>) -> Value {
    let output = |data: &Vec<f32>| json!({ "logprobs": { "data": data, "dtype": "float32", "shape": [data.len()] } });
    let outputs: Vec<Value> = values.iter().map(output).collect();
    json!({ "loss_fn_output_type": "scalar", "loss_fn_outputs": outputs, "metrics": {} })
}

fn options() -> PassOptions {
    PassOptions {
        precision: Precision::Exact,
        recompute: Recompute::Off,
        ..PassOptions::default()
    }
}

impl Model {
    fn new(backend: &ReferenceBackend, recipe: &Recipe, config: &Value) -> Self {
        let recipe = Recipe {
            rank: config["rank"].as_u64().unwrap() as usize,
            seed: config["seed"].as_u64().unwrap(),
            ..recipe.clone()
        };
        let lora = fresh(backend, &recipe).unwrap();
        Self {
            adam: AdamW::new(lora.vars()).unwrap(),
            lora,
            sum: None,
            sequences: 0,
        }
    }

    fn logprobs(&self, backend: &ReferenceBackend, data: &[Datum]) -> Vec<Vec<f32>> {
        let packed = Packed::new(data.iter().map(|d| &d.example));
        let mut passes = backend.passes(options()).unwrap();
        let hidden = passes.hidden(&packed, Some(&self.lora.weights())).unwrap();
        let losses = logprobs_of(&packed);
        let measured = Measured {
            losses: &losses,
            reference: None,
        };
        let values = passes.measure(measured, &hidden).unwrap();
        let of = |i: usize| values[packed.span(i, 0)].to_vec();
        (0..data.len()).map(of).collect()
    }

    /// Adds the gradient of −Σ weight · advantage · exp(log p − given log p), reduced as it does.
    fn accumulate(
        &mut self,
        backend: &ReferenceBackend,
        data: &[Datum],
        reduction: Reduction,
    ) -> Vec<Vec<f32>> {
        let packed = Packed::new(data.iter().map(|d| &d.example));
        let losses = logprobs_of(&packed);
        let measured = Measured {
            losses: &losses,
            reference: None,
        };
        let mut seen = Vec::new();
        let mut derivatives = |values: &[f32]| {
            let mut coefficients = vec![0f32; values.len()];
            for (i, datum) in data.iter().enumerate() {
                let span = packed.span(i, 0);
                seen.push(values[span.clone()].to_vec());
                let divisor = match reduction {
                    Reduction::Sum { .. } => 1.0,
                    Reduction::Mean => datum.weights.iter().sum::<f32>().max(1e-9),
                };
                for (t, at) in span.enumerate() {
                    let ratio = (values[at] - datum.logprobs[t]).exp();
                    coefficients[at] = -datum.weights[t] * datum.advantages[t] * ratio / divisor;
                }
            }
            coefficients
        };
        let mut passes = backend.passes(options()).unwrap();
        let weights = self.lora.weights();
        let gradients = passes
            .gradients(&packed, &weights, measured, &mut derivatives)
            .unwrap();
        self.sequences += data.len();
        self.sum = Some(match self.sum.take() {
            None => gradients,
            Some(sum) => {
                let both = sum.into_iter().zip(gradients.into_values());
                both.map(|((site, (a, b)), (c, d))| (site, ((a + c).unwrap(), (b + d).unwrap())))
                    .collect()
            }
        });
        seen
    }

    /// One step of Adam. Returns the gradient's norm.
    fn update(&mut self, learning_rate: f64, reduction: Reduction) -> f64 {
        let sites = self.sum.take().expect("a gradient");
        let gradients = Gradients { sites };
        let norm = gradients.norm().unwrap();
        let sequences = std::mem::take(&mut self.sequences) as f64;
        let (norm, scale) = match reduction {
            Reduction::Sum { clip } => (norm, (clip / norm).min(1.0)),
            Reduction::Mean => (norm / sequences, 1.0 / sequences),
        };
        self.adam
            .update(self.lora.vars(), &gradients, learning_rate, scale)
            .unwrap();
        norm
    }
}

/// A tar file of PEFT's two files, gzipped.
fn archive(lora: &TrainableLora) -> Vec<u8> {
    let files = peft::encode(&lora.snapshot().unwrap(), "base").unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
    for (name, bytes) in [
        ("adapter_config.json", files.config),
        ("adapter_model.safetensors", files.model),
    ] {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        header[156] = b'0';
        gzip.write_all(&header).unwrap();
        gzip.write_all(&bytes).unwrap();
        gzip.write_all(&vec![0; bytes.len().next_multiple_of(512) - bytes.len()])
            .unwrap();
    }
    gzip.write_all(&[0; 1024]).unwrap();
    gzip.finish().unwrap()
}
