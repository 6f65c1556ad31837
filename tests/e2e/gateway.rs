//! One address in front of several engines: rollouts while clients stream, targets that restart, the
//! gateway killed at every step.

mod canary;
mod fleet;
mod judged;

use std::collections::BTreeSet;
use std::process::Command;

use realign_engine::adapter::generation::GenerationId;
use serde_json::json;

use super::server::{Server, wait};
use super::stand_in::StandIn;
use super::workspace::Workspace;
use fleet::*;

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
