//! `realign control`: everything but clients.

use std::process::Command;

use serde_json::{Value, json};

use super::engine;
use super::server::Server;
use super::workspace::Workspace;

/// A gateway takes what it publishes from the directory.
const TARGETS: &str = "[[fleet.targets]]\nkind = \"vllm\"\nurl = \"http://127.0.0.1:1\"\n";

fn controlled() -> Workspace {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml");
    workspace.write("realign.toml", &format!("{config}{TARGETS}"));
    workspace
}

/// Exit code and what is said of a command that should not run.
fn refused(workspace: &Workspace, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    command.args(args).current_dir(workspace.path(""));
    engine::choose(&mut command);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn a_controller_realigns_and_publishes_and_answers_no_client() {
    let workspace = controlled();
    workspace.drop_policy("xyzzy");
    let server = Server::start_control(&workspace);
    let chat = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hello" }] });
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/api/chat",
        "/tokenize",
        "/v1/load_lora_adapter",
    ] {
        let (status, text) = server.post_text(path, &chat, &server.admin_key());
        assert_eq!(status, 404, "{path}: {text}");
        assert!(text.contains("realign control"), "{path}: {text}");
    }
    let models: Value = server.get("/v1/models");
    let why = models["error"]["message"].as_str().unwrap();
    assert!(why.contains("serves no clients"), "{why}");
    let (status, other) = server.fetch(&server.url("/v2"), "");
    assert!(status == 404 && other.contains("no route"), "{other}");

    // Everything that operators have works, with their key alone.
    for path in ["/health", "/ready", "/metrics", "/"] {
        assert_eq!(server.fetch(&server.url(path), "").0, 200, "{path}");
    }
    assert_eq!(server.fetch(&server.url("/admin/v1/policies"), "").0, 401);
    let ended = server.ended(1);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let generation = ended["generation"].as_str().unwrap();
    assert_eq!(workspace.read("adapters/CURRENT").trim(), generation);
    assert_eq!(server.current(), generation);
    let body = json!({ "prompt": "hello", "generation": generation, "max_tokens": 4 });
    let tried = server.post("/admin/v1/playground", &body);
    assert_eq!(tried.status, 200, "{}", tried.body);

    // Commands find it as they find any other server, and nothing else may use its directories.
    let list = Command::new(env!("CARGO_BIN_EXE_realign"))
        .args(["top", "--once"])
        .current_dir(workspace.path(""))
        .output()
        .unwrap();
    assert!(list.status.success(), "{list:?}");
    let (code, said) = refused(&workspace, &["serve", "--port", "0"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("in use"), "{said}");
    assert!(!workspace.read("log").contains("listening: "));
}

#[test]
fn a_controller_that_nothing_follows_says_what_to_do() {
    let workspace = Workspace::tiny(1);
    let (code, said) = refused(&workspace, &["control", "--port", "0"]);
    assert_eq!(code, Some(2), "{said}");
    for part in [
        "store.url",
        "realign control",
        "fleet.targets",
        "realign serve",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let config = workspace.read("realign.toml");
    let follows = "[store]\nurl = \"s3://bucket/prefix\"\nfollow = true\n";
    workspace.write("realign.toml", &format!("{config}{follows}"));
    let (code, said) = refused(&workspace, &["control", "--port", "0"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--follow"), "{said}");
}
