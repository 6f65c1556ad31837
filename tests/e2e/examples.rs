//! The scripts in examples/python, as their readers run them.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::openai_client::python;
use super::server::{Server, wait};
use super::workspace::Workspace;

fn script(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python");
    directory.join(name)
}

#[test]
fn chat_and_agent() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    let printed = |name: &str| {
        let mut command = Command::new(python());
        command.arg(script(name)).arg(server.base_url());
        let output = command.output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {out}{err}");
        out
    };
    let chat = printed("chat.py");
    assert!(chat.starts_with("generation "), "{chat}");
    assert!(chat.contains("tiny@base: "), "{chat}");
    let agent = printed("agent.py");
    let called = agent.starts_with("add({") || agent.starts_with("multiply({");
    assert!(called, "{agent}");
}

/// A proxy, ended when dropped.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_proxy_judges_what_another_server_answers() {
    let workspace = Workspace::tiny(1);
    let rule = "apiVersion: realign/v1\nid: anything\nversion: '1'\nenforcement: dryrun\nrules:\n  - id: says\n    \
                severity: standard\n    violates: { response: { any_regex: ['(?s).'] } }\n";
    workspace.write("policies/anything.yaml", rule);
    let server = Server::start(&workspace);
    wait("the policy", || {
        let listed = server.get("/admin/v1/policies").to_string();
        listed.contains("says").then_some(())
    });
    let origin = format!("http://{}", server.address());
    let mut command = Command::new("python3");
    command
        .arg(script("shadow.py"))
        .args(["--port", "0", "--upstream", &origin, "--realign", &origin])
        .env("REALIGN_ADMIN_KEY", server.admin_key())
        .stdout(Stdio::piped());
    let mut proxy = Proxy(command.spawn().unwrap());
    let mut out = BufReader::new(proxy.0.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let (_, rest) = line.split_once("talk to ").unwrap();
    let (base, _) = rest.split_once(',').unwrap();

    let ask = |stream: bool| {
        let body = format!(
            r#"{{"model":"tiny","stream":{stream},"max_tokens":6,"min_tokens":6,"messages":[{{"role":"user","content":"hello"}}]}}"#
        );
        let request = ureq::post(format!("{base}/chat/completions"));
        let request = request.header("content-type", "application/json");
        request
            .send(body)
            .unwrap()
            .body_mut()
            .read_to_string()
            .unwrap()
    };
    let (whole, streamed) = (ask(false), ask(true));
    assert!(whole.contains(r#""finish_reason":"length""#), "{whole}");
    assert!(streamed.ends_with("data: [DONE]\n\n"), "{streamed}");

    let pid = proxy.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let mut table = String::new();
    out.read_to_string(&mut table).unwrap();
    assert!(table.contains("2 answers judged, 0 could not"), "{table}");
    assert!(table.contains("anything:says: 2 of 2"), "{table}");
}
