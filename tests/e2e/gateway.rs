//! One address in front of several engines: rollouts while clients stream, targets that restart, the
//! gateway killed at every step.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use realign_engine::adapter::generation::GenerationId;
use realign_engine::adapter::{AdapterStore, Manifest, peft};
use serde_json::{Value, json};

use super::lora::write_adapter;
use super::server::{Server, TIMEOUT, wait};
use super::stand_in::StandIn;
use super::workspace::Workspace;

const KEY: &str = "operators";
/// Clients that stream at once.
const CLIENTS: usize = 16;

/// A gateway's directory: its configuration and the adapters that it rolls out.
struct Fleet {
    workspace: Workspace,
    adapters: AdapterStore,
}

/// A running `realign gateway`; killed when dropped.
struct Gateway<'a> {
    child: Child,
    address: String,
    agent: ureq::Agent,
    fleet: &'a Fleet,
}

impl Fleet {
    fn new(targets: &[(&str, String)], settings: &str) -> Fleet {
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
    fn add(&self, seed: u32) -> GenerationId {
        let dir = write_adapter(&self.workspace, &format!("made-{seed}"), seed);
        let weights = peft::read_dir(&dir).unwrap().weights;
        let manifest = Manifest {
            base_hash: "b".repeat(64),
            ..Manifest::default()
        };
        self.adapters.write(&weights, manifest).unwrap()
    }

    /// Adds a generation, which should serve.
    fn publish(&self, seed: u32) -> String {
        let id = self.add(seed);
        self.adapters.set_current(&id).unwrap();
        id.0
    }

    fn start(&self, keys: &[String], crash_at: Option<&str>) -> Gateway<'_> {
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
struct Streamed {
    /// From the header.
    generation: String,
    /// Every `model` in its chunks.
    models: BTreeSet<String>,
    text: String,
}

impl Gateway<'_> {
    fn get(&self, path: &str) -> (u16, Value) {
        let url = format!("http://{}{path}", self.address);
        let request = self
            .agent
            .get(url)
            .header("authorization", format!("Bearer {KEY}"));
        let mut response = request.call().unwrap();
        let status = response.status().as_u16();
        (status, response.body_mut().read_json().unwrap_or_default())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("http://{}{path}", self.address);
        let mut response = self.agent.post(url).send_json(body).unwrap();
        let status = response.status().as_u16();
        (status, response.body_mut().read_json().unwrap_or_default())
    }

    fn status(&self) -> Value {
        self.get("/admin/v1/fleet").1
    }

    fn metrics(&self) -> String {
        let mut response = self
            .agent
            .get(format!("http://{}/metrics", self.address))
            .call()
            .unwrap();
        response.body_mut().read_to_string().unwrap()
    }

    /// Waits until a generation serves on all targets and the rollout is done.
    fn settled(&self, generation: &str, targets: usize) -> Value {
        wait("the end of the rollout", || {
            let status = self.status();
            let all = status["targets"].as_array()?;
            let ready = all.iter().filter(|t| t["in_pool"] == true).count();
            let serves = status["current"]["generation"] == generation;
            (serves && status["rollout"].is_null() && ready == targets).then_some(status)
        })
    }

    /// A whole streamed answer, or what went wrong.
    fn stream(&self, prompt: &str, tokens: usize) -> Result<Streamed, String> {
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
                    answer.text.push_str(super::server::delta(&chunk));
                }
                None => {}
            }
        }
        Err(format!("it ended early: {:?}", answer.text))
    }

    fn ended(&mut self) {
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
fn stream_during(
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

#[test]
fn a_rollout_over_realign_servers_loses_no_stream() {
    let homes: Vec<Workspace> = (0..3).map(|_| Workspace::tiny(1)).collect();
    let targets: Vec<Server<'_>> = homes.iter().map(Server::start).collect();
    let urls: Vec<_> = targets.iter().map(|t| ("realign", t.url(""))).collect();
    let fleet = Fleet::new(&urls, "");
    let keys: Vec<String> = targets.iter().map(Server::admin_key).collect();
    let gateway = fleet.start(&keys, None);
    gateway.settled("base", 3);
    let (status, base) = gateway.post(
        "/v1/chat/completions",
        &json!({
            "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 4,
        }),
    );
    assert_eq!((status, &base["model"]), (200, &json!("tiny@base")));
    let first = fleet.publish(1);
    gateway.settled(&first, 3);
    let mut second = String::new();
    let answers = stream_during(&gateway, 60, || {
        second = fleet.publish(2);
        gateway.settled(&second, 3);
    });
    let of = |id: &str| -> BTreeSet<&str> {
        let texts = answers.iter().filter(|(g, _)| g == id);
        texts.map(|(_, text)| text.as_str()).collect()
    };
    let (before, after) = (of(&first), of(&second));
    println!("{} answers during the rollout", answers.len());
    assert_eq!(
        (before.len(), after.len()),
        (1, 1),
        "one text of each generation, on all targets"
    );
    assert_ne!(before, after);
    let third = fleet.publish(3);
    gateway.settled(&third, 3);
    let (status, pinned) = gateway.post(
        "/v1/chat/completions",
        &json!({
            "model": format!("assistant@{second}"), "max_tokens": 60, "temperature": 0,
            "messages": [{ "role": "user", "content": "hello" }],
        }),
    );
    assert_eq!(status, 200, "{pinned}");
    assert!(after.contains(pinned["choices"][0]["message"]["content"].as_str().unwrap()));
    for target in &targets {
        let models = target.get("/v1/models").to_string();
        assert!(
            !models.contains(&first) && models.contains(&second),
            "{models}"
        );
        assert_ne!(
            target.current(),
            third,
            "what they serve by themselves stays"
        );
    }
    let metrics = gateway.metrics();
    let series = format!(
        "realign_fleet_target_epoch{{target=\"{}\"}} 4",
        targets[0].url("")
    );
    assert!(metrics.contains(&series), "{metrics}");
    assert!(metrics.contains("realign_fleet_rollout_stage{stage=\"probe\"} 0"));
}

fn stand_ins(count: usize) -> (Vec<StandIn>, Vec<(&'static str, String)>) {
    let all: Vec<StandIn> = (0..count).map(|_| StandIn::start()).collect();
    let urls = all.iter().map(|s| ("vllm", s.url())).collect();
    (all, urls)
}

#[test]
fn rollouts_over_vllms_dialect_lose_no_stream() {
    let (engines, urls) = stand_ins(3);
    let fleet = Fleet::new(&urls, "");
    let first = fleet.publish(1);
    let gateway = fleet.start(&[], None);
    gateway.settled(&first, 3);
    let mut all = vec![first];
    let answers = stream_during(&gateway, 12, || {
        for seed in 2..6 {
            all.push(fleet.publish(seed));
            gateway.settled(all.last().unwrap(), 3);
        }
        // Back to the one before, which is loaded still.
        let back = GenerationId(all[3].clone());
        fleet.adapters.set_current(&back).unwrap();
        gateway.settled(&back.0, 3);
    });
    println!("{} answers during five rollouts", answers.len());
    let seen: BTreeSet<&String> = answers.iter().map(|(generation, _)| generation).collect();
    assert_eq!(seen.len(), 5, "{seen:?}");
    for engine in &engines {
        let kept = [&all[3], &all[4]].map(|id| format!("assistant@{id}"));
        assert_eq!(BTreeSet::from_iter(engine.adapters()), BTreeSet::from(kept));
        assert_eq!(
            engine.loads_of_what_was_there(),
            0,
            "nothing is loaded in place"
        );
        assert!(engine.answered() > answers.len() / 6, "each has its share");
    }
    let (status, models) = gateway.get("/v1/models");
    assert_eq!(
        (status, &models["data"][0]["id"]),
        (200, &json!("assistant"))
    );
    refusals(&gateway);
}

fn refusals(gateway: &Gateway<'_>) {
    let message = json!([{ "role": "user", "content": "hello" }]);
    for (status, path, body) in [
        (
            404,
            "/v1/chat/completions",
            json!({ "model": "other", "messages": message }),
        ),
        (
            404,
            "/v1/chat/completions",
            json!({ "model": "base-model", "messages": message }),
        ),
        (
            404,
            "/v1/chat/completions",
            json!({ "model": "assistant@000000000000" }),
        ),
        (400, "/v1/chat/completions", json!({ "model": 1 })),
        (
            404,
            "/v1/load_lora_adapter",
            json!({ "lora_name": "a", "lora_path": "b" }),
        ),
        // A route that targets do not have is no reason to doubt them.
        (
            404,
            "/v1/embeddings",
            json!({ "model": "assistant", "input": "a" }),
        ),
    ] {
        assert_eq!(gateway.post(path, &body).0, status, "{path} {body}");
    }
    let url = format!("http://{}/v1/chat/completions", gateway.address);
    let twice = "{\"model\": \"assistant\", \"x\": 1, \"model\": \"base-model\"}";
    let answer = gateway.agent.post(url).send(twice).unwrap();
    assert_eq!(answer.status().as_u16(), 400);
    let status = gateway.status();
    assert!(
        status["targets"]
            .as_array()
            .unwrap()
            .iter()
            .all(|t| t["in_pool"] == true),
        "{status}"
    );
    let unauthorized = gateway
        .agent
        .get(format!("http://{}/admin/v1/fleet", gateway.address));
    assert_eq!(unauthorized.call().unwrap().status().as_u16(), 401);
}

#[test]
fn a_target_that_restarts_comes_back_with_what_serves() {
    let (mut engines, urls) = stand_ins(3);
    let fleet = Fleet::new(&urls, "");
    let first = fleet.publish(1);
    let gateway = fleet.start(&[], None);
    gateway.settled(&first, 3);
    engines[1].kill();
    // Nothing that begins now fails: where the target is gone, another one is asked.
    for _ in 0..12 {
        assert_eq!(gateway.stream("hello", 12).unwrap().generation, first);
    }
    wait("a target out of the pool", || {
        let status = gateway.status();
        (status["targets"][1]["in_pool"] == false || status.to_string().contains("does not answer"))
            .then_some(())
    });
    let second = fleet.publish(2);
    gateway.settled(&second, 2);
    let before = engines[1].answered();
    engines[1].restart();
    gateway.settled(&second, 3);
    assert_eq!(engines[1].adapters(), [format!("assistant@{second}")]);
    // One that loses its adapters between two looks.
    let answers = stream_during(&gateway, 12, || {
        for _ in 0..3 {
            engines[2].forget();
            wait("its adapter", || {
                (!engines[2].adapters().is_empty()).then_some(())
            });
            gateway.settled(&second, 3);
        }
    });
    assert!(answers.iter().all(|(generation, _)| *generation == second));
    assert!(engines[1].answered() > before);
}

#[test]
fn a_target_that_cannot_is_excluded_or_ends_the_rollout() {
    for (on_failure, switches) in [("exclude", true), ("abort", false)] {
        let (engines, urls) = stand_ins(3);
        let fleet = Fleet::new(&urls, &format!("on_failure = \"{on_failure}\""));
        let first = fleet.publish(1);
        let gateway = fleet.start(&[], None);
        gateway.settled(&first, 3);
        let second = fleet.add(2);
        engines[0].breaks(&second.0);
        fleet.adapters.set_current(&second).unwrap();
        let status = if switches {
            gateway.settled(&second.0, 2)
        } else {
            wait("a rollout that is given up", || {
                let status = gateway.status();
                (!status["refused"].is_null()).then_some(status)
            })
        };
        assert!(status.to_string().contains("No adapter found"), "{status}");
        let serves = if switches { &second.0 } else { &first };
        assert_eq!(gateway.stream("hello", 12).unwrap().generation, *serves);
        let shown = Command::new(env!("CARGO_BIN_EXE_realign"))
            .args(["fleet", "status", "--admin-key", KEY, "--url"])
            .arg(format!("http://{}", gateway.address))
            .current_dir(fleet.workspace.path(""))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert_eq!(shown.status.code(), Some(1), "{text}");
        assert!(
            text.contains(&format!("assistant serves {serves}")),
            "{text}"
        );
    }
}

#[test]
fn a_gateway_that_is_killed_at_any_step_goes_on() {
    let (engines, urls) = stand_ins(2);
    let fleet = Fleet::new(&urls, "");
    let mut serves = fleet.publish(1);
    drop({
        let gateway = fleet.start(&[], None);
        gateway.settled(&serves, 2);
        gateway
    });
    let stages = ["load", "probe", "drain", "unload", "idle"];
    let points = stages
        .iter()
        .flat_map(|s| ["before", "after"].map(|w| format!("fleet:{w}-{s}")));
    for (n, point) in points.enumerate() {
        let next = fleet.publish(10 + n as u32);
        let mut gateway = fleet.start(&[], Some(&point));
        gateway.ended();
        drop(gateway);
        let gateway = fleet.start(&[], None);
        // Whatever answers in between is one of the two.
        let answer = wait("an answer", || gateway.stream("hello", 12).ok());
        assert!([&serves, &next].contains(&&answer.generation), "{point}");
        let status = gateway.settled(&next, 2);
        assert_eq!(status["previous"]["generation"], serves.as_str(), "{point}");
        for engine in &engines {
            let kept = [&serves, &next].map(|id| format!("assistant@{id}"));
            assert_eq!(
                BTreeSet::from_iter(engine.adapters()),
                BTreeSet::from(kept),
                "{point}"
            );
            assert_eq!(engine.loads_of_what_was_there(), 0, "{point}");
        }
        serves = next;
    }
}

#[test]
fn a_client_that_goes_ends_its_answer_and_a_shutdown_lets_answers_end() {
    let (_engines, urls) = stand_ins(1);
    let fleet = Fleet::new(&urls, "");
    let first = fleet.publish(1);
    let mut gateway = fleet.start(&[], None);
    gateway.settled(&first, 1);
    let outstanding = |gateway: &Gateway<'_>| gateway.status()["targets"][0]["outstanding"].clone();
    let mut socket = std::net::TcpStream::connect(&gateway.address).unwrap();
    let body = json!({ "model": "assistant", "stream": true }).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {}",
        body.len()
    );
    std::io::Write::write_all(&mut socket, format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    wait("a request under way", || {
        (outstanding(&gateway) == 1).then_some(())
    });
    drop(socket);
    wait("no request", || (outstanding(&gateway) == 0).then_some(()));
    std::thread::scope(|scope| {
        let own = &gateway;
        let streams: Vec<_> = (0..4)
            .map(|_| scope.spawn(move || own.stream("hello", 12)))
            .collect();
        wait("requests under way", || {
            (outstanding(own).as_u64() > Some(0)).then_some(())
        });
        let pid = own.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let ended = streams.into_iter().map(|s| s.join().unwrap());
        assert!(ended.filter(Result::is_ok).count() >= 1);
    });
    gateway.ended();
}
