//! `realign model fetch` against a fake hub on loopback, as an operator runs it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

const REPO: &str = "test/tiny";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

type Files = BTreeMap<&'static str, Vec<u8>>;

/// A fake hub with one repository. It runs until the test's process ends.
struct Hub {
    endpoint: String,
}

impl Hub {
    fn start(files: Files) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that disconnects early fails its own test.
                let _gone = answer(stream, &files);
            }
        });
        Hub { endpoint }
    }
}

fn answer(stream: TcpStream, files: &Files) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut range = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let line = line.to_lowercase();
        if let Some(value) = line.strip_prefix("range: bytes=") {
            range = parse_range(value.trim());
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    (&stream).write_all(&respond(path, range, files))
}

/// `0-0` and `5-`: the forms that the hub's client sends.
fn parse_range(text: &str) -> Option<(usize, Option<usize>)> {
    let (first, last) = text.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()))
}

fn respond(path: &str, range: Option<(usize, Option<usize>)>, files: &Files) -> Vec<u8> {
    if path == format!("/api/models/{REPO}/revision/main") {
        let siblings: Vec<_> = files
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        return http("200 OK", "", info.to_string().as_bytes());
    }
    let name = path.strip_prefix(&format!("/{REPO}/resolve/main/"));
    let Some((name, content)) = name.and_then(|name| files.get_key_value(name)) else {
        return http("404 Not Found", "", b"");
    };
    let total = content.len();
    let (first, last) = range.unwrap_or((0, None));
    let last = last.unwrap_or(total - 1).min(total - 1);
    let headers = format!(
        "ETag: \"etag-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {first}-{last}/{total}\r\n"
    );
    http("206 Partial Content", &headers, &content[first..=last])
}

fn http(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn fetch(endpoint: &str, home: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    command
        .args(["model", "fetch", &format!("hf:{REPO}"), "--json"])
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", home)
        .current_dir(home);
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy).env_remove(proxy.to_lowercase());
    }
    command.output().unwrap()
}

fn tiny() -> Files {
    BTreeMap::from([
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec()),
        (
            "model.safetensors",
            (0..=255).cycle().take(70_000).collect(),
        ),
        ("README.md", b"not needed to serve".to_vec()),
    ])
}

#[test]
fn a_repository_is_fetched_once() {
    let files = tiny();
    let hub = Hub::start(files.clone());
    let home = tempfile::tempdir().unwrap();
    // The second run finds everything in the cache and only requests the list of files.
    for _ in 0..2 {
        let output = fetch(&hub.endpoint, home.path());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert!(!stderr.contains('\u{1b}'), "no colour codes in a pipe");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let dir = Path::new(report["path"].as_str().unwrap());
        assert!(dir.starts_with(home.path()), "{}", dir.display());
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            assert_eq!(
                std::fs::read(dir.join(name)).unwrap(),
                files[name],
                "{name}"
            );
        }
        assert!(
            !dir.join("README.md").exists(),
            "only what serves is fetched"
        );
    }
}

#[test]
fn a_repository_without_weights_names_what_is_missing() {
    for (missing, expect) in [
        ("model.safetensors", "no *.safetensors"),
        ("tokenizer.json", "no tokenizer.json"),
    ] {
        let mut files = tiny();
        files.remove(missing);
        let hub = Hub::start(files);
        let home = tempfile::tempdir().unwrap();
        let output = fetch(&hub.endpoint, home.path());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expect), "{stderr}");
    }
}

#[test]
fn a_hub_that_cannot_be_reached_says_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let home = tempfile::tempdir().unwrap();
    let output = fetch(&endpoint, home.path());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for hint in [REPO, "HF_ENDPOINT", "--model"] {
        assert!(stderr.contains(hint), "{stderr}");
    }
}
