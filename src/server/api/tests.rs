//! Tests of the routes over a socket, with a scripted engine.

mod bodies;
mod counts;
mod dialects;
mod document;
mod fake;
mod histories;
mod in_process;
mod limits;
mod meant;
mod nested;
mod operating;
mod peers;
mod playground;
mod responses;
mod schemas;
mod supervision;
mod surface;
mod thinking;
mod tools;
mod unknown;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::fake::{ADMIN_KEY, BASE, CURRENT, MODEL, Script, Server};
use realign_engine::request::SubmitError;

struct Reply {
    status: u16,
    headers: ureq::http::HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The JSON of each event; the stream must end with `[DONE]`.
    fn events(&self) -> Vec<Value> {
        let mut lines: Vec<&str> = self.text.split_terminator("\n\n").collect();
        assert_eq!(lines.pop(), Some("data: [DONE]"), "{}", self.text);
        let data = |line: &&str| serde_json::from_str(line.strip_prefix("data: ").unwrap());
        lines.iter().map(|line| data(line).unwrap()).collect()
    }
}

fn send(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let agent: ureq::Agent = config.build().into();
    let mut request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("{}{path}", server.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // Operators send their key unless the test sends another, or none on purpose.
    let own = headers.iter().any(|(name, _)| *name == "authorization");
    if (path.starts_with("/admin") || path.ends_with("_lora_adapter")) && !own {
        request = request.header("authorization", format!("Bearer {ADMIN_KEY}"));
    }
    let mut response = if body.is_empty() {
        agent.run(request.body(()).unwrap()).unwrap()
    } else {
        agent.run(request.body(body.to_string()).unwrap()).unwrap()
    };
    Reply {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.body_mut().read_to_string().unwrap(),
    }
}

fn get(server: &Server, path: &str) -> Reply {
    send(server, "GET", path, &[], "")
}

/// Posts a chat request of one message with additional fields.
fn chat(server: &Server, fields: &Value) -> Reply {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    send(
        server,
        "POST",
        "/v1/chat/completions",
        &[],
        &body.to_string(),
    )
}

fn post(server: &Server, path: &str, body: &Value) -> Reply {
    send(server, "POST", path, &[], &body.to_string())
}

fn complete(server: &Server, fields: &Value) -> Reply {
    let mut body = json!({"model": MODEL, "prompt": "Hi"});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    send(server, "POST", "/v1/completions", &[], &body.to_string())
}

#[test]
fn chat_answers_whole() {
    let server = Server::start(|_| ());
    let fields = json!({"n": 2, "seed": 5, "logprobs": true, "top_logprobs": 1, "stop": "x"});
    let reply = chat(&server, &fields);
    let answer = reply.json();
    assert_eq!(reply.status, 200, "{answer}");
    assert_eq!(answer["object"], "chat.completion");
    let fingerprint = format!("fp_12345678_{CURRENT}");
    assert_eq!(answer["system_fingerprint"], fingerprint);
    assert_eq!(reply.header("x-realign-generation"), CURRENT);
    assert!(reply.header("x-request-id").starts_with("req_"));
    let choice = &answer["choices"][1];
    assert_eq!(choice["message"]["content"], "Hello world!");
    assert_eq!(choice["finish_reason"], "stop");
    let scored = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(scored.len(), 2);
    assert_eq!(scored[0]["top_logprobs"][0]["token"], "Hello");
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 6, "two choices of three");
    let requests = server.engine.requests.lock().unwrap();
    assert_eq!(
        usage["prompt_tokens"],
        requests[0].prompt.len(),
        "counted once"
    );
    assert_eq!(
        [requests[0].sampling.seed, requests[1].sampling.seed],
        [5, 6]
    );
    let prompt = requests[0].prompt.len();
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], prompt / 2);
    assert_eq!(
        requests[0].sampling.max_tokens,
        2048 - prompt,
        "whatever is left of the context"
    );
    assert_eq!(requests[0].sampling.temperature, 1.0);
}

#[test]
fn chat_answers_in_chunks_that_make_the_whole() {
    let server = Server::start(|_| ());
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let reply = chat(&server, &options);
    assert_eq!(reply.header("content-type"), "text/event-stream");
    assert_eq!(reply.header("x-accel-buffering"), "no");
    assert_eq!(reply.header("x-realign-generation"), CURRENT);
    let events = reply.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let content = |e: &Value| {
        e["choices"][0]["delta"]["content"]
            .as_str()
            .map(str::to_string)
    };
    let text: String = events.iter().filter_map(content).collect();
    assert_eq!(text, "Hello world!");
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 3);
    assert!(events[0]["usage"].is_null());
    let closing = &events[events.len() - 2];
    assert_eq!(closing["choices"][0]["finish_reason"], "stop");
    assert!(events.iter().all(|e| e["id"] == events[0]["id"]));
}

#[test]
fn completions_answer_every_form_of_prompt() {
    let server = Server::start(|_| ());
    let prompts = [
        (json!("Hi"), 1),
        (json!(["Hi", "Ho"]), 2),
        (json!([5, 6]), 1),
        (json!([[5], [6, 7], [8]]), 3),
    ];
    for (prompt, count) in prompts {
        let answer = complete(&server, &json!({"prompt": prompt, "logprobs": 1})).json();
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), count, "{prompt}");
        assert_eq!(choices[0]["text"], "Hello world!");
        assert_eq!(choices[0]["logprobs"]["text_offset"], json!([0, 5]));
    }
    let requests = server.engine.requests.lock().unwrap();
    assert_eq!(requests[0].sampling.max_tokens, 16);
    assert_eq!(requests[3].prompt, [5, 6]);
    drop(requests);
    let events = complete(&server, &json!({"stream": true})).events();
    let text: String = events
        .iter()
        .filter_map(|e| e["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, "Hello world!");
}

#[test]
fn wrong_fields_are_named() {
    let server = Server::start(|_| ());
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    let cases = [
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": -0.1}), "top_p"),
        (json!({"n": 9}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (
            json!({"max_completion_tokens": 1.5}),
            "max_completion_tokens",
        ),
        (json!({"stop": vec!["a"; 33]}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"stream": 1}), "stream"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"frequency_penalty": 2.5}), "frequency_penalty"),
        (json!({"presence_penalty": "0"}), "presence_penalty"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"logit_bias": {"one": 1}}), "logit_bias"),
        (json!({"logit_bias": {"9999999": 1}}), "logit_bias"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
        ),
        (json!({"model": 5}), "model"),
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "robot", "content": "x"}]}),
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": user(image)}),
            "messages[0].content[0].type",
        ),
    ];
    for (fields, param) in cases {
        let reply = chat(&server, &fields);
        let error = &reply.json()["error"];
        assert_eq!(reply.status, 400, "{fields}");
        assert_eq!(error["param"], param, "{fields}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    for fields in [
        json!({"prompt": []}),
        json!({"prompt": [-1]}),
        json!({"prompt": [9_999_999]}),
    ] {
        let reply = complete(&server, &fields);
        assert_eq!(
            (reply.status, &reply.json()["error"]["param"]),
            (400, &json!("prompt"))
        );
    }
    for (fields, param) in [
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"echo": true, "logprobs": 1, "stream": true}), "echo"),
    ] {
        let reply = complete(&server, &fields);
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["param"]), (400, &json!(param)));
        assert_eq!(error["code"], "unsupported_parameter");
    }
    assert!(server.engine.requests.lock().unwrap().is_empty());
}

#[test]
fn harmless_fields_pass() {
    let server = Server::start(|_| ());
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let messages =
        json!([{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]);
    let cases = [
        json!({"user": "me", "metadata": {"a": "b"}, "unknown": null, "tools": [], "tool_choice": "none"}),
        json!({"temperature": null, "stop": [], "presence_penalty": 0}),
        json!({"response_format": {"type": "text"}, "messages": messages}),
    ];
    for fields in cases {
        assert_eq!(chat(&server, &fields).status, 200, "{fields}");
    }
}

#[test]
fn models_can_be_pinned() {
    let server = Server::start(|_| ());
    let cases = [
        (MODEL.to_string(), CURRENT),
        (format!("{MODEL}@base"), BASE),
        (format!("{MODEL}@{CURRENT}"), CURRENT),
    ];
    for (model, generation) in cases {
        let reply = chat(&server, &json!({"model": model}));
        assert_eq!(reply.header("x-realign-generation"), generation, "{model}");
        assert_eq!(reply.json()["model"], model);
        assert_eq!(
            get(&server, &format!("/v1/models/{model}")).json()["id"],
            model
        );
    }
    let list = get(&server, "/v1/models").json();
    assert_eq!(list["data"].as_array().unwrap().len(), 3, "{list}");
    for model in ["other", "org/tiny@", "org/tiny@ffffffffffff", "org/tinyx"] {
        let reply = chat(&server, &json!({"model": model}));
        assert_eq!(reply.status, 404, "{model}");
        assert_eq!(reply.json()["error"]["code"], "model_not_found");
    }
    assert_eq!(get(&server, "/v1/models/other").status, 404);
}

#[test]
fn every_failure_has_the_shape_of_openai() {
    let server = Server::start(|_| ());
    let (waiting, limit) = (4, 4);
    let too_long = SubmitError::TooLong {
        prompt: 9,
        max_tokens: 9,
        limit: 10,
    };
    let engine = [
        (
            Script::Refuse(SubmitError::QueueFull { waiting, limit }),
            429,
            "1",
        ),
        (Script::Refuse(SubmitError::ShuttingDown), 503, "1"),
        (Script::Refuse(too_long), 400, ""),
        (Script::Fail, 500, ""),
    ];
    for (script, status, retry) in engine {
        server.script([script.clone()]);
        let reply = chat(&server, &json!({}));
        assert_eq!(reply.status, status, "{script:?}");
        assert_eq!(reply.header("retry-after"), retry);
        assert!(reply.json()["error"]["message"].is_string());
    }
    let large = format!("\"{}\"", "x".repeat(5000));
    let deep = "[".repeat(3000);
    let plain = [
        ("POST", "/v1/chat/completions", "{", 400),
        ("POST", "/v1/chat/completions", "[]", 400),
        ("POST", "/v1/chat/completions", deep.as_str(), 400),
        ("POST", "/v1/completions", large.as_str(), 413),
        ("GET", "/v1/chat/completions", "", 405),
        ("GET", "/v1/nothing", "", 404),
    ];
    for (method, path, body, status) in plain {
        let reply = send(&server, method, path, &[], body);
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.text);
        assert!(reply.json()["error"]["message"].is_string());
    }
    server.script([Script::Fail]);
    let streamed = chat(&server, &json!({"stream": true})).text;
    assert!(
        streamed.contains("\"error\"") && !streamed.contains("[DONE]"),
        "{streamed}"
    );
}

#[test]
fn a_client_that_leaves_cancels_its_sequences() {
    let server = Server::start(|_| ());
    server.script([Script::Hang]);
    let body = json!({"model": MODEL, "prompt": "Hi", "stream": true}).to_string();
    let agent = ureq::Agent::new_with_defaults();
    let url = format!("{}/v1/completions", server.url);
    drop(agent.post(&url).send(body).unwrap());
    drop(agent);
    let until = Instant::now() + Duration::from_secs(10);
    let hanging = server.engine.hanging.lock().unwrap();
    while !hanging[0].is_closed() {
        assert!(Instant::now() < until, "the sequence was not cancelled");
        std::thread::yield_now();
    }
}

#[test]
fn operator_routes_map_outcomes_to_statuses() {
    let server = Server::start(|_| ());
    let activate = "/admin/v1/generations/activate";
    let moved = json!({"generation": BASE, "expected_generation": BASE}).to_string();
    let fits = json!({"generation": BASE, "expected_generation": CURRENT}).to_string();
    let cases = [
        ("GET", "/admin/v1/policies", "", 200),
        ("GET", "/admin/v1/realignments/r1", "", 200),
        ("GET", "/admin/v1/realignments/r9", "", 404),
        ("POST", "/admin/v1/realignments", "{}", 202),
        ("POST", "/admin/v1/realignments/r9/cancel", "{}", 404),
        ("POST", activate, moved.as_str(), 409),
        ("POST", activate, fits.as_str(), 200),
        ("POST", activate, "{}", 400),
        ("POST", "/admin/v1/generations/rollback", "{}", 500),
        ("DELETE", "/admin/v1/generations", "", 405),
    ];
    for (method, path, body, status) in cases {
        let reply = send(&server, method, path, &[], body);
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.text);
    }
    let events = get(&server, "/admin/v1/realignments/r1/events").text;
    assert!(events.contains("realignment_finished") && !events.contains("never_sent"));
}

/// A stream ends when its realignment has, even if the last event did not come, and at the latest
/// when the server shuts down.
#[test]
fn streams_of_events_end() {
    let server = Server::start(|_| ());
    let path = |id: &str| format!("/admin/v1/realignments/{id}/events");
    let missed = get(&server, &path("missed")).text;
    assert!(missed.contains("\"no_conflict\""), "{missed}");
    let running = std::thread::scope(|scope| {
        let stream = scope.spawn(|| get(&server, &path("running")).text);
        std::thread::sleep(Duration::from_millis(400));
        assert!(!stream.is_finished());
        server.state.closing.send_replace(true);
        stream.join().unwrap()
    });
    assert!(!running.contains("realignment_finished"), "{running}");
}

#[test]
fn probes_and_metrics_tell_the_state() {
    let server = Server::start(|_| ());
    assert_eq!(get(&server, "/ready").json()["generation"], CURRENT);
    chat(&server, &json!({}));
    let metrics = get(&server, "/metrics").text;
    let lines = [
        "realign_requests_running 3",
        "realign_kv_cache_usage_ratio 0.5",
        "realign_prefix_cache_queries_total 100",
        "realign_prefix_cache_hits_total 64",
        "realign_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "realign_generation_tokens_total 3",
    ];
    for line in lines {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    server.state.ready.store(false, Ordering::Release);
    assert_eq!(get(&server, "/ready").status, 503);
    assert_eq!(get(&server, "/health").status, 200);
    assert_eq!(chat(&server, &json!({})).status, 503);
}
