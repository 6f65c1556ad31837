//! A running `realign serve` and the requests that tests make.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::document::Document;
use super::engine;
use super::workspace::Workspace;

/// The longest that a test waits for anything: long enough for a machine that is also building.
pub(super) const TIMEOUT: Duration = Duration::from_secs(120);

/// A command that listens, and what its log says before and behind its address.
type Kind = (&'static str, &'static str, &'static str);
const SERVE: Kind = ("serve", "listening: http://", "/v1");
const CONTROL: Kind = ("control", "operators: http://", "/ (realign control");

/// A server of its own; killed when dropped.
pub(super) struct Server<'a> {
    child: Child,
    address: String,
    agent: ureq::Agent,
    /// The schemas that its answers are validated against.
    document: Option<Document>,
    workspace: &'a Workspace,
}

/// An answer of the server, whatever its status.
pub(super) struct Answer {
    pub status: u16,
    pub generation: Option<String>,
    pub alignment: Option<String>,
    pub body: Value,
}

impl Answer {
    /// The first choice's text.
    pub(super) fn text(&self) -> &str {
        self.body["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_else(|| panic!("no text: {}", self.body))
    }
}

impl<'a> Server<'a> {
    pub(super) fn start(workspace: &'a Workspace) -> Server<'a> {
        Server::start_with(workspace, None)
    }

    /// Starts a server and waits until it is ready, or only until it listens if it is to crash:
    /// `crash_at` is `REALIGN_CRASH_AT`.
    pub(super) fn start_with(workspace: &'a Workspace, crash_at: Option<&str>) -> Server<'a> {
        let fault = crash_at.map(|point| ("REALIGN_CRASH_AT", point));
        Server::launch(workspace, (SERVE, fault), &engine::name())
    }

    /// Starts a server that answers no clients, and waits until it is ready. Its only address is the
    /// operators'.
    pub(super) fn start_control(workspace: &'a Workspace) -> Server<'a> {
        Server::launch(workspace, (CONTROL, None), &engine::name())
    }

    /// Starts a server one of whose threads panics once, and waits until it listens.
    pub(super) fn start_panicking(workspace: &'a Workspace, thread: &str) -> Server<'a> {
        let fault = Some(("REALIGN_PANIC_AT", thread));
        Server::launch(workspace, (SERVE, fault), &engine::name())
    }

    /// Starts a server on an engine other than the one under test.
    pub(super) fn start_on(workspace: &'a Workspace, engine: &str) -> Server<'a> {
        Server::launch(workspace, (SERVE, None), engine)
    }

    fn launch(
        workspace: &'a Workspace,
        ((name, says, ends), fault): (Kind, Option<(&str, &str)>),
        on: &str,
    ) -> Server<'a> {
        let log = workspace.path("log");
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
        command
            .args([name, "--port", "0"])
            .current_dir(workspace.path(""))
            .stdin(Stdio::null());
        command
            .env_remove("REALIGN_LOG")
            .env_remove("REALIGN_LOG_FORMAT")
            .env_remove("REALIGN_CRASH_AT")
            .env_remove("REALIGN_PANIC_AT")
            .env("XDG_CACHE_HOME", workspace.path("cache"));
        engine::run_on(&mut command, on);
        if let Some((variable, value)) = fault {
            command.env(variable, value);
        }
        let child = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        // A connection that is kept may be one that the server has just ended to make room.
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(0)
            .timeout_global(Some(TIMEOUT));
        let mut server = Server {
            child,
            address: String::new(),
            agent: config.build().into(),
            document: None,
            workspace,
        };
        server.address = wait("a listening server", || {
            let ended = server.child.try_wait().unwrap();
            let log = server.log();
            match (log.split_once(says), ended) {
                (Some((_, rest)), _) => Some(rest.split_once(ends)?.0.to_string()),
                // One that is to crash may have ended before it was looked at.
                (None, Some(_)) if fault.is_some() => Some(String::new()),
                (None, Some(status)) => panic!("the server ended with {status}:\n{log}"),
                (None, None) => None,
            }
        });
        if fault.is_some_and(|(variable, _)| variable == "REALIGN_CRASH_AT") {
            return server;
        }
        server.document = Some(Document::new(server.get("/openapi.json")));
        // One that is to lose a thread may never be ready.
        if fault.is_none() {
            wait("a ready server", || {
                (server.fetch(&server.url("/ready"), "").0 == 200).then_some(())
            });
        }
        server
    }

    /// The operators' own listener, if there is one: `http://` and its address.
    pub(super) fn operators_url(&self) -> Option<String> {
        let log = self.log();
        let (_, rest) = log.split_once("operators: ")?;
        Some(rest.split_once("/ ")?.0.to_string())
    }

    /// The operators' key that the server made at its first start; empty if it made none.
    pub(super) fn admin_key(&self) -> String {
        let file = self.workspace.path("state/admin-key");
        let key = std::fs::read_to_string(file).unwrap_or_default();
        key.trim().to_string()
    }

    /// The header with which operators are let in; clients ignore it.
    fn authorization(&self) -> String {
        format!("Bearer {}", self.admin_key())
    }

    /// Status and text of any URL's answer, with a bearer key unless it is empty.
    pub(super) fn fetch(&self, url: &str, key: &str) -> (u16, String) {
        let request = self.agent.get(url);
        let request = match key {
            "" => request,
            key => request.header("authorization", format!("Bearer {key}")),
        };
        let mut response = request.call().unwrap();
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().unwrap();
        if let Some(path) = url.strip_prefix(&self.url(""))
            && let Ok(body) = serde_json::from_str(&text)
        {
            self.check("GET", path, status, &body);
        }
        (status, text)
    }

    fn check(&self, method: &str, path: &str, status: u16, body: &Value) {
        if let Some(document) = &self.document {
            document.check(method, path, status, body);
        }
    }

    /// Address and port of the clients' listener.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn log(&self) -> String {
        self.workspace.read("log")
    }

    pub(super) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(super) fn get(&self, path: &str) -> Value {
        let mut response = self
            .agent
            .get(self.url(path))
            .header("authorization", self.authorization())
            .call()
            .unwrap();
        let body = response.body_mut().read_json().unwrap();
        self.check("GET", path, response.status().as_u16(), &body);
        body
    }

    pub(super) fn get_text(&self, path: &str) -> String {
        let mut response = self
            .agent
            .get(self.url(path))
            .header("authorization", self.authorization())
            .call()
            .unwrap();
        response.body_mut().read_to_string().unwrap()
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Answer {
        let mut response = self
            .agent
            .post(self.url(path))
            .header("authorization", self.authorization())
            .send_json(body)
            .unwrap();
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map(|v| v.to_str().unwrap().to_string())
        };
        let (generation, alignment) = (
            header("x-realign-generation"),
            header("x-realign-alignment"),
        );
        let answer = Answer {
            status: response.status().as_u16(),
            generation,
            alignment,
            body: response.body_mut().read_json().unwrap(),
        };
        self.check("POST", path, answer.status, &answer.body);
        answer
    }

    /// Status and text of a POST's answer, with a bearer key unless it is empty.
    pub(super) fn post_text(&self, path: &str, body: &Value, key: &str) -> (u16, String) {
        let request = self.agent.post(self.url(path));
        let request = match key {
            "" => request,
            key => request.header("authorization", format!("Bearer {key}")),
        };
        let mut response = request.send_json(body).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), text)
    }

    /// A greedy chat completion that must be answered.
    pub(super) fn chat(&self, model: &str, prompt: &str, max_tokens: usize) -> Answer {
        let answer = self.post(
            "/v1/chat/completions",
            &chat_body(model, prompt, max_tokens),
        );
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer
    }

    /// Opens a streaming greedy chat completion.
    pub(super) fn stream(&self, model: &str, prompt: &str, max_tokens: usize) -> EventStream {
        let mut body = chat_body(model, prompt, max_tokens);
        body["stream"] = true.into();
        let body = body.to_string();
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        let head =
            "POST /v1/chat/completions HTTP/1.0\r\nhost: realign\r\ncontent-type: application/json";
        write!(
            socket,
            "{head}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        EventStream {
            lines: BufReader::new(socket),
        }
    }

    /// Sends a request and reads the first line of the answer; dropping the socket disconnects.
    pub(super) fn open(&self, path: &str) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        let host = &self.address;
        let key = self.authorization();
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: {key}\r\n\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        let mut status = String::new();
        let mut lines = BufReader::new(&socket);
        lines.read_line(&mut status).unwrap();
        assert!(status.contains("200"), "{path}: {status}");
        socket
    }

    /// The server's process.
    #[cfg(target_os = "linux")]
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Threads of the server's process.
    #[cfg(target_os = "linux")]
    pub(super) fn threads(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        tasks.unwrap().count()
    }

    /// The sum of the series of a metric whose labels contain `labels`.
    pub(super) fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.get_text("/metrics");
        let series = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && line.contains(labels)
        });
        series
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// All realignments, newest first.
    pub(super) fn realignments(&self) -> Vec<Value> {
        let mut answer = self.get("/admin/v1/realignments");
        serde_json::from_value(answer["realignments"].take()).unwrap()
    }

    /// Waits until at least `count` realignments are recorded and the newest has ended, and returns
    /// that one.
    pub(super) fn ended(&self, count: usize) -> Value {
        wait("the realignment's end", || {
            let all = self.realignments();
            (all.len() >= count && all[0]["status"] != "running").then(|| all[0].clone())
        })
    }

    /// The generation that new requests get.
    /// Removes the last policy file, and then the policies.
    pub(super) fn clear_policies(&self, file: &str) {
        self.workspace.remove(file);
        let answer = self.post("/admin/v1/policies/clear", &json!({}));
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    pub(super) fn current(&self) -> String {
        self.get("/admin/v1/generations")["current"]
            .as_str()
            .unwrap()
            .to_string()
    }

    /// Kills the process without warning, like a power cut.
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM, like an init system.
    pub(super) fn terminate(&self) {
        self.signal("-TERM");
    }

    pub(super) fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits until the process ends by itself.
    pub(super) fn exited(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait("the server's end", || child.try_wait().unwrap())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // It fails if the process has ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}", self.log());
        }
    }
}

fn chat_body(model: &str, prompt: &str, max_tokens: usize) -> Value {
    json!({
        "model": model, "messages": [{ "role": "user", "content": prompt }],
        "max_tokens": max_tokens, "temperature": 0,
    })
}

/// A streamed answer; dropping it disconnects.
pub(super) struct EventStream {
    lines: BufReader<TcpStream>,
}

impl EventStream {
    /// The next chunk, `None` after `[DONE]`.
    pub(super) fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.lines.read_line(&mut line).unwrap(),
                0,
                "the stream ended without [DONE]"
            );
            match line.trim().strip_prefix("data: ") {
                Some("[DONE]") => return None,
                Some(data) => return Some(serde_json::from_str(data).unwrap()),
                None => {}
            }
        }
    }

    /// The text of the remaining chunks, and their fingerprints.
    pub(super) fn rest(&mut self) -> (String, Vec<String>) {
        let (mut text, mut fingerprints) = (String::new(), Vec::new());
        while let Some(chunk) = self.next() {
            text.push_str(delta(&chunk));
            fingerprints.push(chunk["system_fingerprint"].as_str().unwrap().to_string());
        }
        fingerprints.dedup();
        (text, fingerprints)
    }
}

/// The text that a chunk adds.
pub(super) fn delta(chunk: &Value) -> &str {
    chunk["choices"][0]["delta"]["content"]
        .as_str()
        .unwrap_or_default()
}

/// Polls until there is a value; fails after [`TIMEOUT`].
pub(super) fn wait<T>(what: &str, poll: impl FnMut() -> Option<T>) -> T {
    wait_for(what, TIMEOUT, poll)
}

/// Polls until there is a value; fails after `timeout`.
///
/// What may take long is asked about seldom: asking every few milliseconds takes half a core.
pub(super) fn wait_for<T>(what: &str, timeout: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let pause = (timeout / 6_000).max(Duration::from_millis(15));
    let started = Instant::now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(
            started.elapsed() < timeout,
            "no sign of {what} after {timeout:?}"
        );
        std::thread::sleep(pause);
    }
}
