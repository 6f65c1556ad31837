//! A server with policies judges what passes through a gateway.

use serde_json::json;

use super::super::server::{Server, wait};
use super::super::workspace::Workspace;
use super::fleet::*;
use super::stand_ins;

/// A policy that answers of one generation violate: the stand-ins say by what they answer.
fn forbids(generation: &str) -> String {
    format!(
        "apiVersion: realign/v1\nid: not-that-one\nversion: \"1\"\ndescription: Answers of one generation.\n\
         rules:\n  - id: named\n    severity: high\n    violates: {{ response: {{ any_regex: [\"{generation}\"] }} }}\n"
    )
}

impl Gateway<'_> {
    fn judged(&self, generation: &str, verdict: &str) -> f64 {
        self.series(&format!(
            "realign_fleet_compliance_answers_total{{generation=\"{generation}\",verdict=\"{verdict}\"}}"
        ))
    }

    fn series(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

#[test]
fn answers_are_judged_beside_the_way_and_a_canary_that_violates_goes_back() {
    // An id is a hash of the adapter, so it is known before anything serves.
    let second = Fleet::new(&[], "").add(2).0;
    let policies = Workspace::tiny(1);
    policies.write("policies/p.yaml", &forbids(&second));
    let judge = Server::start(&policies);
    wait("the policies", || {
        let judged = judge.post(
            "/v1/moderations",
            &json!({ "input": format!("by {second}") }),
        );
        (judged.body["results"][0]["flagged"] == true).then_some(())
    });
    let (engines, urls) = stand_ins(2);
    let settings = format!(
        "canary = [0.5, 1.0]\ncanary_min_requests = 100000\ncanary_min_s = 0\njudge = \"{}\"",
        judge.url("")
    );
    let fleet = Fleet::new(&urls, &settings);
    let first = fleet.publish(1);
    let gateway = fleet.start(&[], None);
    gateway.settled(&first, 2);
    for _ in 0..5 {
        assert!(gateway.stream("hello", 8).unwrap().text.contains(&first));
        let body = json!({ "messages": [{ "role": "user", "content": "hello" }] });
        assert_eq!(gateway.post("/v1/chat/completions", &body).0, 200);
        let body = json!({ "prompt": "hello" });
        assert_eq!(gateway.post("/v1/completions", &body).0, 200);
    }
    wait("every answer to be judged", || {
        (gateway.judged(&first, "complies") == 15.0).then_some(())
    });
    assert_eq!(fleet.publish(2), second);
    let mut of_second = 0.0f64;
    let status = wait("the way back", || {
        let _answer = gateway.stream("hello", 8).unwrap();
        of_second = of_second.max(gateway.judged(&second, "violates"));
        let status = gateway.status();
        (!status["refused"].is_null()).then_some(status)
    });
    let why = status["refused"]["why"].as_str().unwrap();
    assert!(why.contains("canary: violations"), "{why}");
    assert_eq!(status["refused"]["cause"], "canary");
    assert!(of_second > 3.0, "{of_second}");
    assert_eq!(gateway.judged(&first, "violates"), 0.0);
    // Without the judge, requests are answered as ever.
    judge.kill();
    assert!(gateway.stream("hello", 8).unwrap().text.contains(&first));
    wait("what is not judged to be counted", || {
        (gateway.series("realign_fleet_compliance_dropped_total{reason=\"judge\"}") >= 1.0)
            .then_some(())
    });
    drop(engines);
}
