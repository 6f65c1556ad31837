//! A policy directory that vanishes is not an empty one.

use serde_json::json;

use super::server::{Server, wait};
use super::workspace::{Workspace, policy};

fn vanished(server: &Server<'_>) -> String {
    wait("the refusal", || {
        let policies = server.get("/admin/v1/policies");
        let error = policies["last_error"].as_str()?.to_owned();
        assert_eq!(policies["policies"].as_array().unwrap().len(), 1);
        Some(error)
    })
}

#[test]
fn policies_that_vanish_stay_active_until_an_operator_clears_them() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let trained = server.ended(1)["generation"].clone();
    let trained = trained.as_str().unwrap().to_owned();

    std::fs::remove_dir_all(workspace.path("policies")).unwrap();
    let error = vanished(&server);
    assert!(
        error.contains("is missing") && error.contains("realign policy clear"),
        "{error}"
    );
    assert_eq!(
        server.metric("realign_policy_last_reload_successful", ""),
        0.0
    );
    server.kill();

    // A start without the directory begins from the accepted set.
    let server = Server::start(&workspace);
    vanished(&server);
    assert_eq!(server.current(), trained);
    std::fs::create_dir(workspace.path("policies")).unwrap();
    wait("another reason", || {
        vanished(&server).contains("holds no policy").then_some(())
    });
    assert_eq!(server.current(), trained);

    workspace.drop_policy("xyzzy");
    wait("the policies to be accepted again", || {
        server.get("/admin/v1/policies")["last_error"]
            .is_null()
            .then_some(())
    });
    let clear = || server.post("/admin/v1/policies/clear", &json!({}));
    assert_eq!(clear().status, 409, "the directory holds a policy");
    workspace.remove("policies/words.yaml");
    vanished(&server);
    let cleared = clear();
    assert_eq!(cleared.status, 200, "{}", cleared.body);
    assert!(cleared.body["policies"].as_array().unwrap().is_empty());
    assert!(cleared.body["last_error"].is_null());
    wait("the base", || (server.current() != trained).then_some(()));
    assert_eq!(
        server.chat("tiny@base", "hello", 2).generation,
        Some(server.current())
    );
    server.kill();

    let server = Server::start(&workspace);
    assert!(server.get("/admin/v1/policies")["last_error"].is_null());
    assert_ne!(server.current(), trained);
}

#[test]
fn a_start_beside_a_broken_file_begins_from_the_accepted_set() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let trained = server.ended(1)["generation"].clone();
    workspace.write("policies/broken.yaml", "rules: [\n");
    vanished(&server);
    server.kill();

    let server = Server::start(&workspace);
    let error = vanished(&server);
    assert!(error.contains("broken.yaml"), "{error}");
    assert_eq!(server.current(), trained.as_str().unwrap());
    let flagged = server.post("/v1/moderations", &json!({ "input": "say xyzzy" }));
    assert_eq!(
        flagged.body["results"][0]["flagged"], true,
        "{}",
        flagged.body
    );
}

#[test]
fn a_file_that_is_renamed_away_and_back_stays_active() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    server.ended(1);
    let (file, away) = (
        workspace.path("policies/words.yaml"),
        workspace.path("away"),
    );
    for _ in 0..3 {
        std::fs::rename(&file, &away).unwrap();
        server.signal("-HUP");
        vanished(&server);
        std::fs::rename(&away, &file).unwrap();
        wait("the policy to be accepted again", || {
            server.get("/admin/v1/policies")["last_error"]
                .is_null()
                .then_some(())
        });
    }
    assert_eq!(server.realignments().len(), 1, "nothing changed");
}

#[test]
fn a_file_is_acted_upon_when_it_is_written_to_its_end() {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml");
    workspace.write(
        "realign.toml",
        &config.replace("settle_ms = 50", "settle_ms = 600"),
    );
    let server = Server::start(&workspace);
    server.ended(1);
    let text = policy("xyzzy");
    let (start, rest) = text.split_at(text.find("gate:").unwrap());
    // The start is a policy by itself, and is written for longer than it would have to rest.
    for _ in 0..4 {
        workspace.write("policies/words.yaml", start);
        std::thread::sleep(std::time::Duration::from_millis(300));
        let active = server.get("/admin/v1/policies");
        assert!(
            active["policies"].as_array().unwrap().is_empty(),
            "{active}"
        );
    }
    workspace.write("policies/words.yaml", &format!("{start}{rest}"));
    server.ended(2);
    let gate = server.get("/admin/v1/policies")["gate"].clone();
    assert_eq!(gate["max_perplexity_rise"], 1000.0, "{gate}");
}

/// The database is lost, and the policies are not mounted: the generation was trained for some.
#[test]
fn without_state_what_serves_tells_that_there_were_policies() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let trained = server.ended(1)["generation"].clone();
    let trained = trained.as_str().unwrap().to_owned();
    server.kill();
    for name in ["state", "policies"] {
        std::fs::remove_dir_all(workspace.path(name)).unwrap();
    }

    let server = Server::start(&workspace);
    let policies = server.get("/admin/v1/policies");
    let error = policies["last_error"].as_str().unwrap_or_default();
    for part in ["is missing", "was trained for policies"] {
        assert!(error.contains(part), "{policies}");
    }
    let answer = server.chat("tiny", "hello", 2);
    assert_eq!(answer.generation, Some(trained.clone()));
    assert_eq!(answer.alignment.as_deref(), Some("unknown"));
    let cleared = server.post("/admin/v1/policies/clear", &json!({}));
    assert_eq!(cleared.status, 200, "{}", cleared.body);
    wait("the base", || (server.current() != trained).then_some(()));
}
