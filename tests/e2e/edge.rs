//! What reaches a server from outside: keys, proxies, too many connections, variables of a cluster.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use super::command::{command, said};
use super::server::{Server, TIMEOUT};
use super::workspace::Workspace;

fn realign(workspace: &Workspace, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = command(workspace, arguments);
    command.envs(variables.iter().copied()).output().unwrap()
}

/// Everything that one server can show: the key it made, who is let in with it, and that idle
/// connections keep no one else out.
#[test]
fn operators_have_the_key_that_the_server_made() {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml");
    let limits = "[limits]\nmax_connections = 32\n";
    workspace.write("realign.toml", &format!("{config}{limits}"));
    let server = Server::start(&workspace);
    let key = server.admin_key();
    let file = workspace.path("state/admin-key");
    let mode = file.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let log = server.log();
    assert!(
        log.contains("state/admin-key") && !log.contains(&key),
        "{log}"
    );

    let overview = server.url("/admin/v1/overview");
    for (sent, status) in [("", 401), ("wrong", 401), (key.as_str(), 200)] {
        assert_eq!(server.fetch(&overview, sent).0, status);
    }
    // A proxy on this machine: no forwarding header, a loopback host.
    let mut proxied = TcpStream::connect(server.address()).unwrap();
    let body = "{\"filter\":\"off\"}";
    write!(
        proxied,
        "PUT /admin/v1/log-level HTTP/1.0\r\nhost: 127.0.0.1:8080\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    proxied.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 401 "), "{answer}");

    let url = server.url("");
    let shown = realign(&workspace, &["exam", "--show", "--url", &url], &[]);
    assert!(
        said(&shown).contains("aligned") || said(&shown).contains("unknown"),
        "{}",
        said(&shown)
    );
    let elsewhere = realign(
        &workspace,
        &["adapters", "rollback", "--url", &url, "--state", "nowhere"],
        &[],
    );
    assert_eq!(elsewhere.status.code(), Some(2));
    let refusal = said(&elsewhere);
    assert!(
        refusal.contains("admin-key") && refusal.contains("--state"),
        "{refusal}"
    );
    let link = realign(&workspace, &["keys", "page", "--url", &url], &[]);
    assert_eq!(said(&link).trim(), format!("{url}/#key={key}"));

    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut connection = TcpStream::connect(server.address()).unwrap();
        let _closed = connection.write_all(b"GET /health HTTP/1.1\r\n");
        idle.push(connection);
    }
    assert_eq!(server.fetch(&server.url("/health"), "").0, 200);
    assert_eq!(server.fetch(&server.url("/v1/models"), "").0, 200);
    assert_eq!(server.fetch(&overview, &key).0, 200);
    drop(server);
    let again = Server::start(&workspace);
    assert_eq!(again.admin_key(), key, "the key stays");
}

#[test]
fn what_would_let_everyone_in_is_refused() {
    let workspace = Workspace::tiny(1);
    let serve = ["serve", "--host", "0.0.0.0", "--port", "0"];
    let refused = realign(&workspace, &serve, &[]);
    let answer = said(&refused);
    assert_eq!(refused.status.code(), Some(2), "{answer}");
    assert!(
        answer.contains("server.open = true") && answer.contains("api_keys_file"),
        "{answer}"
    );
    assert!(!answer.contains("model loaded"), "{answer}");
    // A name that is neither a setting nor of a cluster's form is still refused.
    let unknown = realign(&workspace, &["serve"], &[("REALIGN_PORT", "9000")]);
    assert!(
        said(&unknown).contains("unknown key \"port\""),
        "{}",
        said(&unknown)
    );
}

/// The client closes its side, or is still sending when it is refused.
#[test]
fn clients_read_their_answers_to_the_end() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    let send = |head: &str, body: &[u8], half_close: bool| {
        let mut client = TcpStream::connect(server.address()).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        let length = body.len();
        write!(
            client,
            "{head} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
        )
        .unwrap();
        client.write_all(body).unwrap();
        if half_close {
            client.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let question = br#"{"model": "tiny", "prompt": "hello", "max_tokens": 32}"#;
    let answer = send("POST /v1/completions", question, true);
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("usage"),
        "{answer}"
    );
    let large = vec![b' '; 12 << 20];
    let refused = send("POST /v1/completions", &large, false);
    assert!(
        refused.starts_with("HTTP/1.1 413") && refused.contains("request_too_large"),
        "{refused}"
    );
}
