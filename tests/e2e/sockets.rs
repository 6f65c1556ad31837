//! A server on Unix sockets, and the commands that speak to it.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::command::{command, said};
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

fn serve(workspace: &Workspace) -> Running {
    let log = std::fs::File::create(workspace.path("log")).unwrap();
    let mut command = command(workspace, &["serve"]);
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    Running(command.spawn().unwrap())
}

/// The whole answer to a request without a body, or with a JSON one.
fn ask(socket: &Path, head: &str, body: &str) -> std::io::Result<String> {
    let mut client = UnixStream::connect(socket)?;
    client.set_read_timeout(Some(TIMEOUT))?;
    let length = body.len();
    write!(
        client,
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ready(workspace: &Workspace, socket: &Path) {
    wait("a ready server", || {
        let answer = ask(socket, "GET /ready", "").ok();
        answer.filter(|answer| answer.starts_with("HTTP/1.1 200"))
    });
    assert!(workspace.read("log").contains("listening"));
}

#[test]
fn clients_and_operators_have_sockets_of_their_own() {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml");
    let hosts = "[server]\nhost = \"unix:r.sock\"\nadmin_host = \"unix:operators.sock\"\n";
    workspace.write("realign.toml", &format!("{config}{hosts}"));
    let socket = workspace.path("r.sock");
    let mut server = serve(&workspace);
    ready(&workspace, &socket);
    let file = socket.symlink_metadata().unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o660);

    let question = r#"{"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}"#;
    let answer = ask(&socket, "POST /v1/chat/completions", question).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("chat.completion"),
        "{answer}"
    );
    let operators = workspace.path("operators.sock");
    let overview = "GET /admin/v1/overview";
    let open = ask(&operators, overview, "").unwrap();
    assert!(open.starts_with("HTTP/1.1 401"), "{open}");
    let closed = ask(&socket, overview, "").unwrap();
    assert!(closed.starts_with("HTTP/1.1 404"), "{closed}");

    // The key is found in the state directory; the path is relative to the working directory.
    let url = ["--url", "unix:operators.sock"];
    let exam = command(&workspace, &[["exam", "--show"], url].concat())
        .output()
        .unwrap();
    assert!(
        said(&exam).contains("aligned") || said(&exam).contains("unknown"),
        "{}",
        said(&exam)
    );
    let history = command(&workspace, &[["adapters", "history"], url].concat())
        .output()
        .unwrap();
    assert_eq!(history.status.code(), Some(0), "{}", said(&history));
    let absent = ["exam", "--show", "--url", "unix:nothing.sock"];
    let absent = command(&workspace, &absent).output().unwrap();
    assert_eq!(absent.status.code(), Some(2));
    assert!(
        said(&absent).contains("unix:nothing.sock"),
        "{}",
        said(&absent)
    );

    // Killed, it leaves the files; the next server takes their place, and removes them at its end.
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    assert!(socket.exists());
    let mut server = serve(&workspace);
    ready(&workspace, &socket);
    let pid = server.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(
        server.0.wait().unwrap().success(),
        "{}",
        workspace.read("log")
    );
    assert!(!socket.exists() && !operators.exists());
}
