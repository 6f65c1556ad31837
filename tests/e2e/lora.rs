//! Adapters that are loaded and unloaded by name, as other projects' controllers do it.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::server::{Server, wait};
use super::workspace::Workspace;

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

/// Writes an adapter of the tiny model whose values depend on `seed`.
pub(super) fn write_adapter(workspace: &Workspace, name: &str, seed: u32) -> PathBuf {
    const V: &str = "model.layers.0.self_attn.v_proj";
    let factor = |rows: usize, columns: usize| {
        let value =
            |i: usize| ((i as u32).wrapping_mul(2654435761 + seed) % 1000) as f32 / 500.0 - 1.0;
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let factors = HashMap::from([
        (format!("base_model.model.{V}.lora_A.weight"), factor(2, 64)),
        (format!("base_model.model.{V}.lora_B.weight"), factor(32, 2)),
    ]);
    let dir = workspace.path(name);
    std::fs::create_dir_all(&dir).unwrap();
    candle_core::safetensors::save(&factors, dir.join("adapter_model.safetensors")).unwrap();
    let config =
        json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["v_proj"] });
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    dir
}

fn message(body: &Value) -> &str {
    body["error"]["message"].as_str().unwrap_or_default()
}

/// What `/v1/models` says about a name.
fn listed(server: &Server<'_>, name: &str) -> Option<Value> {
    let models = server.get("/v1/models");
    let all = models["data"].as_array().unwrap();
    all.iter().find(|m| m["id"] == name).cloned()
}

#[test]
fn adapters_are_loaded_by_name_and_never_in_place() {
    let workspace = Workspace::tiny(1);
    let (one, two) = (
        write_adapter(&workspace, "one", 1),
        write_adapter(&workspace, "two", 2),
    );
    let server = Server::start(&workspace);
    let base = server.current();
    let load = |body: Value| server.post_text(LOAD, &body, &server.admin_key());
    let body = json!({ "lora_name": "sql", "lora_path": one });
    assert_eq!(server.post_text(LOAD, &body, "").0, 401);
    let answer = load(body.clone());
    let success = "Success: LoRA adapter 'sql' added successfully.";
    assert_eq!(answer, (200, success.to_string()));
    let entry = listed(&server, "sql").unwrap();
    assert_eq!(
        (&entry["root"], &entry["parent"]),
        (&json!(one), &json!("tiny"))
    );
    let id = entry["generation"].as_str().unwrap().to_owned();
    assert_ne!(id, base);

    // It answers under its name, and nothing else changed.
    let named = server.chat("sql", "hello", 12);
    assert_eq!(
        (named.generation.as_deref(), &named.body["model"]),
        (Some(&*id), &json!("sql"))
    );
    let plain = server.chat("tiny", "hello", 12);
    assert_eq!(plain.generation, Some(base.clone()));
    assert_ne!(named.text(), plain.text());
    assert_eq!(server.current(), base);

    // A name is given once.
    let (status, again) = load(body.clone());
    assert_eq!(status, 400, "{again}");
    assert!(
        again.contains("'sql'") && again.contains("loaded already"),
        "{again}"
    );
    let in_place =
        |path: &PathBuf| json!({ "lora_name": "sql", "lora_path": path, "load_inplace": true });
    assert_eq!(load(in_place(&one)).0, 200);
    let (status, other) = load(in_place(&two));
    assert_eq!(status, 409, "{other}");
    assert!(other.contains("'sql'") && other.contains(&id), "{other}");
    assert_eq!(listed(&server, "sql").unwrap()["generation"], id.as_str());

    for (status, body) in [
        (
            404,
            json!({ "lora_name": "a", "lora_path": workspace.path("none") }),
        ),
        (400, json!({ "lora_name": "a" })),
        (400, json!({ "lora_name": "tiny", "lora_path": one })),
        (400, json!({ "lora_name": "tiny@base", "lora_path": one })),
        (
            409,
            json!({ "lora_name": "tiny@0123456789ab", "lora_path": one }),
        ),
        (
            409,
            json!({ "lora_name": "a", "lora_path": two, "expected_generation": id }),
        ),
        (
            200,
            json!({ "lora_name": format!("tiny@{id}"), "lora_path": one }),
        ),
        (
            200,
            json!({ "lora_name": "a", "lora_path": one, "expected_generation": id }),
        ),
    ] {
        assert_eq!(load(body.clone()).0, status, "{body}");
    }
    let copy = server.chat("a", "hello", 12);
    assert_eq!(copy.text(), named.text());
    assert_eq!(
        server.chat(&format!("tiny@{id}"), "hello", 12).text(),
        named.text()
    );
    unloading(&server, &id);
}

fn unloading(server: &Server<'_>, id: &str) {
    let unload = |body: Value| server.post_text(UNLOAD, &body, &server.admin_key());
    let other = json!({ "lora_name": "a", "expected_generation": "0123456789ab" });
    assert_eq!(unload(other).0, 409);
    let success = "Success: LoRA adapter 'a' removed successfully.";
    let right = json!({ "lora_name": "a", "expected_generation": id });
    assert_eq!(unload(right.clone()), (200, success.to_string()));
    assert_eq!(unload(right).0, 404);
    assert_eq!(
        unload(json!({ "lora_name": "tiny" })).0,
        404,
        "what serves has no such name"
    );
    assert!(listed(server, "a").is_none() && listed(server, "sql").is_some());
    let gone = json!({ "model": "a", "messages": [{ "role": "user", "content": "hello" }] });
    assert_eq!(server.post("/v1/chat/completions", &gone).status, 404);
}

#[test]
fn streams_that_run_finish_when_their_adapter_is_unloaded() {
    let workspace = Workspace::tiny(1);
    let path = write_adapter(&workspace, "one", 1);
    let server = Server::start(&workspace);
    let body = json!({ "lora_name": "sql", "lora_path": path });
    assert_eq!(server.post_text(LOAD, &body, &server.admin_key()).0, 200);
    let expected = server.chat("sql", "hello", 400);
    let mut streams: Vec<_> = (0..8).map(|_| server.stream("sql", "hello", 400)).collect();
    for stream in &mut streams {
        assert!(stream.next().is_some(), "it has begun");
    }
    let body = json!({ "lora_name": "sql" });
    assert_eq!(server.post_text(UNLOAD, &body, &server.admin_key()).0, 200);
    for mut stream in streams {
        let (text, fingerprints) = stream.rest();
        assert!(
            expected.text().ends_with(&text) && text.len() > 20,
            "{text:?}"
        );
        assert_eq!(
            fingerprints,
            [expected.body["system_fingerprint"].as_str().unwrap()]
        );
    }
    wait("no lease of what is unloaded", || {
        (server.metric("realign_generation_leases", "") == 0.0).then_some(())
    });
    let gone = json!({ "model": "sql", "messages": [{ "role": "user", "content": "hello" }] });
    let answer = server.post("/v1/chat/completions", &gone);
    assert!(message(&answer.body).contains("sql"), "{}", answer.body);
}
