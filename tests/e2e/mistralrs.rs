//! Tests of the second engine, in addition to those that both engines pass.

use std::process::{Command, Stdio};

use serde_json::json;

use super::engine;
use super::server::Server;
use super::serving::with_two_generations;
use super::workspace::Workspace;

/// A build without it fails at once and says how to build with it.
#[test]
#[cfg(not(feature = "mistralrs"))]
fn a_build_without_it_says_how_to_get_it() {
    let workspace = Workspace::tiny(1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    engine::choose(&mut command);
    let output = command
        .args(["serve", "--port", "0", "--engine", "mistralrs"])
        .current_dir(workspace.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{error}");
    assert!(error.contains("--features mistralrs"), "{error}");
}

#[test]
fn an_engine_that_does_not_exist_is_refused_with_those_that_do() {
    let workspace = Workspace::tiny(1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    engine::choose(&mut command);
    let output = command
        .args(["serve", "--port", "0", "--engine", "other"])
        .current_dir(workspace.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{error}");
    assert!(error.contains("`native` or `mistralrs`"), "{error}");
}

/// Both engines draw tokens with the same code from the same weights: greedy answers agree as long
/// as no two logits are closer than rounding.
#[test]
fn both_engines_give_the_same_answers() {
    if engine::name() == "native" {
        // The engine would be compared with itself.
        return;
    }
    let workspace = Workspace::tiny(4);
    let (server, base, trained) = with_two_generations(&workspace);
    let ask = |server: &Server<'_>| -> Vec<String> {
        let model = |generation: &str| format!("tiny@{generation}");
        let text = |generation| {
            server
                .chat(&model(generation), "why?", 24)
                .text()
                .to_string()
        };
        vec![text(&base), text(&trained)]
    };
    let merged = ask(&server);
    drop(server);
    let native = Server::start_on(&workspace, "native");
    assert_eq!(merged, ask(&native));
    assert_ne!(merged[0], merged[1], "this test shows nothing");
}

/// Seeds, biases, grammars, stop strings and log-probabilities do not depend on the engine.
#[test]
fn both_engines_support_all_request_options() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    server.ended(1);
    let base = json!({ "model": "tiny", "prompt": "hello", "max_tokens": 12 });
    let ask = |more: serde_json::Value| {
        let mut body = base.clone();
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    };
    let text = |body: &serde_json::Value| body["choices"][0]["text"].as_str().unwrap().to_string();
    let seeded = || text(&ask(json!({ "temperature": 1.0, "seed": 7 })));
    assert_eq!(seeded(), seeded());
    // Token 33 is the 34th byte in the vocabulary's order; a bias of 100 forces it.
    let biased = text(&ask(
        json!({ "temperature": 0, "logit_bias": { "33": 100 } }),
    ));
    let first = biased.chars().next().unwrap();
    assert!(biased.chars().all(|c| c == first), "{biased}");
    assert_eq!(biased.chars().count(), 12);
    let scored = ask(json!({ "temperature": 0, "logprobs": 3 }));
    let logprobs = scored["choices"][0]["logprobs"]["token_logprobs"]
        .as_array()
        .unwrap();
    assert_eq!(logprobs.len(), 12);
    assert!(
        logprobs
            .iter()
            .all(|l| l.as_f64().is_some_and(|l| l <= 0.0)),
        "{scored}"
    );
    let stopped = ask(
        json!({ "temperature": 0, "logit_bias": { "33": 100 }, "stop": [first.to_string().repeat(3)] }),
    );
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(text(&stopped), "");
    let schema = json!({ "type": "object", "properties": { "a": { "type": "boolean" } }, "required": ["a"], "additionalProperties": false });
    let body = json!({
        "model": "tiny", "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 64,
        "response_format": { "type": "json_schema", "json_schema": { "name": "s", "schema": schema, "strict": true } },
    });
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let value: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
    assert!(value["a"].is_boolean(), "{value}");
}
