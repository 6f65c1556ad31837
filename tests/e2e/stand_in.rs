//! A stand-in that speaks vLLM's dialect: its routes, statuses and texts, as its documentation has them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// Chunks of a streamed answer, and the pause before each.
const CHUNKS: usize = 12;
const PAUSE: Duration = Duration::from_millis(8);

/// An engine whose answers say by which adapter it gives them.
pub(super) struct StandIn {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct Shared {
    adapters: Mutex<BTreeMap<String, String>>,
    /// Paths whose adapters cannot be loaded.
    broken: Mutex<Vec<String>>,
    /// Loads that were refused because of a name in use.
    again: AtomicUsize,
    answered: AtomicUsize,
    /// Models by which it answers nothing but errors to clients; its probes pass.
    failing: Mutex<Vec<String>>,
}

impl StandIn {
    pub(super) fn start() -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stand_in = StandIn {
            address: listener.local_addr().unwrap(),
            shared: Arc::default(),
            stop: Arc::default(),
        };
        stand_in.listen(listener);
        stand_in
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// It is gone, with everything that it had loaded; connections break.
    pub(super) fn kill(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.shared.adapters.lock().unwrap().clear();
        // The listener looks when something arrives.
        let _refused = TcpStream::connect(self.address);
        super::server::wait("a closed port", || {
            TcpStream::connect(self.address).is_err().then_some(())
        });
    }

    pub(super) fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        self.stop = Arc::default();
        self.listen(listener);
    }

    /// It restarts so quickly that its port is never closed.
    pub(super) fn forget(&self) {
        self.shared.adapters.lock().unwrap().clear();
    }

    pub(super) fn adapters(&self) -> Vec<String> {
        self.shared
            .adapters
            .lock()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    }

    pub(super) fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::SeqCst)
    }

    pub(super) fn loads_of_what_was_there(&self) -> usize {
        self.shared.again.load(Ordering::SeqCst)
    }

    /// Adapters whose path ends so cannot be loaded.
    pub(super) fn breaks(&self, end: &str) {
        self.shared.broken.lock().unwrap().push(end.into());
    }

    /// Clients get errors by models whose name ends so. Probes are answered.
    pub(super) fn fails(&self, end: &str) {
        self.shared.failing.lock().unwrap().push(end.into());
    }

    fn listen(&mut self, listener: TcpListener) {
        let (shared, stop) = (self.shared.clone(), self.stop.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (shared, stop) = (shared.clone(), stop.clone());
                // A client that breaks off is none of its concern.
                std::thread::spawn(move || drop(shared.serve(socket.unwrap(), &stop)));
            }
        });
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _refused = TcpStream::connect(self.address);
    }
}

fn error(status: u16, kind: &str, message: String) -> (u16, String) {
    let error = json!({ "message": message, "type": kind, "param": null, "code": status });
    (status, json!({ "error": error }).to_string())
}

impl Shared {
    fn serve(&self, mut socket: TcpStream, stop: &AtomicBool) -> std::io::Result<()> {
        let mut reader = BufReader::new(socket.try_clone()?);
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first)?;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim().to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = first.split(' ').nth(1).unwrap_or_default();
        if path == "/v1/chat/completions" && self.fails(&body) {
            let (status, text) = error(500, "InternalServerError", "out of memory".into());
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}", text.len());
            return write!(socket, "{head}\r\nconnection: close\r\n\r\n{text}");
        }
        if path == "/v1/chat/completions" && body["stream"] == true && self.has(&body) {
            return self.stream(&mut socket, &body, stop);
        }
        let (status, text) = self.answer(path, &body);
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}", text.len());
        write!(socket, "{head}\r\nconnection: close\r\n\r\n{text}")
    }

    fn fails(&self, body: &Value) -> bool {
        let model = body["model"].as_str().unwrap_or_default();
        let failing = self.failing.lock().unwrap();
        failing.iter().any(|end| model.ends_with(end))
    }

    fn has(&self, body: &Value) -> bool {
        let model = body["model"].as_str().unwrap_or_default();
        model == "base-model" || self.adapters.lock().unwrap().contains_key(model)
    }

    fn answer(&self, path: &str, body: &Value) -> (u16, String) {
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let (name, from) = (text("lora_name"), text("lora_path"));
        match path {
            "/v1/models" => (200, self.models().to_string()),
            "/v1/load_lora_adapter" => self.load(&name, &from),
            "/v1/unload_lora_adapter" => match self.adapters.lock().unwrap().remove(&name) {
                Some(_) => (
                    200,
                    format!("Success: LoRA adapter '{name}' removed successfully."),
                ),
                None => error(
                    404,
                    "NotFoundError",
                    format!("The lora adapter '{name}' cannot be found."),
                ),
            },
            "/v1/chat/completions" | "/v1/completions" if self.has(body) => {
                self.answered.fetch_add(1, Ordering::SeqCst);
                let model = text("model");
                let choice = json!({
                    "text": format!("by {model}"), "message": { "content": format!("by {model}") },
                    "logprobs": { "token_logprobs": [-0.25] },
                });
                let usage = json!({ "completion_tokens": 1 });
                let answer = json!({ "model": model, "choices": [choice], "usage": usage });
                (200, answer.to_string())
            }
            "/v1/chat/completions" | "/v1/completions" => {
                let message = format!("The model `{}` does not exist.", text("model"));
                error(404, "NotFoundError", message)
            }
            _ => (404, json!({ "detail": "Not Found" }).to_string()),
        }
    }

    fn models(&self) -> Value {
        let mut data = vec![json!({ "id": "base-model", "root": "/models/base", "parent": null })];
        for (name, path) in self.adapters.lock().unwrap().iter() {
            data.push(json!({ "id": name, "root": path, "parent": "base-model" }));
        }
        json!({ "object": "list", "data": data })
    }

    fn load(&self, name: &str, path: &str) -> (u16, String) {
        let mut adapters = self.adapters.lock().unwrap();
        if adapters.contains_key(name) {
            self.again.fetch_add(1, Ordering::SeqCst);
            let message = format!("The lora adapter '{name}' has already been loaded.");
            return error(400, "InvalidUserInput", message);
        }
        let broken = self
            .broken
            .lock()
            .unwrap()
            .iter()
            .any(|end| path.ends_with(end));
        if broken
            || !std::path::Path::new(path)
                .join("adapter_config.json")
                .exists()
        {
            return error(404, "NotFoundError", format!("No adapter found for {path}"));
        }
        adapters.insert(name.into(), path.into());
        (
            200,
            format!("Success: LoRA adapter '{name}' added successfully."),
        )
    }

    fn stream(
        &self,
        socket: &mut TcpStream,
        body: &Value,
        stop: &AtomicBool,
    ) -> std::io::Result<()> {
        let model = body["model"].as_str().unwrap_or_default();
        self.answered.fetch_add(1, Ordering::SeqCst);
        write!(
            socket,
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )?;
        let mut send = |text: &str| write!(socket, "{:x}\r\n{text}\r\n", text.len());
        for n in 0..CHUNKS {
            std::thread::sleep(PAUSE);
            if stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            let choice = json!({ "index": 0, "delta": { "content": format!("{model}/{n} ") } });
            let chunk = json!({ "model": model, "choices": [choice], "system_fingerprint": model });
            send(&format!("data: {chunk}\n\n"))?;
        }
        send("data: [DONE]\n\n")?;
        socket.write_all(b"0\r\n\r\n")
    }
}
