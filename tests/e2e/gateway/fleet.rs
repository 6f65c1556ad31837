//! A gateway under test, the servers behind it, and clients that stream.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use realign_engine::adapter::generation::GenerationId;
use realign_engine::adapter::{AdapterStore, Manifest, peft};
use serde_json::{Value, json};

use super::super::lora::write_adapter;
use super::super::server::{TIMEOUT, wait};
use super::super::workspace::Workspace;

pub(super) const KEY: &str = "operators";
/// Clients that stream at once.
pub(super) const CLIENTS: usize = 16;

/// A gateway's directory: its configuration and the adapters that it rolls out.
pub(super) struct Fleet {
    pub(super) workspace: Workspace,
    pub(super) adapters: AdapterStore,
}

/// A running `realign gateway`; killed when dropped.
pub(super) struct Gateway<'a> {
    pub(super) child: Child,
    pub(super) address: String,
    pub(super) agent: ureq::Agent,
    pub(super) fleet: &'a Fleet,
}

impl Fleet {
    pub(super) fn new(targets: &[(&str, String)], settings: &str) -> Fleet {
        let target = |(n, (kind, url)): (usize, &(&str, String))| {
            let key = match *kind {
                "realign" => format!(", admin_key_env = \"TARGET_KEY_{n}\""),
                _ => String::new(),
            };
            format!("{{ kind = \"{kind}\", url = \"{url}\"{key} }}")
        };
        let targets: Vec<String> = targets.iter().enumerate().map(target).collect();
        let config = format!(
            "model_name = \"assistant\"\n[server]\nadmin_key = \"{KEY}\"\n\
             [fleet]\nlook_ms = 200\nmax_request_s = 60\n{settings}\ntargets = [{}]\n",
            targets.join(", ")
        );
        let workspace = Workspace::with_config(&config);
        let adapters = AdapterStore::open(workspace.path("adapters")).unwrap();
        Fleet {
            workspace,
            adapters,
        }
    }

    /// Adds a generation; nothing serves it yet.
    pub(super) fn add(&self, seed: u32) -> GenerationId {
        let dir = write_adapter(&self.workspace, &format!("made-{seed}"), seed);
        let weights = peft::read_dir(&dir).unwrap().weights;
        let manifest = Manifest {
            base_hash: "b".repeat(64),
            ..Manifest::default()
        };
        self.adapters.write(&weights, manifest).unwrap()
    }

    /// Adds a generation, which should serve.
    pub(super) fn publish(&self, seed: u32) -> String {
        let id = self.add(seed);
        self.adapters.set_current(&id).unwrap();
        id.0
    }

    pub(super) fn start(&self, keys: &[String], crash_at: Option<&str>) -> Gateway<'_> {
        let log = self.workspace.path("log");
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(log);
        let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
        command
            .args(["gateway", "--port", "0"])
            .current_dir(self.workspace.path(""))
            .env_remove("REALIGN_LOG")
            .env_remove("REALIGN_LOG_FORMAT")
            .env_remove("REALIGN_CRASH_AT")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file.unwrap());
        for (n, key) in keys.iter().enumerate() {
            command.env(format!("TARGET_KEY_{n}"), key);
        }
        if let Some(point) = crash_at {
            command.env("REALIGN_CRASH_AT", point);
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(0)
            .timeout_global(Some(TIMEOUT));
        let mut gateway = Gateway {
            child: command.spawn().unwrap(),
            address: String::new(),
            agent: config.build().into(),
            fleet: self,
        };
        gateway.address = wait("a listening gateway", || {
            let log = self.workspace.read("log");
            if let Some((_, rest)) = log.split_once("listening: http://") {
                return Some(rest.split_once("/v1")?.0.to_string());
            }
            match gateway.child.try_wait().unwrap() {
                Some(_) if crash_at.is_some() => Some(String::new()),
                Some(status) => panic!("the gateway ended with {status}:\n{log}"),
                None => None,
            }
        });
        gateway
    }
}

/// What a streamed answer was.
pub(super) struct Streamed {
    /// From the header.
    pub(super) generation: String,
    /// Every `model` in its chunks.
    pub(super) models: BTreeSet<String>,
    pub(super) text: String,
}

impl Gateway<'_> {
    pub(super) fn get(&self, path: &str) -> (u16, Value) {
        let url = format!("http://{}{path}", self.address);
        let request = self
            .agent
            .get(url)
            .header("authorization", format!("Bearer {KEY}"));
        let mut response = request.call().unwrap();
        let status = response.status().as_u16();
        (status, response.body_mut().read_json().unwrap_or_default())
    }

    /// Runs `realign fleet ORDER` with further arguments. Its exit code, and what it printed.
    pub(super) fn order(&self, order: &str, args: &[&str]) -> (Option<i32>, String) {
        let ran = Command::new(env!("CARGO_BIN_EXE_realign"))
            .args(["fleet", order, "--admin-key", KEY, "--url"])
            .arg(format!("http://{}", self.address))
            .args(args)
            .current_dir(self.fleet.workspace.path(""))
            .output()
            .unwrap();
        let text = [ran.stdout, ran.stderr].concat();
        (
            ran.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("http://{}{path}", self.address);
        let mut response = self.agent.post(url).send_json(body).unwrap();
        let status = response.status().as_u16();
        (status, response.body_mut().read_json().unwrap_or_default())
    }

    pub(super) fn status(&self) -> Value {
        self.get("/admin/v1/fleet").1
    }

    pub(super) fn metrics(&self) -> String {
        let mut response = self
            .agent
            .get(format!("http://{}/metrics", self.address))
            .call()
            .unwrap();
        response.body_mut().read_to_string().unwrap()
    }

    /// Waits until a generation serves on all targets and the rollout is done.
    pub(super) fn settled(&self, generation: &str, targets: usize) -> Value {
        wait("the end of the rollout", || {
            let status = self.status();
            let all = status["targets"].as_array()?;
            let ready = all.iter().filter(|t| t["in_pool"] == true).count();
            let serves = status["current"]["generation"] == generation;
            (serves && status["rollout"].is_null() && ready == targets).then_some(status)
        })
    }

    /// A whole streamed answer, or what went wrong.
    pub(super) fn stream(&self, prompt: &str, tokens: usize) -> Result<Streamed, String> {
        let body = json!({
            "stream": true, "max_tokens": tokens, "temperature": 0, "model": "assistant",
            "messages": [{ "role": "user", "content": prompt }],
        });
        let url = format!("http://{}/v1/chat/completions", self.address);
        let mut response = self
            .agent
            .post(url)
            .send_json(&body)
            .map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let header = response.headers().get("x-realign-generation").cloned();
        let mut answer = Streamed {
            generation: header.map_or_else(String::new, |h| h.to_str().unwrap().to_owned()),
            models: BTreeSet::new(),
            text: String::new(),
        };
        if status != 200 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            return Err(format!("status {status}: {text}"));
        }
        let reader = BufReader::new(response.body_mut().as_reader());
        for line in reader.lines() {
            let line = line.map_err(|e| format!("after {:?}: {e}", answer.text))?;
            match line.strip_prefix("data: ") {
                Some("[DONE]") => return Ok(answer),
                Some(data) => {
                    let chunk: Value = serde_json::from_str(data).map_err(|e| e.to_string())?;
                    answer
                        .models
                        .insert(chunk["model"].as_str().unwrap_or_default().to_owned());
                    answer.text.push_str(super::super::server::delta(&chunk));
                }
                None => {}
            }
        }
        Err(format!("it ended early: {:?}", answer.text))
    }

    pub(super) fn ended(&mut self) {
        let child = &mut self.child;
        wait("the gateway's end", || child.try_wait().unwrap());
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        // It fails if the process has ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- the gateway's log\n{}",
                self.fleet.workspace.read("log")
            );
        }
    }
}

/// Clients stream while `during` runs. Returns how many answers each generation gave; none fails, and
/// none is of two generations.
pub(super) fn stream_during(
    gateway: &Gateway<'_>,
    tokens: usize,
    during: impl FnOnce(),
) -> Vec<(String, String)> {
    let over = AtomicBool::new(false);
    let (failed, mixed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let answers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Vec::new();
                    while !over.load(Ordering::SeqCst) {
                        match gateway.stream("hello", tokens) {
                            Ok(answer) => {
                                let expected = format!("assistant@{}", answer.generation);
                                if answer.models != BTreeSet::from([expected]) {
                                    mixed.fetch_add(1, Ordering::SeqCst);
                                }
                                answers.push((answer.generation, answer.text));
                            }
                            Err(error) => {
                                eprintln!("a stream failed: {error}");
                                failed.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    }
                    answers
                })
            })
            .collect();
        during();
        over.store(true, Ordering::SeqCst);
        clients
            .into_iter()
            .flat_map(|c| c.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert_eq!(
        (failed.into_inner(), mixed.into_inner()),
        (0, 0),
        "failed, mixed"
    );
    answers
}
