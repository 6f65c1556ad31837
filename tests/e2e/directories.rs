//! Who may use a state and an adapter directory, what is removed from them, and a start without
//! what should serve.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::server::{Server, wait};
use super::workspace::Workspace;

fn realign(workspace: &Workspace, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_realign"))
        .args(args)
        .current_dir(workspace.path("."))
        .env("REALIGN_LOG", "error")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_second_server_on_either_directory_is_refused_and_readers_change_nothing() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    server.ended(1);
    let held: Value = serde_json::from_str(&workspace.read("state/LOCK")).unwrap();
    assert_eq!(held["listen"], server.url("")["http://".len()..], "{held}");
    let second = ["serve", "--port", "0"];
    for other in [None, Some("--state"), Some("--adapters")] {
        let elsewhere = other.map(|flag| [flag, "elsewhere"]).into_iter().flatten();
        let args: Vec<&str> = second.into_iter().chain(elsewhere).collect();
        let refused = realign(&workspace, &args);
        let errors = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {errors}");
        for part in ["is in use by", "listening on", "process"] {
            assert!(errors.contains(part), "{args:?}: {errors}");
        }
    }
    let staged = "adapters/.staging-0123456789ab-1";
    std::fs::create_dir_all(workspace.path(staged)).unwrap();
    for args in [["adapters", "list"], ["adapters", "show"]] {
        let mut args = args.to_vec();
        args.extend((args[1] == "show").then_some("0123456789ab"));
        realign(&workspace, &args);
        assert!(workspace.path(staged).exists(), "{args:?}");
    }
    let url = server.url("");
    let asked = realign(
        &workspace,
        &["adapters", "gc", "--dry-run", "--json", "--url", &url],
    );
    let report: Value =
        serde_json::from_slice(&asked.stdout).unwrap_or_else(|_| panic!("{}", text(&asked.stderr)));
    assert_eq!(report["dry_run"], true, "{report}");
    let asked = server.post("/admin/v1/adapters/gc", &json!({}));
    assert_eq!(
        (asked.status, &asked.body["removed"]["adapter"]),
        (200, &json!(0))
    );
    // However a server ends, the next one starts.
    server.kill();
    let server = Server::start(&workspace);
    assert!(
        !workspace.path(staged).exists(),
        "no other process was writing"
    );
    assert_eq!(server.chat("tiny", "hello", 4).status, 200);
}

#[test]
fn what_exceeds_the_limits_goes_and_is_trained_again_when_it_is_needed() {
    let workspace = Workspace::tiny(1);
    let config =
        workspace.read("realign.toml") + "[retention]\ngenerations = 1\nrealignments = 2\n";
    workspace.write("realign.toml", &config);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let mut generations = vec![server.ended(1)["generation"].clone()];
    let stored = |generation: &Value| {
        let path = format!("adapters/{}", generation.as_str().unwrap());
        workspace.path(&path).exists()
    };
    let mut seen = 1.0;
    let mut realign_to = |word: &str| {
        workspace.drop_policy(word);
        seen += 1.0;
        wait("the realignment's end", || {
            let ended = server.metric("realign_realignments_total", "outcome=\"succeeded\"");
            (ended >= seen).then_some(())
        });
        server.realignments()[0]["generation"].clone()
    };
    generations.push(realign_to("plugh"));
    assert!(
        generations.iter().all(&stored),
        "what a rollback returns to"
    );
    generations.push(realign_to("plain"));
    let removed = || server.metric("realign_collected_total", "kind=\"adapter\"") >= 1.0;
    wait("the removal", || removed().then_some(()));
    assert!(!stored(&generations[0]) && stored(&generations[1]) && stored(&generations[2]));
    assert!(server.metric("realign_adapters_bytes", "") > 0.0);
    assert_eq!(server.realignments().len(), 2);
    let again = realign_to("xyzzy");
    assert_eq!(again, generations[0], "trained again from the same inputs");
    assert_eq!(
        server.chat("tiny", "hello", 4).generation.as_deref(),
        again.as_str()
    );
    drop(server);
    let shown = realign(&workspace, &["adapters", "gc", "--dry-run", "--json"]);
    let report: Value =
        serde_json::from_slice(&shown.stdout).unwrap_or_else(|_| panic!("{}", text(&shown.stderr)));
    let serves = |adapter: &&Value| adapter["reason"] == "serves";
    let adapters = report["adapters"].as_array().unwrap();
    assert_eq!(
        adapters.iter().find(serves).unwrap()["id"],
        again,
        "{report}"
    );
}

#[test]
fn without_what_should_serve_the_base_stands_in_only_where_that_is_wanted() {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml") + "[adapters]\non_missing = \"refuse\"\n";
    workspace.write("realign.toml", &config);
    // A policy without data: no realignment can succeed.
    workspace.remove("preferences/pairs.jsonl");
    workspace.drop_policy("xyzzy");
    std::fs::create_dir_all(workspace.path("adapters")).unwrap();
    workspace.write("adapters/CURRENT", "0123456789ab\n");
    // A point that is never reached: a server that is to crash need not become ready.
    let server = Server::start_with(&workspace, Some("never"));
    assert_eq!(server.ended(1)["status"], "failed");
    let (status, body) = server.fetch(&server.url("/ready"), "");
    assert!(
        status == 503 && body.contains("0123456789ab"),
        "{status} {body}"
    );
    let messages = json!([{"role": "user", "content": "hello"}]);
    let body = json!({"model": "tiny", "max_tokens": 2, "messages": messages});
    let refused = server.post("/v1/chat/completions", &body);
    assert_eq!(refused.status, 503, "{}", refused.body);
    server.chat("tiny@base", "hello", 2);
    let base = json!({"generation": "base"});
    let activated = server.post("/admin/v1/generations/activate", &base);
    assert_eq!(activated.status, 200, "{}", activated.body);
    server.chat("tiny", "hello", 2);
    assert_eq!(server.fetch(&server.url("/ready"), "").0, 200);
}

/// What a removed database would not keep is refused, and what serves goes on.
#[test]
fn nothing_is_decided_that_cannot_be_recorded() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    server.ended(1);
    let trained = server.current();
    let (file, away) = (workspace.path("state/realign.db"), workspace.path("away"));
    std::fs::rename(&file, &away).unwrap();
    let base = json!({"generation": "base"});
    let activate = || server.post("/admin/v1/generations/activate", &base);
    let refused = activate();
    assert_ne!(refused.status, 200, "{}", refused.body);
    let why = refused.body["error"]["message"].as_str().unwrap();
    assert!(why.contains("was removed or replaced"), "{why}");
    workspace.drop_policy("plugh");
    wait("the refusal of other policies", || {
        let policies = server.get("/admin/v1/policies");
        policies["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("was removed or replaced"))
            .then_some(())
    });
    assert_eq!(server.current(), trained);
    assert_eq!(workspace.read("adapters/CURRENT").trim(), trained);
    server.chat("tiny", "hello", 2);
    // It comes back, and what was wanted meanwhile comes about.
    std::fs::rename(&away, &file).unwrap();
    assert_eq!(activate().status, 200);
    wait("the other policies", || {
        (server.get("/admin/v1/policies")["policies"][0]["id"] == "no-plugh").then_some(())
    });
}

/// With the directory goes its lock, which another server could take.
#[test]
fn an_adapter_directory_that_is_removed_stays_the_servers_own() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let trained = server.ended(1)["generation"].clone();
    // The server may take the lock again while the rest is being removed.
    wait("the directory is gone", || {
        std::fs::remove_dir_all(workspace.path("adapters")).ok()
    });
    wait("a lock that is taken again", || {
        workspace.path("adapters/LOCK").exists().then_some(())
    });
    let refused = realign(
        &workspace,
        &["serve", "--port", "0", "--state", "elsewhere"],
    );
    let errors = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{errors}");
    assert!(errors.contains("adapters is in use by"), "{errors}");
    assert!(errors.contains("listening on"), "{errors}");
    let reasons =
        || server.get("/admin/v1/overview")["serving"]["alignment"]["reasons"].to_string();
    wait("the reason", || {
        reasons().contains("CURRENT does not name").then_some(())
    });
    // What serves is in memory, and what is trained from now on is published again.
    assert_eq!(server.current(), trained.as_str().unwrap());
    workspace.drop_policy("plugh");
    let ended = server.ended(2);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(workspace.read("adapters/CURRENT").trim(), server.current());
    wait("no reason", || {
        (!reasons().contains("CURRENT does not name")).then_some(())
    });
}

/// An operator's choice is not forgotten because its files are gone for a while.
#[test]
fn what_an_operator_pinned_stays_pinned_without_its_files() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let pinned = server.ended(1)["generation"].clone();
    let body = json!({"generation": pinned});
    let activated = server.post("/admin/v1/generations/activate", &body);
    assert_eq!(activated.status, 200, "{}", activated.body);
    server.kill();
    let id = pinned.as_str().unwrap();
    let (files, away) = (
        workspace.path(&format!("adapters/{id}")),
        workspace.path("away"),
    );
    std::fs::rename(&files, &away).unwrap();

    let server = Server::start(&workspace);
    let overview = server.get("/admin/v1/overview");
    let alignment = &overview["serving"]["alignment"];
    assert_eq!(alignment["pinned"]["generation"], pinned, "{alignment}");
    let reasons = alignment["reasons"].to_string();
    for part in ["pinned by an operator and does not serve", "adapters unpin"] {
        assert!(reasons.contains(part), "{reasons}");
    }
    wait("the metric", || {
        (server.metric("realign_pin_lost", "") == 1.0).then_some(())
    });
    assert_eq!(server.realignments().len(), 1, "none replaces it");
    server.kill();

    std::fs::rename(&away, &files).unwrap();
    let server = Server::start(&workspace);
    assert_eq!(server.current(), id);
    assert_eq!(server.get("/admin/v1/generations")["pinned"], pinned);
    assert_eq!(server.metric("realign_pin_lost", ""), 0.0);
}
