//! A share of the requests gets a generation first; operators pause, resume and abort.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::super::server::wait;
use super::super::stand_in::StandIn;
use super::fleet::*;
use super::stand_ins;

const SETTINGS: &str = "canary = [0.2, 0.5, 1.0]\ncanary_min_requests = 20\ncanary_min_s = 0";
/// Conversations that go on during a test.
const USERS: usize = 24;

/// What one request got: its generation and its status.
type Got = (String, u16);

impl Gateway<'_> {
    /// One request of a user.
    fn ask(&self, user: usize) -> Got {
        let url = format!("http://{}/v1/chat/completions", self.address);
        let body = json!({
            "model": "assistant", "messages": [{ "role": "user", "content": "hello" }],
            "user": format!("user-{user}"),
        });
        let mut response = self.agent.post(url).send_json(&body).unwrap();
        let status = response.status().as_u16();
        let header = response.headers().get("x-realign-generation").cloned();
        let generation = header.map_or_else(String::new, |h| h.to_str().unwrap().to_owned());
        let answer: Value = response.body_mut().read_json().unwrap_or_default();
        if status == 200 {
            let model = format!("assistant@{generation}");
            assert_eq!(
                answer["model"],
                model.as_str(),
                "one generation in a response"
            );
        }
        (generation, status)
    }

    /// All conversations go on while `during` runs. What each of them got, in order.
    fn asked_during(&self, during: impl FnOnce()) -> BTreeMap<usize, Vec<Got>> {
        let over = AtomicBool::new(false);
        let got: Mutex<BTreeMap<usize, Vec<Got>>> = Mutex::default();
        std::thread::scope(|scope| {
            for client in 0..4 {
                let (over, got) = (&over, &got);
                scope.spawn(move || {
                    while !over.load(Ordering::SeqCst) {
                        for user in (client..USERS).step_by(4) {
                            let one = self.ask(user);
                            got.lock().unwrap().entry(user).or_default().push(one);
                        }
                    }
                });
            }
            let _over = Over(&over);
            during();
        });
        got.into_inner().unwrap()
    }

    fn in_stage(&self, stage: &str) -> Value {
        wait(&format!("stage {stage}"), || {
            let status = self.status();
            (status["rollout"]["stage"] == stage).then_some(status)
        })
    }
}

/// Ends the conversations, also if what they were for fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How often a conversation came from one generation to the other.
fn flips(got: &[Got]) -> usize {
    got.windows(2).filter(|two| two[0].0 != two[1].0).count()
}

fn is_loaded(engines: &[StandIn], generation: &str) -> bool {
    let name = format!("assistant@{generation}");
    engines.iter().any(|e| e.adapters().contains(&name))
}

#[test]
fn a_generation_that_answers_errors_goes_back_by_itself() {
    let (engines, urls) = stand_ins(2);
    let fleet = Fleet::new(&urls, SETTINGS);
    let first = fleet.publish(1);
    let gateway = fleet.start(&[], None);
    gateway.settled(&first, 2);
    let id = fleet.add(2);
    let second = id.0.clone();
    engines.iter().for_each(|engine| engine.fails(&second));
    let got = gateway.asked_during(|| {
        fleet.adapters.set_current(&id).unwrap();
        let status = wait("the way back", || {
            let status = gateway.status();
            (!status["refused"].is_null()).then_some(status)
        });
        let why = status["refused"]["why"].as_str().unwrap();
        assert!(
            why.contains("canary: errors") && why.contains("failed"),
            "{why}"
        );
        assert_eq!(status["refused"]["cause"], "canary");
        assert_eq!(status["current"]["generation"], first.as_str());
        wait("the candidate unloaded", || {
            (!is_loaded(&engines, &second)).then_some(())
        });
    });
    // Each conversation went to it at most once, and came back from it.
    let failed: usize = got
        .values()
        .flatten()
        .filter(|(_, status)| *status != 200)
        .count();
    let all: usize = got.values().map(Vec::len).sum();
    println!("{failed} of {all} requests failed before it went back");
    assert!(failed > 0 && failed * 2 < all, "{failed} of {all}");
    for (user, got) in &got {
        assert!(flips(got) <= 2, "user {user}: {got:?}");
        let only = got
            .iter()
            .all(|(generation, status)| (*generation == second) == (*status == 500));
        assert!(only, "user {user}: {got:?}");
    }
    // Nothing gets it now, by its name neither, and it is not begun again by itself.
    assert!((0..USERS).all(|user| gateway.ask(user) == (first.clone(), 200)));
    let pinned = json!({ "model": format!("assistant@{second}"), "messages": [] });
    assert_eq!(gateway.post("/v1/chat/completions", &pinned).0, 404);
    let metrics = gateway.metrics();
    assert!(metrics.contains("realign_fleet_refused 1"), "{metrics}");
    assert!(
        metrics.contains("realign_fleet_canary_share 0"),
        "{metrics}"
    );
    assert!(
        !metrics.contains(&format!("generation=\"{second}\"")),
        "{metrics}"
    );
    let (code, text) = gateway.order("status", &[]);
    assert!(
        code == Some(1) && text.contains("given up") && text.contains("history: back"),
        "{text}"
    );
    drop(gateway);
    let gateway = fleet.start(&[], None);
    assert_eq!(gateway.settled(&first, 2)["refused"]["cause"], "canary");
    // A good one goes through.
    let third = fleet.publish(3);
    gateway.asked_during(|| {
        gateway.settled(&third, 2);
    });
}

#[test]
fn a_good_generation_goes_through_and_no_conversation_flips() {
    let (engines, urls) = stand_ins(2);
    let fleet = Fleet::new(&urls, SETTINGS);
    let first = fleet.publish(1);
    let gateway = fleet.start(&[], None);
    gateway.settled(&first, 2);
    let mut second = String::new();
    let mut shares = BTreeSet::new();
    let got = gateway.asked_during(|| {
        second = fleet.publish(2);
        wait("all of it", || {
            let status = gateway.status();
            let share = &status["rollout"]["share"];
            if status["rollout"]["stage"] == "canary" {
                shares.insert(share.to_string());
                assert_eq!(status["current"]["generation"], first.as_str());
            }
            (status["current"]["generation"] == second.as_str()).then_some(())
        });
        gateway.settled(&second, 2);
    });
    println!("shares seen: {shares:?}");
    assert!(
        shares.is_subset(&BTreeSet::from(["0.2".into(), "0.5".into()])),
        "{shares:?}"
    );
    assert!(got.values().flatten().all(|(_, status)| *status == 200));
    for (user, got) in &got {
        assert!(flips(got) <= 1, "user {user} came back: {got:?}");
    }
    let metrics = gateway.metrics();
    let series = format!("realign_fleet_answers_total{{generation=\"{second}\",outcome=\"ok\"}}");
    assert!(metrics.contains(&series), "{metrics}");
    let series = format!("realign_fleet_first_byte_seconds_count{{generation=\"{second}\"}}");
    assert!(metrics.contains(&series), "{metrics}");
    drop(engines);
}

#[test]
fn operators_pause_resume_abort_and_roll_out_again() {
    let (engines, urls) = stand_ins(2);
    let fleet = Fleet::new(&urls, SETTINGS);
    let first = fleet.publish(1);
    let mut gateway = fleet.start(&[], None);
    gateway.settled(&first, 2);
    let why = ["--by", "ann", "--why", "incident 42"];
    for (order, refusal) in [
        ("abort", "nothing to abort"),
        ("resume", "not paused"),
        ("rollout", "nothing was given up"),
    ] {
        let (code, text) = gateway.order(order, &why);
        assert!(code != Some(0) && text.contains(refusal), "{order}: {text}");
    }
    let url = format!("http://{}/admin/v1/fleet/pause", gateway.address);
    let without_key = gateway.agent.post(url).send("{\"why\":\"x\"}").unwrap();
    assert_eq!(without_key.status().as_u16(), 401);
    let second = fleet.publish(2);
    gateway.in_stage("canary");
    let (code, text) = gateway.order("pause", &why);
    assert!(code == Some(0) && text.contains("paused: by ann"), "{text}");
    assert!(gateway.metrics().contains("realign_fleet_paused 1"));
    // However many requests come, the share stays; so it does when the gateway is killed in the middle.
    gateway.asked_during(|| wait_for_answers(&gateway, 60));
    let held = |gateway: &Gateway<'_>| -> Vec<Got> { (0..USERS).map(|u| gateway.ask(u)).collect() };
    let before = held(&gateway);
    assert!(before.iter().any(|(generation, _)| *generation == second));
    gateway.child.kill().unwrap();
    gateway.ended();
    drop(gateway);
    let gateway = fleet.start(&[], None);
    let ready = format!("assistant@{second}");
    wait("the candidate on its targets", || {
        let model = json!({ "model": ready, "messages": [] });
        (gateway.post("/v1/chat/completions", &model).0 == 200).then_some(())
    });
    wait("both targets", || {
        let status = gateway.status();
        let targets = status["targets"].as_array()?;
        targets.iter().all(|t| t["in_pool"] == true).then_some(())
    });
    let status = gateway.status();
    assert_eq!(
        (&status["rollout"]["stage"], &status["rollout"]["share"]),
        (&json!("canary"), &json!(0.2))
    );
    assert_eq!(status["paused"]["why"], "incident 42");
    assert_eq!(held(&gateway), before, "the same conversations get it");
    let (code, text) = gateway.order("abort", &["--generation", &first, "--why", "x"]);
    assert!(code != Some(0) && text.contains("was meant"), "{text}");
    let (code, text) = gateway.order(
        "abort",
        &["--generation", &second, "--by", "bo", "--why", "French"],
    );
    assert!(
        code == Some(0) && text.contains("aborted by bo: French"),
        "{text}"
    );
    assert!(
        held(&gateway)
            .iter()
            .all(|(generation, _)| *generation == first)
    );
    wait("the candidate unloaded", || {
        (!is_loaded(&engines, &second)).then_some(())
    });
    let (code, text) = gateway.order("rollout", &why);
    assert!(
        code != Some(0) && text.contains("resume them first"),
        "{text}"
    );
    assert_eq!(gateway.order("resume", &why).0, Some(0));
    drop(gateway);
    let gateway = fleet.start(&[], None);
    assert!(gateway.settled(&first, 2)["refused"]["why"] == "aborted by bo: French");
    assert!(
        !is_loaded(&engines, &second),
        "it is not begun again by itself"
    );
    let (code, text) = gateway.order("rollout", &why);
    assert_eq!(code, Some(0), "{text}");
    gateway.asked_during(|| {
        gateway.settled(&second, 2);
    });
    let status = gateway.status();
    let history = status["history"].as_array().unwrap();
    let acts: Vec<&str> = history.iter().map(|e| e["act"].as_str().unwrap()).collect();
    assert_eq!(
        acts,
        ["switch", "pause", "abort", "resume", "rollout", "switch"],
        "{status}"
    );
    assert_eq!(history[1]["by"], "ann");
    assert!(history[1]["at"].as_u64() > Some(1_700_000_000));
    let (code, text) = gateway.order("abort", &why);
    assert!(
        code != Some(0) && text.contains("nothing to abort"),
        "{text}"
    );
}

/// Waits for so many answers by both generations.
fn wait_for_answers(gateway: &Gateway<'_>, count: u64) {
    wait("answers by both", || {
        let canary = &gateway.status()["canary"];
        let both = ["current", "candidate"].map(|arm| canary[arm]["answers"].as_u64());
        both.iter()
            .all(|answers| *answers >= Some(count))
            .then_some(())
    });
}

#[test]
fn a_gateway_that_is_killed_in_a_canary_goes_on_and_verdicts_send_it_back() {
    let (engines, urls) = stand_ins(2);
    let fleet = Fleet::new(&urls, SETTINGS);
    let mut serves = fleet.publish(1);
    {
        let gateway = fleet.start(&[], None);
        gateway.settled(&serves, 2);
    }
    for (n, point) in ["fleet:before-canary", "fleet:after-canary"]
        .iter()
        .enumerate()
    {
        let next = fleet.publish(10 + n as u32);
        let mut gateway = fleet.start(&[], Some(point));
        gateway.ended();
        drop(gateway);
        let gateway = fleet.start(&[], None);
        gateway.asked_during(|| {
            gateway.settled(&next, 2);
        });
        serves = next;
    }
    let next = fleet.publish(20);
    let gateway = fleet.start(&[], None);
    gateway.in_stage("canary");
    let verdict =
        |n: usize| json!({ "generation": next, "complies": false, "key": format!("user-{n}") });
    let verdicts: Vec<Value> = (0..30).map(verdict).collect();
    let url = format!("http://{}/admin/v1/fleet/verdicts", gateway.address);
    let request = gateway
        .agent
        .post(url)
        .header("authorization", format!("Bearer {KEY}"));
    let mut answer = request.send_json(json!({ "verdicts": verdicts })).unwrap();
    let taken: Value = answer.body_mut().read_json().unwrap();
    assert_eq!(taken["taken"], 30, "{taken}");
    let status = wait("the way back", || {
        let status = gateway.status();
        (!status["refused"].is_null()).then_some(status)
    });
    let why = status["refused"]["why"].as_str().unwrap();
    assert!(
        why.contains("canary: violations") && why.contains("30 of 30"),
        "{why}"
    );
    gateway.settled(&serves, 2);
    assert!(engines.iter().all(|e| e.loads_of_what_was_there() == 0));
}
