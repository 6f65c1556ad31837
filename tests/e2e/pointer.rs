//! What serves is what was decided: on disk, in memory, in the history, and over restarts.

use serde_json::{Value, json};

use super::server::{Server, wait};
use super::workspace::{Workspace, policy};

const ACTIVATE: &str = "/admin/v1/generations/activate";
const ROLLBACK: &str = "/admin/v1/generations/rollback";

fn stored(workspace: &Workspace) -> String {
    workspace.read("adapters/CURRENT").trim().to_owned()
}

/// Two trained generations; the second one serves.
fn two_generations(workspace: &Workspace, server: &Server<'_>) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let first = text(&server.ended(1)["generation"]);
    workspace.drop_policy("plugh");
    (first, text(&server.ended(2)["generation"]))
}

#[test]
fn activations_at_once_leave_disk_and_memory_alike() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let (first, second) = two_generations(&workspace, &server);
    for round in 0..12 {
        let before = server.current();
        let answers: Vec<(u16, String)> = std::thread::scope(|scope| {
            let clients: Vec<_> = [&first, &second, &first, &second]
                .into_iter()
                .map(|to| {
                    let body = if round % 2 == 0 {
                        json!({ "generation": to })
                    } else {
                        json!({ "generation": to, "expected_generation": before })
                    };
                    let server = &server;
                    scope.spawn(move || (server.post(ACTIVATE, &body).status, to.clone()))
                })
                .collect();
            clients.into_iter().map(|c| c.join().unwrap()).collect()
        });
        let current = server.current();
        assert_eq!(stored(&workspace), current, "{answers:?}");
        for (status, to) in &answers {
            assert!(matches!(status, 200 | 409), "{status} for {to}");
        }
        assert!(
            answers.iter().any(|(s, to)| *s == 200 && *to == current),
            "{current} serves, and no activation of it succeeded: {answers:?}"
        );
    }
    assert_eq!(
        server.chat("tiny", "hello", 2).generation,
        Some(stored(&workspace))
    );
}

#[test]
fn a_rollback_outlives_a_restart_and_is_harmless_to_repeat() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let (first, second) = two_generations(&workspace, &server);
    server.kill();

    let server = Server::start(&workspace);
    assert_eq!(
        server.get("/admin/v1/generations")["previous"],
        first.as_str()
    );
    let leaving = json!({ "expected_generation": second });
    for _ in 0..3 {
        let answer = server.post(ROLLBACK, &leaving);
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["to"], first.as_str());
        assert_eq!(server.current(), first);
    }
    assert_eq!(server.post(ROLLBACK, &json!({})).status, 409);
    assert_eq!(server.current(), first, "a repeated rollback goes nowhere");
    server.kill();

    let server = Server::start(&workspace);
    assert_eq!(server.current(), first);
    let history = server.get("/admin/v1/generations/history");
    let newest = &history["activations"][0];
    assert_eq!(
        (&newest["act"], &newest["from"], &newest["to"]),
        (
            &"rollback".into(),
            &second.clone().into(),
            &first.clone().into()
        ),
        "{history}"
    );

    let overview = server.get("/admin/v1/overview");
    let pinned = &overview["serving"]["alignment"]["pinned"];
    assert_eq!(pinned["generation"], first.as_str(), "{overview}");
    assert_eq!(
        server.post("/admin/v1/realignments", &json!({})).status,
        409
    );
    workspace.write("policies/words.yaml", &policy("absent"));
    wait("the new policy", || {
        (server.get("/admin/v1/policies")["policies"][0]["id"] == "no-absent").then_some(())
    });
    workspace.drop_policy("plugh");
    wait("the policy of the second generation", || {
        (server.get("/admin/v1/policies")["policies"][0]["id"] == "no-plugh").then_some(())
    });
    assert_eq!(server.current(), first, "an operator's act stands");
    let answer = server.post("/admin/v1/generations/unpin", &json!({}));
    assert_eq!(answer.body["released"], first.as_str());
    wait("the generation of the active policy", || {
        (server.current() == second).then_some(())
    });
    assert_eq!(stored(&workspace), second);
}

#[test]
fn a_generation_whose_files_are_gone_is_trained_again() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let trained = server.ended(1)["generation"].clone();
    let trained = trained.as_str().unwrap();
    server.kill();
    std::fs::remove_dir_all(workspace.path(&format!("adapters/{trained}"))).unwrap();

    let server = Server::start(&workspace);
    let ended = server.ended(2);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(
        server.current(),
        trained,
        "the same inputs, the same adapter"
    );
    server.kill();

    let file = workspace.path(&format!("adapters/{trained}/adapter_model.safetensors"));
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let server = Server::start(&workspace);
    assert_eq!(server.ended(3)["status"], "succeeded");
    assert_eq!(server.current(), trained);
    assert_eq!(stored(&workspace), trained);
}

#[test]
fn another_version_of_a_policy_trains_nothing() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let trained = server.ended(1)["generation"].clone();
    workspace.write(
        "policies/words.yaml",
        &policy("xyzzy").replace("version: \"1\"", "version: \"2\""),
    );
    let ended = server.ended(2);
    assert_eq!(
        (&ended["status"], &ended["generation"]),
        (&"succeeded".into(), &trained),
        "{ended}"
    );
    let count =
        |labels: &str| server.metric("realign_realignment_stage_duration_seconds_count", labels);
    assert_eq!(count("stage=\"train\""), 1.0);
    assert_eq!(server.current(), trained.as_str().unwrap());
    let revision = server.get("/admin/v1/policies")["revision"].clone();
    assert_eq!(
        server.get("/admin/v1/overview")["serving"]["policy_revision"],
        revision
    );
    let labels = format!("generation={trained}");
    assert_eq!(
        server.metric("realign_generation_info", &labels),
        1.0,
        "one series"
    );
    wait("a closed gap", || {
        (server.metric("realign_alignment_gap_open_seconds", "") == 0.0).then_some(())
    });
}

#[test]
fn data_that_arrives_later_starts_a_realignment() {
    let workspace = Workspace::tiny(1);
    let pairs = workspace.read("preferences/pairs.jsonl");
    workspace.write("preferences/pairs.jsonl", "");
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    assert_eq!(server.ended(1)["status"], "failed");
    workspace.write("preferences/pairs.jsonl", &pairs);
    let ended = server.ended(2);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let labels = "outcome=\"succeeded\",trigger=\"data\"";
    assert_eq!(server.metric("realign_realignments_total", labels), 1.0);
}
