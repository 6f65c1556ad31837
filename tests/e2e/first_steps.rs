//! From an empty directory to an explained answer, with the binary alone.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::server::{Server, wait};
use super::tiny_model;
use super::workspace::Workspace;

/// Runs the binary in a directory: exit code, standard output, standard error.
fn realign(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_realign"))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .env("REALIGN_LOG", "error")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

fn levels(report: &str) -> Vec<(String, String)> {
    let report: Value = serde_json::from_str(report).unwrap();
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let all = report["findings"].as_array().unwrap().iter();
    all.map(|f| (word(f, "subject"), word(f, "level")))
        .collect()
}

#[test]
fn an_empty_directory_becomes_one_that_a_server_would_start_in() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = format!("{:?}", tiny_model::directory());
    let model = model.trim_matches('"');
    let (code, text, error) = realign(dir, &["init", "--model", model]);
    assert_eq!(code, 0, "{error}");
    assert!(text.contains("realign doctor"), "{text}");
    let settings = dir.join("realign.toml");
    let with_port = std::fs::read_to_string(&settings)
        .unwrap()
        .replace("#port = 8080", "port = 0");
    std::fs::write(&settings, with_port).unwrap();
    let (code, report, error) = realign(dir, &["doctor", "--json"]);
    assert_eq!(code, 0, "{report}{error}");
    let levels = levels(&report);
    assert!(
        levels.iter().all(|(_, level)| level != "fault"),
        "{levels:?}"
    );
    assert!(
        levels.contains(&("model".into(), "ok".into())),
        "{levels:?}"
    );
    assert_eq!(realign(dir, &["policy", "test"]).0, 0);
    let version = format!("realign {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(realign(dir, &["--version"]).1, version);
    let (_, schema, _) = realign(dir, &["policy", "schema"]);
    assert_eq!(
        schema,
        std::fs::read_to_string(dir.join("policies/policy.schema.json")).unwrap()
    );
    let (code, _, error) = realign(dir, &["policy", "new"]);
    assert_eq!(code, 2);
    assert!(error.contains("--wrong (0 of 3)"), "{error}");
    std::fs::write(&settings, "[engine]\nkv_cache = 1\n").unwrap();
    assert_eq!(realign(dir, &["doctor"]).0, 1);
}

#[test]
fn a_running_server_explains_and_the_doctor_looks_beside_it() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    workspace.drop_policy("xyzzy");
    wait("the policy", || {
        let policies = server.get("/admin/v1/policies");
        (!policies["policies"].as_array()?.is_empty()).then_some(())
    });
    let url = server.url("");
    let args = [
        "policy",
        "explain",
        "--url",
        &url,
        "--response",
        "say xyzzy",
        "--json",
    ];
    let (code, text, error) = realign(&workspace.path("."), &args);
    assert_eq!(code, 1, "{text}{error}");
    let explained: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(explained["rules"][0]["verdict"], "violates");
    assert_eq!(
        explained["rules"][0]["tests"][0]["found"][0]["start"],
        json!(4)
    );
    let (code, _, _) = realign(
        &workspace.path("."),
        &["policy", "explain", "--response", "no"],
    );
    assert_eq!(code, 0);
    let (_, report, error) = realign(&workspace.path("."), &["doctor", "--json"]);
    assert!(report.contains("is in use by"), "{report}{error}");
    let adapters = levels(&report).into_iter().find(|(of, _)| of == "adapters");
    assert_eq!(
        adapters.map(|(_, level)| level).as_deref(),
        Some("ok"),
        "CURRENT names the base: {report}"
    );
}

#[test]
fn top_shows_one_frame_of_a_server_and_says_what_keeps_it() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    workspace.drop_policy("xyzzy");
    wait("the rule", || {
        let overview = server.get("/admin/v1/overview");
        (!overview["violations"].as_array()?.is_empty()).then_some(())
    });
    let (dir, url) = (workspace.path("."), server.url(""));
    let (code, frame, error) = realign(&dir, &["top", "--once", "--url", &url]);
    assert_eq!(code, 0, "{error}");
    for expect in [
        "alignment",
        "ready, up",
        "connections",
        "tokens/s",
        "none judged",
    ] {
        assert!(frame.contains(expect), "{expect} is not in\n{frame}");
    }
    assert!(!frame.contains('\x1b'), "no colours in a file: {frame:?}");
    let (code, _, error) = realign(&dir, &["top", "--once"]);
    assert_eq!(code, 0, "found by its lock, on whatever port: {error}");
    let (_, text, _) = realign(&dir, &["top", "--once", "--json", "--url", &url]);
    let seen: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(seen["overview"]["server"]["ready"], true);
    let key = ["top", "--once", "--url", &url, "--admin-key", "wrong"];
    let (code, _, error) = realign(&dir, &key);
    assert!(
        code == 2 && error.contains("--admin-key"),
        "{code}: {error}"
    );
    let (code, _, error) = realign(&dir, &["top", "--once", "--url", "unix:/nowhere.sock"]);
    assert!(
        code == 2 && error.contains("realign serve"),
        "{code}: {error}"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_realign"))
        .args(["policy", "schema"])
        .stdout(writer)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{error}");
}
