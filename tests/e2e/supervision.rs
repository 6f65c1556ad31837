//! Threads that panic, shutdowns that take too long, realignments that end the process.

use std::time::{Duration, Instant};

use serde_json::json;

use super::engine;
use super::server::{Server, delta, wait};
use super::workspace::Workspace;

fn panics(server: &Server<'_>, thread: &str) -> f64 {
    let label = format!("thread=\"{thread}\"");
    server.metric("realign_thread_panics_total", &label)
}

fn status(server: &Server<'_>, path: &str) -> (u16, String) {
    server.fetch(&server.url(path), "")
}

#[test]
fn a_dead_engine_is_named_and_requests_to_it_fail_at_once() {
    if engine::lacks("a thread of its own") {
        return;
    }
    let workspace = Workspace::tiny(1);
    let mut server = Server::start_panicking(&workspace, "engine@3");
    wait("a ready server", || {
        (status(&server, "/ready").0 == 200).then_some(())
    });
    let body = json!({ "model": "tiny", "prompt": "hello", "max_tokens": 4 });
    wait("the panic", || {
        (server.post("/v1/completions", &body).status == 503).then_some(())
    });
    let began = Instant::now();
    for _ in 0..2 {
        let refused = server.post("/v1/completions", &body);
        assert_eq!(refused.status, 503, "{}", refused.body);
    }
    assert!(began.elapsed() < Duration::from_secs(10));
    for path in ["/health", "/ready"] {
        let (code, text) = status(&server, path);
        assert!(
            code == 503 && text.contains("engine: it panicked"),
            "{path}: {code} {text}"
        );
    }
    assert_eq!(panics(&server, "engine"), 1.0);
    server.terminate();
    assert_eq!(server.exited().code(), Some(0), "{}", server.log());
}

#[test]
fn a_dead_control_loop_is_named_and_nothing_passes_as_moderated() {
    let workspace = Workspace::tiny(1);
    let mut server = Server::start_panicking(&workspace, "control");
    wait("the panic", || {
        (status(&server, "/health").0 == 503).then_some(())
    });
    let (code, text) = status(&server, "/ready");
    assert!(
        code == 503 && text.contains("control: it panicked"),
        "{code} {text}"
    );
    let judged = server.post("/v1/moderations", &json!({ "input": "x" }));
    assert_eq!(judged.status, 503, "{}", judged.body);
    server.chat("tiny", "hello", 4);
    server.terminate();
    assert_eq!(server.exited().code(), Some(0), "{}", server.log());
}

#[test]
fn the_other_threads_are_restarted() {
    for thread in ["compliance", "policy-watch"] {
        let workspace = Workspace::tiny(1);
        let server = Server::start_panicking(&workspace, thread);
        wait("the panic", || {
            (panics(&server, thread) == 1.0).then_some(())
        });
        server.chat("tiny", "hello", 4);
        wait("a judged answer", || {
            (server.metric("realign_compliance_responses_total", "") >= 1.0).then_some(())
        });
        workspace.drop_policy("xyzzy");
        wait("the policy", || {
            (server.metric("realign_policy_info", "") == 1.0).then_some(())
        });
        assert_eq!(status(&server, "/health").0, 200, "{thread}");
    }
}

#[test]
fn streams_are_ended_at_the_deadline_and_a_second_signal_ends_the_process() {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml");
    for (drain, signals, code) in [(1, 1, 0), (600, 2, 143)] {
        workspace.write(
            "realign.toml",
            &format!("{config}[server]\ndrain_timeout_s = {drain}\n"),
        );
        let mut server = Server::start(&workspace);
        let mut streams: Vec<_> = (0..24)
            .map(|_| server.stream("tiny", "hello", 1800))
            .collect();
        // A request that has not begun when the signal comes is refused instead.
        for stream in &mut streams {
            while delta(&stream.next().unwrap()).is_empty() {}
        }
        for _ in 0..signals {
            server.terminate();
            wait("the signal", || {
                server.log().contains("draining").then_some(())
            });
        }
        assert_eq!(server.exited().code(), Some(code), "{}", server.log());
        if signals == 1 {
            let error = std::iter::from_fn(|| streams[23].next());
            let error = { error }.find(|chunk| chunk.get("error").is_some());
            assert!(error.is_some_and(|e| e["error"]["code"] == "unavailable"));
        }
    }
}

#[test]
fn a_realignment_that_ends_the_process_twice_in_a_stage_is_not_started_again() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    for _ in 0..2 {
        let mut crashing = Server::start_with(&workspace, Some("train:after-step-2"));
        assert!(!crashing.exited().success());
    }
    for _ in 0..2 {
        let server = Server::start(&workspace);
        let ended = server.ended(1);
        assert_eq!(ended["status"], "failed", "{ended}");
        let error = ended["error"].as_str().unwrap();
        assert!(error.contains("2 times in stage train"), "{error}");
        assert_eq!(server.realignments().len(), 1);
    }
    let server = Server::start(&workspace);
    let started = server.post("/admin/v1/realignments", &json!({}));
    assert_eq!(started.status, 202, "an operator may: {}", started.body);
    assert_eq!(server.ended(2)["status"], "succeeded");
}

#[test]
fn a_realignment_that_does_not_fit_is_refused_before_it_is_scored() {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml");
    workspace.write(
        "realign.toml",
        &config.replace("[train]\n", "[train]\nmemory_mb = 0\n"),
    );
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let ended = server.ended(1);
    assert_eq!(
        (&ended["status"], &ended["stage"]),
        (&json!("failed"), &json!("exam")),
        "{ended}"
    );
    let error = ended["error"].as_str().unwrap();
    assert!(
        error.starts_with("scoring and training needs")
            && error.contains("train.memory_mb allows 0 MiB"),
        "{error}"
    );
}
