//! HTTPS with the operator's certificate.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::engine;
use super::server::{TIMEOUT, wait};
use super::workspace::Workspace;

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn spawn(workspace: &Workspace) -> Running {
    let log = std::fs::File::create(workspace.path("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    engine::choose(&mut command);
    command
        .args(["serve", "--port", "0"])
        .current_dir(workspace.path(""))
        .env_remove("REALIGN_LOG")
        .env_remove("REALIGN_LOG_FORMAT");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    Running(child.spawn().unwrap())
}

#[test]
fn https_with_the_operators_certificate() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
    let pem = std::fs::read_to_string(fixtures.join("cert.pem")).unwrap();
    let key = std::fs::read_to_string(fixtures.join("key.pem")).unwrap();
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml");
    let tls = "[server]\ntls_cert = 'cert.pem'\ntls_key = 'key.pem'\n";
    workspace.write("realign.toml", &format!("{config}{tls}"));

    // A file that is missing is named before the model is loaded.
    let mut failed = spawn(&workspace);
    let status = wait("the refusal", || failed.0.try_wait().unwrap());
    assert_ne!(status.code(), Some(0));
    let log = workspace.read("log");
    assert!(
        log.contains("cert.pem") && !log.contains("model loaded"),
        "{log}"
    );

    workspace.write("cert.pem", &pem);
    workspace.write("key.pem", &key);
    let mut server = spawn(&workspace);
    let url = wait("a listening server", || {
        let log = workspace.read("log");
        if let Some(status) = server.0.try_wait().unwrap() {
            panic!("the server ended with {status}:\n{log}");
        }
        let (_, rest) = log.split_once("listening: https://")?;
        Some(format!("https://{}", rest.split_once("/v1")?.0))
    });
    let root = Certificate::from_pem(pem.as_bytes()).unwrap();
    let trusting = TlsConfig::builder()
        .root_certs(RootCerts::from(vec![root]))
        .build();
    let agent = |tls: TlsConfig| -> ureq::Agent {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .tls_config(tls);
        config.build().into()
    };
    let ready = |agent: &ureq::Agent| agent.get(format!("{url}/ready")).call();
    wait("a ready server", || ready(&agent(trusting.clone())).ok());
    assert!(
        ready(&agent(TlsConfig::default())).is_err(),
        "an unknown certificate"
    );
    let plain = agent(trusting.clone())
        .get(url.replace("https", "http"))
        .call();
    assert!(plain.is_err(), "no plain HTTP on the same port");

    // A broken file at a reload leaves the old certificate in place.
    workspace.write("cert.pem", "nothing");
    let hangup = Command::new("kill")
        .args(["-HUP", &server.0.id().to_string()])
        .status();
    assert!(hangup.unwrap().success());
    wait("the refusal", || {
        workspace
            .read("log")
            .contains("the old certificate stays")
            .then_some(())
    });
    assert!(ready(&agent(trusting)).is_ok());
}
