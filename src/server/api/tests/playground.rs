//! What the page's playground asks: answers of any generation, and policies with an example more.

use serde_json::{Value, json};

use super::fake::{BASE, CURRENT, Server, generation};
use super::{Reply, get, send};

fn ask(server: &Server, body: &Value) -> Reply {
    let path = "/admin/v1/playground";
    send(server, "POST", path, &[], &body.to_string())
}

fn extend(server: &Server, body: &Value) -> Reply {
    let path = "/admin/v1/policies/extend";
    send(server, "POST", path, &[], &body.to_string())
}

#[test]
fn every_generation_answers_under_its_role_and_its_id() {
    let server = Server::start(|_| ());
    let candidate = generation("00000000ef01");
    let of = |name: &str| ask(&server, &json!({"generation": name, "prompt": "Hi"}));
    assert_eq!(of("candidate").status, 400, "none sits its exam");
    server.state.registry.show_candidate(&candidate);
    for (name, id) in [
        ("base", BASE),
        ("current", CURRENT),
        ("previous", BASE),
        ("candidate", "00000000ef01"),
        ("00000000ef01", "00000000ef01"),
        (CURRENT, CURRENT),
    ] {
        let reply = of(name);
        assert_eq!(reply.status, 200, "{name}: {}", reply.text);
        assert_eq!(reply.header("x-realign-generation"), id, "{name}");
        assert_eq!(
            reply.json()["choices"][0]["message"]["content"],
            "Hello world!"
        );
    }
    assert_eq!(of("00000000ffff").status, 404);
    let overview = get(&server, "/admin/v1/overview").json();
    assert_eq!(overview["candidate"], "00000000ef01");
    let pinned =
        json!({"model": "org/tiny@00000000ef01", "messages": [{"role": "user", "content": "Hi"}]});
    let by_client = send(
        &server,
        "POST",
        "/v1/chat/completions",
        &[],
        &pinned.to_string(),
    );
    assert_eq!(by_client.status, 404, "no gate has let it serve");
    // The engine here keeps what it was asked, with the generation.
    server.engine.requests.lock().unwrap().clear();
    drop(candidate);
    assert_eq!(of("candidate").status, 400, "its realignment let it go");
}

#[test]
fn answers_are_streamed_sampled_as_asked_and_not_counted_as_traffic() {
    let server = Server::start(|state| state.registry.withhold("damaged"));
    let body = json!({
        "generation": "current", "prompt": "Hi", "system": "Be brief.", "max_tokens": 7,
        "temperature": 0.5, "seed": 3, "stream": true,
    });
    let reply = ask(&server, &body);
    let events = reply.events();
    assert_eq!(
        events[1]["choices"][0]["delta"]["content"], "Hello",
        "{events:?}"
    );
    let requests = server.engine.requests.lock().unwrap();
    let sampling = &requests[0].sampling;
    assert_eq!((sampling.max_tokens, sampling.seed), (7, 3));
    drop(requests);
    let overview = get(&server, "/admin/v1/overview").json();
    assert_eq!(overview["traffic"]["slots"], json!([]), "{overview}");
    let wrong = ask(
        &server,
        &json!({"generation": "base", "prompt": "Hi", "temperature": -1}),
    );
    assert!(
        wrong.status == 400 && wrong.text.contains("temperature"),
        "{}",
        wrong.text
    );
    assert_eq!(ask(&server, &json!({"prompt": "Hi"})).status, 400);
}

#[test]
fn a_policy_comes_back_with_an_example_more() {
    let server = Server::start(|_| ());
    let example = json!({
        "policy": "p", "add": "example", "rule": "hello", "prompt": "Hi", "response": "Hello",
        "verdict": "violates",
    });
    let answer = extend(&server, &example).json();
    let line = "- { prompt: \"Hi\", response: \"Hello\", verdict: violates }";
    assert_eq!(answer["line"], line);
    assert_eq!(answer["file"], "p.yaml");
    let text = format!("id: p\nrules:\n  - id: hello\n    examples:\n      {line}\n");
    assert_eq!(answer["text"], text);
    let control = extend(
        &server,
        &json!({"policy": "p", "add": "control", "prompt": "Hi"}),
    );
    assert!(control.text.contains("controls:"), "{}", control.text);
    let mut other = example.clone();
    other["rule"] = "none".into();
    let told = extend(&server, &other).json();
    assert!(told["text"].is_null() && told["reason"].as_str().unwrap().contains("none"));
    for (field, value, status) in [
        ("policy", json!("q"), 404),
        ("add", json!("rule"), 400),
        ("verdict", json!("unsure"), 400),
        ("response", Value::Null, 400),
    ] {
        let mut wrong = example.clone();
        wrong[field] = value;
        let reply = extend(&server, &wrong);
        assert_eq!(reply.status, status, "{field}: {}", reply.text);
    }
}
