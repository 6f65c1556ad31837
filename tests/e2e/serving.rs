//! Requests while generations change, and the ends of requests and of the server.

use serde_json::{Value, json};

use super::server::{EventStream, Server, delta, wait};
use super::tiny_model::MAX_LEN;
use super::workspace::Workspace;

/// A server with a trained generation, and the ids of the base and of that generation.
pub(super) fn with_two_generations(workspace: &Workspace) -> (Server<'_>, String, String) {
    workspace.drop_policy("xyzzy");
    let server = Server::start(workspace);
    let trained = server.ended(1)["generation"].as_str().unwrap().to_string();
    let base = server.chat("tiny@base", "hello", 1).generation.unwrap();
    assert_ne!(base, trained);
    (server, base, trained)
}

fn activate(server: &Server<'_>, generation: &str) {
    let answer = server.post(
        "/admin/v1/generations/activate",
        &json!({ "generation": generation }),
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// A stream that began on one generation and was still running when another one was activated, with
/// its text so far; `None` if it ended first: the tiny model takes a tenth of a second for all of it.
fn swap_during_a_stream(
    server: &Server<'_>,
    from: &str,
    to: &str,
    tokens: usize,
) -> Option<(String, EventStream)> {
    activate(server, from);
    let mut stream = server.stream("tiny", "tell me something long", tokens);
    let mut text = String::new();
    while text.is_empty() {
        text.push_str(delta(&stream.next().unwrap()));
    }
    activate(server, to);
    (server.metric("realign_requests_running", "") == 1.0).then_some((text, stream))
}

#[test]
fn a_stream_keeps_its_generation_across_a_swap() {
    const TOKENS: usize = 1500;
    let workspace = Workspace::tiny(4);
    let (server, base, trained) = with_two_generations(&workspace);
    let (mut text, mut stream) = (0..20)
        .find_map(|_| swap_during_a_stream(&server, &base, &trained, TOKENS))
        .expect("twenty streams ended before their swap");
    let next = server.chat("tiny", "tell me something long", TOKENS);
    assert_eq!(
        next.generation.as_deref(),
        Some(trained.as_str()),
        "the next request is on the new generation"
    );
    let (rest, fingerprints) = stream.rest();
    text.push_str(&rest);

    let alone = server.chat(&format!("tiny@{base}"), "tell me something long", TOKENS);
    assert_eq!(text, alone.text());
    assert_eq!(
        fingerprints,
        [alone.body["system_fingerprint"].as_str().unwrap()]
    );
    assert_ne!(
        text,
        next.text(),
        "the two generations answer alike: this test shows nothing"
    );
}

#[test]
fn a_mixed_batch_answers_as_each_request_alone() {
    let workspace = Workspace::tiny(4);
    let (server, base, trained) = with_two_generations(&workspace);
    let asked: Vec<(String, String)> = (0..8)
        .map(|i| {
            let generation = if i % 2 == 0 { &base } else { &trained };
            (format!("tiny@{generation}"), "why? ".repeat(1 + i / 2))
        })
        .collect();
    let alone: Vec<String> = asked
        .iter()
        .map(|(m, p)| server.chat(m, p, 120).text().to_string())
        .collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let ask =
            |(model, prompt): &(String, String)| server.chat(model, prompt, 120).text().to_string();
        let threads: Vec<_> = asked
            .iter()
            .map(|request| scope.spawn(move || ask(request)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    assert_ne!(
        alone[0], alone[1],
        "the two generations answer alike: this test shows nothing"
    );
}

#[test]
fn a_client_that_disconnects_frees_its_slot() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    server.ended(1);
    let mut stream = server.stream("tiny", "hello", MAX_LEN - 200);
    while delta(&stream.next().unwrap()).is_empty() {}
    assert_eq!(server.metric("realign_requests_running", ""), 1.0);
    drop(stream);
    wait("a free slot", || {
        (server.metric("realign_requests_running", "") == 0.0).then_some(())
    });
    let done = server.metric("realign_generation_tokens_total", "");
    assert!(
        done < (MAX_LEN - 200) as f64,
        "it was answered to the end: {done} tokens"
    );
    wait("free blocks", || {
        (server.metric("realign_kv_cache_usage_ratio", "") == 0.0).then_some(())
    });
}

#[test]
fn refusals_have_the_shape_that_clients_know() {
    let workspace = Workspace::tiny(1);
    let config = workspace
        .read("realign.toml")
        .replace("[engine]", "[engine]\nmax_running = 1\nmax_waiting = 1");
    workspace.write("realign.toml", &config);
    let server = Server::start(&workspace);
    server.ended(1);
    let message = json!([{ "role": "user", "content": "hello" }]);
    let cases = [
        (json!({ "model": "tiny" }), 400, "messages"),
        (
            json!({ "model": "tiny", "messages": message, "temperature": 9 }),
            400,
            "temperature",
        ),
        (
            json!({ "model": "other", "messages": message }),
            404,
            "model",
        ),
        (
            json!({ "model": "tiny@000000000000", "messages": message }),
            404,
            "model",
        ),
    ];
    for (body, status, param) in cases {
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert_error(&answer.body, param);
    }
    // One runs and one waits: the engine takes a moment to move the first out of its queue.
    let mut running = server.stream("tiny", "hello", MAX_LEN - 200);
    while delta(&running.next().unwrap()).is_empty() {}
    let _waiting = server.stream("tiny", "hello", 8);
    wait("a full queue", || {
        (server.metric("realign_requests_waiting", "") == 1.0).then_some(())
    });
    let refused = server.post(
        "/v1/chat/completions",
        &json!({ "model": "tiny", "messages": message, "max_tokens": 4 }),
    );
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_error(&refused.body, "");
}

fn assert_error(body: &Value, param: &str) {
    let error = &body["error"];
    assert!(
        error["message"].as_str().is_some_and(|m| !m.is_empty()),
        "{body}"
    );
    assert!(error["type"].is_string(), "{body}");
    assert!(
        error.get("code").is_some() && error.get("param").is_some(),
        "{body}"
    );
    if !param.is_empty() {
        assert_eq!(error["param"], param, "{body}");
    }
}

#[test]
fn sigterm_lets_running_requests_finish() {
    let workspace = Workspace::tiny(1);
    let mut server = Server::start(&workspace);
    server.ended(1);
    let alone = server.chat("tiny", "hello", 1200);
    let mut stream = server.stream("tiny", "hello", 1200);
    let mut text = String::new();
    while text.is_empty() {
        text.push_str(delta(&stream.next().unwrap()));
    }
    server.terminate();
    text.push_str(&stream.rest().0);
    assert_eq!(text, alone.text());
    let status = server.exited();
    assert_eq!(status.code(), Some(0), "{}", server.log());
}
