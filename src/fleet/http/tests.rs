//! The drivers against stand-ins that speak the engines' dialects.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::HttpTarget;
use crate::target::{Kind, Target, TargetError};

/// What a stand-in holds.
#[derive(Default)]
struct Engine {
    adapters: BTreeMap<String, String>,
    /// Answers of the next requests, whatever they are.
    scripted: Vec<(u16, Value)>,
    keys: Vec<String>,
}

struct StandIn {
    address: String,
    engine: Arc<Mutex<Engine>>,
}

impl StandIn {
    fn start(kind: Kind) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let engine = Arc::new(Mutex::new(Engine::default()));
        let own = engine.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let mut reader = BufReader::new(socket.try_clone().unwrap());
                let (mut first, mut length, mut key) = (String::new(), 0, String::new());
                reader.read_line(&mut first).unwrap();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    let line = line.trim().to_lowercase();
                    if line.is_empty() {
                        break;
                    }
                    if let Some(value) = line.strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if let Some(value) = line.strip_prefix("authorization: bearer ") {
                        key = value.into();
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let path = first.split(' ').nth(1).unwrap();
                let mut engine = own.lock().unwrap();
                engine.keys.push(key);
                let (status, answer) = match engine.scripted.is_empty() {
                    true => answer(kind, &mut engine, path, &body),
                    false => engine.scripted.remove(0),
                };
                let text = answer
                    .as_str()
                    .map_or_else(|| answer.to_string(), str::to_owned);
                let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}", text.len());
                write!(socket, "{head}\r\nconnection: close\r\n\r\n{text}").unwrap();
            }
        });
        Self { address, engine }
    }

    fn target(&self, kind: Kind) -> HttpTarget {
        HttpTarget::new(
            kind,
            &self.address,
            Some("client".into()),
            Some("admin".into()),
        )
    }

    fn script(&self, status: u16, answer: Value) {
        self.engine.lock().unwrap().scripted.push((status, answer));
    }
}

fn answer(kind: Kind, engine: &mut Engine, path: &str, body: &Value) -> (u16, Value) {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let name = text("lora_name");
    let error = |status, message: String| (status, json!({ "error": { "message": message } }));
    let load = if kind == Kind::Sglang {
        "/load_lora_adapter"
    } else {
        "/v1/load_lora_adapter"
    };
    let unload = load.replace("/load", "/unload");
    if kind == Kind::Mistralrs && (path == load || path == unload) {
        return mistralrs_changes(engine, path == load, body);
    }
    if path == load {
        if engine.adapters.contains_key(&name) {
            return error(
                400,
                format!("The lora adapter '{name}' has already been loaded."),
            );
        }
        if text("lora_path").contains("none") {
            return error(404, "no adapter found".into());
        }
        engine.adapters.insert(name.clone(), text("lora_path"));
        return match kind {
            Kind::Sglang => (200, json!({ "success": true })),
            _ => (
                200,
                format!("Success: LoRA adapter '{name}' added successfully.").into(),
            ),
        };
    }
    if path == unload {
        return match engine.adapters.remove(&name) {
            Some(_) if kind == Kind::Sglang => (200, json!({ "success": true })),
            Some(_) => (
                200,
                format!("Success: LoRA adapter '{name}' removed successfully.").into(),
            ),
            None => error(404, format!("The lora adapter '{name}' cannot be found.")),
        };
    }
    if kind == Kind::Mistralrs && path == "/v1/lora_adapters" {
        let adapter = |(name, path): (&String, &String)| {
            json!({
                "id": name, "object": "lora_adapter", "source": path,
                "generation": mistralrs_generation(path), "rank": 16, "bytes": 1024,
            })
        };
        let data: Vec<Value> = engine.adapters.iter().map(adapter).collect();
        return (200, json!({ "object": "list", "data": data }));
    }
    if kind == Kind::Mistralrs && path == "/v1/models" {
        let mut data = vec![
            json!({ "id": "default", "root": "default", "parent": null }),
            json!({ "id": "tiny", "root": "tiny", "parent": null, "status": "loaded" }),
        ];
        for name in engine.adapters.keys() {
            data.push(json!({ "id": format!("tiny::{name}"), "root": name, "parent": "tiny" }));
        }
        return (200, json!({ "object": "list", "data": data }));
    }
    if path == "/v1/models" {
        let base = if kind == Kind::Realign {
            "tiny@base"
        } else {
            "tiny"
        };
        let mut data = vec![
            json!({ "id": "tiny", "parent": null }),
            json!({ "id": base }),
        ];
        for (name, path) in &engine.adapters {
            data.push(json!({ "id": name, "root": path, "parent": base }));
        }
        return (200, json!({ "data": data }));
    }
    let model = text("model");
    let known = model.strip_prefix("tiny:").unwrap_or(&model);
    if known != "tiny" && known != "tiny@base" && !engine.adapters.contains_key(known) {
        return error(404, format!("The model `{model}` does not exist."));
    }
    let logprobs = match kind {
        Kind::Mistralrs => {
            let token =
                |logprob: f64| json!({ "token": "x", "logprob": logprob, "top_logprobs": [] });
            json!({ "content": [token(-0.5), token(-1.0)] })
        }
        _ => json!({ "token_logprobs": [-0.5, -1.0] }),
    };
    let choice = json!({ "text": " Paris", "logprobs": logprobs });
    (
        200,
        json!({ "model": model, "choices": [choice], "usage": { "completion_tokens": 2 } }),
    )
}

/// mistral.rs's own id of what is loaded from a path.
fn mistralrs_generation(path: &str) -> String {
    format!("{:0>64}", path.len())
}

/// mistral.rs refuses fields that it does not know, and its answers are objects.
fn mistralrs_changes(engine: &mut Engine, loads: bool, body: &Value) -> (u16, Value) {
    let error = |status, code: &str| {
        let error = json!({ "message": code, "type": "invalid_request_error", "code": code });
        (status, json!({ "error": error }))
    };
    let known: &[&str] = match loads {
        true => &[
            "lora_name",
            "lora_path",
            "load_inplace",
            "expected_generation",
        ],
        false => &["lora_name", "expected_generation", "lora_int_id"],
    };
    let fields = body.as_object().unwrap();
    if fields.keys().any(|field| !known.contains(&field.as_str())) {
        return error(422, "invalid_request_body");
    }
    let name = body["lora_name"].as_str().unwrap().to_owned();
    let object = |path: &str| {
        json!({
            "id": name, "object": "lora_adapter", "source": path,
            "generation": mistralrs_generation(path), "rank": 16, "bytes": 1024,
        })
    };
    let there = engine.adapters.get(&name).cloned();
    if loads {
        let path = body["lora_path"].as_str().unwrap();
        if path.contains("none") {
            return error(404, "adapter_path_not_found");
        }
        if there.is_some() {
            return error(409, "lora_adapter_already_loaded");
        }
        engine.adapters.insert(name.clone(), path.into());
        return (200, object(path));
    }
    let Some(path) = there else {
        return error(404, "lora_adapter_not_found");
    };
    match body["expected_generation"].as_str() {
        Some(expected) if expected != mistralrs_generation(&path) => {
            error(409, "lora_generation_mismatch")
        }
        _ => {
            engine.adapters.remove(&name);
            (200, object(&path))
        }
    }
}

#[test]
fn mistralrs_unloads_only_what_was_looked_at() {
    let stand_in = StandIn::start(Kind::Mistralrs);
    let target = stand_in.target(Kind::Mistralrs);
    let name = "m@0123456789ab";
    target.load(name, "/adapters/0123456789ab").unwrap();
    // Between the look and the request, another program gave the name to something longer.
    let old = json!({ "id": name, "source": "/a", "generation": mistralrs_generation("/a") });
    stand_in.script(200, json!({ "object": "list", "data": [old] }));
    let error = target.unload(name).unwrap_err().to_string();
    assert!(error.contains("lora_generation_mismatch"), "{error}");
    assert!(target.list().unwrap().adapters.contains_key(name));
    target.unload(name).unwrap();
    // Another load is under way: what it says is passed on, and the rollout tries again.
    let busy = json!({ "error": { "message": "busy", "code": "lora_load_busy" } });
    stand_in.script(429, busy);
    let error = target.load(name, "/adapters/0123456789ab").unwrap_err();
    assert!(error.to_string().contains("429"), "{error}");
    // A runtime without adapters is no target.
    stand_in.script(
        200,
        json!({ "data": [{ "id": "default" }, { "id": "tiny" }] }),
    );
    let none = json!({ "error": { "message": "no runtime", "code": "lora_runtime_unavailable" } });
    stand_in.script(409, none);
    let error = target.list().unwrap_err().to_string();
    assert!(error.contains("no runtime"), "{error}");
}

#[test]
fn every_kind_lists_loads_probes_and_unloads() {
    for kind in [Kind::Vllm, Kind::Realign, Kind::Sglang, Kind::Mistralrs] {
        let stand_in = StandIn::start(kind);
        let target = stand_in.target(kind);
        let (name, path) = ("m@0123456789ab", "/adapters/0123456789ab");
        let empty = target.list().unwrap();
        let base = if kind == Kind::Realign {
            "tiny@base"
        } else {
            "tiny"
        };
        assert_eq!(empty.base, base);
        assert!(empty.adapters.is_empty());
        let model = format!("{}{name}", empty.prefix);
        assert!(target.probe(&model).is_err(), "{kind:?}");
        target.load(name, path).unwrap();
        target.load(name, path).unwrap();
        let elsewhere = target.load(name, "/elsewhere").unwrap_err().to_string();
        assert!(
            elsewhere.contains("taken") && elsewhere.contains(path),
            "{elsewhere}"
        );
        let missing = target.load("m@000000000000", "/none").unwrap_err();
        assert!(missing.to_string().contains("404"), "{missing}");
        target.probe(&model).unwrap();
        target.probe(&empty.base).unwrap();
        let listed = target.list().unwrap().adapters;
        assert_eq!(listed[name].as_deref(), Some(path));
        target.unload(name).unwrap();
        target.unload(name).unwrap();
        assert!(target.list().unwrap().adapters.is_empty());
        let keys = stand_in.engine.lock().unwrap().keys.clone();
        assert!(keys.contains(&"admin".into()) && keys.contains(&"client".into()));
    }
}

#[test]
fn a_probe_believes_nothing_but_numbers_under_the_right_name() {
    let stand_in = StandIn::start(Kind::Vllm);
    let target = stand_in.target(Kind::Vllm);
    let said = |model: &str, tokens: u32, logprobs: Value| {
        json!({
            "model": model, "usage": { "completion_tokens": tokens },
            "choices": [{ "text": "x", "logprobs": { "token_logprobs": logprobs } }],
        })
    };
    for (status, answer, why) in [
        (200, said("other", 1, json!([-1.0])), "answered by"),
        (200, said("m", 0, json!([])), "empty"),
        (200, said("m", 2, json!([-1.0, null])), "no number"),
        (
            200,
            json!({ "model": "m", "usage": { "completion_tokens": 1 } }),
            "no log-prob",
        ),
        (500, json!({ "error": { "message": "nan" } }), "nan"),
        (200, json!("no json"), "answered by"),
    ] {
        stand_in.script(status, answer);
        let error = target.probe("m").unwrap_err();
        assert!(
            matches!(&error, TargetError::Refused(text) if text.contains(why)),
            "{error}"
        );
    }
}

#[test]
fn an_engine_that_is_not_there_is_told_from_one_that_refuses() {
    let stand_in = StandIn::start(Kind::Vllm);
    let target = stand_in.target(Kind::Vllm);
    stand_in.script(503, json!({}));
    assert!(matches!(target.list(), Err(TargetError::Unreachable(_))));
    stand_in.script(401, json!({ "error": "Unauthorized" }));
    assert!(matches!(target.list(), Err(TargetError::Refused(_))));
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let gone = HttpTarget::new(Kind::Vllm, &address, None, None);
    assert!(matches!(gone.list(), Err(TargetError::Unreachable(_))));
    assert!(matches!(
        gone.load("a", "b"),
        Err(TargetError::Unreachable(_))
    ));
}
