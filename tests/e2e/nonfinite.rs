//! A model that computes numbers for most texts and none for some: the tiny model, in whose embedding
//! one byte is NaN.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::server::Server;
use super::tiny_model;
use super::workspace::Workspace;

/// The byte without an embedding.
const BROKEN: u8 = b'~';

/// The tiny model's files beside the workspace, with the broken row.
fn workspace() -> Workspace {
    with_model(|tensors| {
        let name = "model.embed_tokens.weight";
        let mut rows = tensors[name].to_vec2::<f32>().unwrap();
        rows[token_of(BROKEN)].fill(f32::NAN);
        tensors.insert(name.into(), Tensor::new(rows, &Device::Cpu).unwrap());
    })
}

/// The tiny model's files beside the workspace, with other tensors.
fn with_model(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Workspace {
    let workspace = Workspace::tiny(1);
    let (whole, broken) = (tiny_model::directory(), workspace.path("model"));
    std::fs::create_dir(&broken).unwrap();
    for entry in std::fs::read_dir(whole).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, broken.join(file.file_name().unwrap())).unwrap();
    }
    let file = broken.join("model.safetensors");
    let mut tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let whole = format!("{whole:?}");
    let config = workspace
        .read("realign.toml")
        .replace(&whole, &format!("{broken:?}"));
    workspace.write("realign.toml", &config);
    workspace
}

/// The token of a printable byte: its character's place in the sorted alphabet of bytes.
fn token_of(byte: u8) -> usize {
    usize::from(byte - b'!')
}

#[test]
fn a_sequence_without_numbers_is_an_error_and_the_others_go_on() {
    let workspace = workspace();
    let server = Server::start(&workspace);
    let chat = |text: &str, more: serde_json::Value| {
        let mut body = json!({
            "model": "tiny", "max_tokens": 4,
            "messages": [{ "role": "user", "content": text }],
        });
        for (field, value) in more.as_object().unwrap() {
            body[field] = value.clone();
        }
        server.post("/v1/chat/completions", &body)
    };
    for more in [
        json!({}),
        json!({ "temperature": 0 }),
        json!({ "logprobs": true, "top_logprobs": 2 }),
        json!({ "response_format": { "type": "json_object" } }),
    ] {
        let answer = chat("a ~ b", more.clone());
        assert_eq!(answer.status, 500, "{more}: {}", answer.body);
        let message = answer.body["error"]["message"].as_str().unwrap();
        assert!(message.contains("not finite"), "{message}");
    }
    let mut stream = server.stream("tiny", "a ~ b", 4);
    let error = std::iter::from_fn(|| stream.next()).find(|chunk| !chunk["error"].is_null());
    assert!(error.is_some(), "the stream has no error");

    let embed = |text: &str| {
        let body = json!({ "model": "tiny", "input": text });
        server.post("/v1/embeddings", &body)
    };
    assert_eq!(embed("a ~ b").status, 500);
    let sound = embed("a - b");
    assert_eq!(sound.status, 200, "{}", sound.body);
    let vector = sound.body["data"][0]["embedding"].as_array().unwrap();
    assert!(vector.iter().all(|v| v.is_number()));

    assert_eq!(chat("a - b", json!({})).status, 200, "others are answered");
    assert_eq!(server.metric("realign_nonfinite_logits_total", ""), 6.0);
}

/// An adapter whose numbers are all small, on a model that multiplies what the adapter adds by a number so large
/// that the product is none: only computing with it shows that.
#[test]
fn an_adapter_that_computes_no_numbers_never_serves() {
    const V: &str = "model.layers.0.self_attn.v_proj";
    let workspace = with_model(|tensors| {
        for (name, value) in [(V, 0.0f32), ("model.layers.0.self_attn.o_proj", 1e38)] {
            let name = format!("{name}.weight");
            let full = Tensor::full(value, tensors[&name].shape().clone(), &Device::Cpu);
            tensors.insert(name, full.unwrap());
        }
    });
    let (outputs, inputs) = (32, 64);
    let factor = |shape| Tensor::full(0.5f32, shape, &Device::Cpu).unwrap();
    let factors = HashMap::from([
        (
            format!("base_model.model.{V}.lora_A.weight"),
            factor((2, inputs)),
        ),
        (
            format!("base_model.model.{V}.lora_B.weight"),
            factor((outputs, 2)),
        ),
    ]);
    let adapter = workspace.path("adapter");
    std::fs::create_dir(&adapter).unwrap();
    candle_core::safetensors::save(&factors, adapter.join("adapter_model.safetensors")).unwrap();
    let config =
        json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 32, "target_modules": ["v_proj"] });
    workspace.write("adapter/adapter_config.json", &config.to_string());

    let server = Server::start(&workspace);
    let base = server.current();
    let import = std::process::Command::new(env!("CARGO_BIN_EXE_realign"))
        .args(["adapters", "import", "adapter"])
        .current_dir(workspace.path("."))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&import.stdout).into_owned();
    assert!(import.status.success(), "{import:?}");
    let id = said.split_whitespace().nth(2).unwrap();
    let id = id.trim_end_matches(';');

    let activate = json!({ "generation": id });
    for _ in 0..2 {
        let refused = server.post("/admin/v1/generations/activate", &activate);
        assert_eq!(refused.status, 409, "{}", refused.body);
        let message = refused.body["error"]["message"].as_str().unwrap();
        assert!(
            message.contains(id) && message.contains("not finite"),
            "{message}"
        );
    }
    assert_eq!(server.current(), base);
    let history = server.get("/admin/v1/generations/history");
    assert!(!history.to_string().contains(id), "{history}");
    assert_eq!(server.chat("tiny", "hello", 2).generation.unwrap(), base);
    // Who names it gets an error, not numbers that are none.
    let named = json!({
        "model": format!("tiny@{id}"), "messages": [{ "role": "user", "content": "hello" }],
    });
    assert_eq!(server.post("/v1/chat/completions", &named).status, 500);
}
