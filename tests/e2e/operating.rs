//! What operators do to a running server: signals, keys, a listener of their own, the decision log.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::server::{Server, delta, wait};
use super::workspace::Workspace;

/// The tiny model with further configuration.
fn workspace(config: &str) -> Workspace {
    let workspace = Workspace::tiny(1);
    let whole = format!("{}{config}", workspace.read("realign.toml"));
    workspace.write("realign.toml", &whole);
    workspace
}

#[test]
fn sighup_reads_keys_and_policies_again() {
    let workspace = workspace("[server]\napi_keys_file = 'keys'\nadmin_key = 'root'\n");
    workspace.write("keys", "alice:one\n");
    let server = Server::start(&workspace);
    let models = server.url("/v1/models");
    let status = |key| server.fetch(&models, key).0;
    assert_eq!([status(""), status("one"), status("two")], [401, 200, 401]);
    assert_eq!(
        server.fetch(&server.url("/admin/v1/policies"), "one").0,
        401
    );
    assert_eq!(
        server.fetch(&server.url("/admin/v1/policies"), "root").0,
        200
    );

    workspace.write("keys", "alice:one\nno key\n");
    server.signal("-HUP");
    wait("the refusal", || {
        server.log().contains("keys:2").then_some(())
    });
    assert_eq!(status("one"), 200, "a broken file changes nothing");
    workspace.write("keys", "bob:two\n");
    server.signal("-HUP");
    wait("the new keys", || (status("two") == 200).then_some(()));
    assert_eq!(status("one"), 401);
    let log = server.log();
    assert!(log.contains("SIGHUP"), "{log}");
}

#[test]
fn operators_can_have_a_listener_of_their_own() {
    let workspace = workspace("[server]\nadmin_port = 0\n");
    let server = Server::start(&workspace);
    let operators = server.operators_url().expect("a second listener");
    for (path, here, there) in [
        ("/v1/models", 200, 404),
        ("/admin/v1/overview", 404, 401),
        ("/metrics", 404, 200),
        ("/", 404, 200),
        ("/ready", 200, 200),
    ] {
        assert_eq!(server.fetch(&server.url(path), "").0, here, "{path}");
        let other = format!("{operators}{path}");
        assert_eq!(server.fetch(&other, "").0, there, "operators {path}");
    }
    let overview = format!("{operators}/admin/v1/overview");
    assert_eq!(server.fetch(&overview, &server.admin_key()).0, 200);
}

#[test]
fn draining_is_visible_to_clients_and_ends_at_its_deadline() {
    let workspace = workspace("[server]\ndrain_timeout_s = 1\nadmin_port = 0\n");
    let mut server = Server::start(&workspace);
    wait("the first realignment", || {
        let url = format!("{}/admin/v1/realignments", server.operators_url()?);
        server
            .fetch(&url, &server.admin_key())
            .1
            .contains("no_conflict")
            .then_some(())
    });
    // More work than fits into a second, all of it begun.
    let mut streams: Vec<_> = (0..48)
        .map(|_| server.stream("tiny", "hello", 1800))
        .collect();
    for stream in &mut streams {
        while delta(&stream.next().unwrap()).is_empty() {}
    }
    server.terminate();
    wait("the drain", || {
        (server.fetch(&server.url("/ready"), "").0 == 503).then_some(())
    });
    assert_eq!(server.fetch(&server.url("/health"), "").0, 200);
    let body = json!({ "model": "tiny", "prompt": "hello", "max_tokens": 1 });
    let refused = server.post("/v1/completions", &body);
    assert_eq!(
        (refused.status, &refused.body["error"]["code"]),
        (503, &"unavailable".into())
    );
    let status = server.exited();
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(
        server.log().contains("did not finish in time"),
        "{}",
        server.log()
    );
}

#[test]
fn live_answers_are_judged_and_written_down() {
    let workspace = workspace("[compliance]\ndecision_log = 'logs/decisions.jsonl'\n");
    // Every response violates it; no data contradicts it, so nothing is trained for it.
    let policy = "apiVersion: realign/v1\nid: live\nversion: 1\nenforcement: enforce\nrules:\n  - id: any-hello\n    severity: high\n    when: { prompt: { any_phrase: [hello] } }\n    violates: { response: { length: { min: 0 } } }\n";
    workspace.write("policies/live.yaml", policy);
    let server = Server::start(&workspace);
    let ended = server.ended(1);
    assert_eq!(ended["status"], "no_conflict", "{ended}");
    let generation = server.chat("tiny", "hello", 4).generation.unwrap();
    server.chat("tiny", "something else", 4);
    let _rest = server.stream("tiny", "hello", 4).rest();
    let metric = |verdict: &str| server.metric("realign_compliance_responses_total", verdict);
    wait("three judgements", || (metric("") == 3.0).then_some(()));
    assert_eq!([metric("violates"), metric("complies")], [2.0, 1.0]);
    let labels = "policy=\"live\",rule=\"any-hello\",severity=\"high\"";
    assert_eq!(
        server.metric("realign_policy_violations_total", labels),
        2.0
    );
    let lines = wait("the decision log", || {
        let text = workspace.read("logs/decisions.jsonl");
        let lines: Option<Vec<Value>> =
            text.lines().map(|l| serde_json::from_str(l).ok()).collect();
        lines.filter(|lines| lines.len() == 3)
    });
    assert_eq!(lines[0]["generation"], generation.as_str());
    assert_eq!(lines[0]["violations"][0]["rule"], "any-hello");
    assert!(
        lines.iter().all(|line| line.get("prompt").is_none()),
        "{lines:?}"
    );
    assert_eq!(
        lines[0]["request_id"]
            .as_str()
            .map(|id| id.starts_with("req_")),
        Some(true)
    );

    server.clear_policies("policies/live.yaml");
    wait("the expiry of the rule's series", || {
        (!server.get_text("/metrics").contains("any-hello")).then_some(())
    });
}

/// A policy that every answer violates, and that no pair of the data is about.
const ALWAYS_VIOLATED: &str = "apiVersion: realign/v1\nid: live\nversion: \"1\"\nrules:\n  - id: any-hello\n    severity: high\n    when: { prompt: { any_phrase: [hello] } }\n    violates: { response: { length: { min: 0 } } }\n    examples:\n      - { prompt: hello there, response: x, verdict: violates }\n      - { prompt: oh hello, response: x, verdict: violates }\n      - { prompt: hello again, response: x, verdict: violates }\n";

/// No conflict in the data is no compliance: the model is asked.
#[test]
fn alignment_is_what_the_exam_measured() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    server.ended(1);
    let alignment = || server.get("/admin/v1/overview")["serving"]["alignment"].clone();
    assert_eq!(alignment()["state"], "aligned", "there are no policies");
    let base = server.current();

    workspace.write("policies/live.yaml", ALWAYS_VIOLATED);
    let ended = server.ended(2);
    assert_eq!(ended["status"], "no_conflict", "{ended}");
    let why = ended["error"].as_str().unwrap_or_default();
    assert!(why.contains("nothing to learn from"), "{ended}");
    let found = alignment();
    assert_eq!(found["state"], "misaligned", "{found}");
    let reason = found["reasons"][0].as_str().unwrap_or_default();
    assert!(
        reason.contains("live:any-hello") && reason.contains("0 of 3"),
        "{found}"
    );
    let answer = server.chat("tiny", "hello", 2);
    assert_eq!(answer.alignment.as_deref(), Some("misaligned"));
    assert_eq!(server.current(), base);
    let labels = "policy=\"live\",rule=\"any-hello\",generation_role=\"current\"";
    assert_eq!(
        server.metric("realign_policy_compliance_ratio", labels),
        0.0
    );
    wait("the state and an open gap in the metrics", || {
        let misaligned = server.metric("realign_alignment_state", "state=\"misaligned\"");
        let open = server.metric("realign_alignment_gap_open_seconds", "");
        (misaligned == 1.0 && open > 0.0).then_some(())
    });
    let exam = server.get("/admin/v1/exam");
    assert_eq!(exam["serving"]["generation"], base.as_str(), "{exam}");
    assert_eq!(exam["serving"]["rules"][0]["standing"], "misses", "{exam}");

    server.clear_policies("policies/live.yaml");
    server.ended(3);
    assert_eq!(alignment()["state"], "aligned");
    wait("a closed gap", || {
        (server.metric("realign_alignment_gap_open_seconds", "") == 0.0).then_some(())
    });
}

/// With the policy still active its pairs leave the data: what serves is no worse for it.
#[test]
fn data_that_leaves_does_not_bring_the_base_back() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    assert_eq!(server.ended(1)["status"], "succeeded");
    let trained = server.current();
    let timeline = &server.get("/admin/v1/overview")["realignment"]["timeline"];
    let stages = timeline["stages"].as_array().map(Vec::len);
    assert_eq!(stages, Some(7), "{timeline}");
    assert!(timeline["losses"][0]["total"].is_number(), "{timeline}");
    let pair = json!({ "prompt": "what?", "chosen": "good", "rejected": "fine" });
    workspace.write("preferences/pairs.jsonl", &format!("{pair}\n"));
    server.post("/admin/v1/realignments", &json!({}));
    assert_eq!(server.ended(2)["status"], "no_conflict");
    assert_eq!(server.current(), trained);
}

/// Swapping by hand is followed by an exam, and so is asking for one.
#[test]
fn an_exam_follows_a_swap_and_a_request() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    server.ended(1);
    server.post(
        "/admin/v1/generations/activate",
        &json!({ "generation": "base" }),
    );
    let base = server.current();
    let sat = wait("the base's exam", || {
        let exam = server.get("/admin/v1/exam");
        (exam["serving"]["generation"] == base.as_str()).then_some(exam)
    });
    assert_eq!(sat["alignment"]["state"], "aligned", "{sat}");
    let begun = server.post("/admin/v1/exam", &json!({}));
    assert_eq!(begun.status, 202);
    assert!(begun.body["examining"].is_boolean(), "{}", begun.body);
    wait("the exam's end", || {
        (server.get("/admin/v1/exam")["examining"] == false).then_some(())
    });
}

#[test]
fn the_events_of_a_realignment_that_has_ended_are_its_end() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    let ended = server.ended(1);
    let id = ended["id"].as_str().unwrap();
    // The stream ends, or this would not return.
    let text = server.get_text(&format!("/admin/v1/realignments/{id}/events"));
    let data = text.trim().strip_prefix("data: ").unwrap();
    let event: Value = serde_json::from_str(data).unwrap();
    assert_eq!(event["event"], "realignment_finished", "{event}");
    assert_eq!([&event["id"], &event["outcome"]], [id, "no_conflict"]);
    assert_eq!(event["generation"], ended["generation"]);
    let url = server.url("/admin/v1/realignments/none/events");
    assert_eq!(server.fetch(&url, &server.admin_key()).0, 404);
}

/// Event streams that clients open and close again must not leave threads behind.
#[cfg(target_os = "linux")]
#[test]
fn event_streams_start_no_threads() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    server.ended(1);
    workspace.drop_policy("xyzzy");
    let running = wait("a running realignment", || {
        let newest = server.realignments().into_iter().next()?;
        (newest["status"] == "running").then_some(newest)
    });
    let id = running["id"].as_str().unwrap();
    let before = server.threads();
    for _ in 0..200 {
        let opened = server.open(&format!("/admin/v1/realignments/{id}/events"));
        drop(opened);
    }
    // Learning and the runtime's pool for blocking work may add a few.
    let after = server.threads();
    assert!(after < before + 50, "{before} threads became {after}");
    server.ended(2);
}

/// A signal to reload that comes while the server is still loaded does not end it.
#[test]
fn a_hangup_during_the_start_is_no_end() {
    let workspace = workspace("");
    std::fs::create_dir_all(workspace.path("adapters")).unwrap();
    // A process that adds an adapter holds this lock: the start waits for it.
    let publishing = std::fs::File::create(workspace.path("adapters/.publish")).unwrap();
    publishing.lock().unwrap();
    let log = std::fs::File::create(workspace.path("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    command
        .args(["serve", "--port", "0"])
        .env_remove("REALIGN_LOG");
    let command = command.current_dir(workspace.path("")).stderr(log);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let held = workspace.path("adapters/LOCK");
    wait("the start", || held.exists().then_some(()));
    let signal = |signal: &str| {
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    };
    (0..100).for_each(|_| signal("-HUP"));
    publishing.unlock().unwrap();
    wait("the listening server", || {
        let log = workspace.read("log");
        (log.contains("listening: ") && log.contains("SIGHUP")).then_some(())
    });
    signal("-TERM");
    assert!(child.wait().unwrap().success());
}
