//! Anthropic's and Ollama's clients.

use serde_json::{Value, json};

use super::super::Rates;
use super::fake::{MODEL, Script, Server};
use super::operating::access;
use super::{post, send};
use crate::config::UnknownFields;

/// The data of a stream's events.
fn data(reply: &super::Reply) -> Vec<Value> {
    let lines = reply
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    lines
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

/// Errors of keys, limits and fields; the bodies of both formats and what their errors look like.
#[test]
fn every_error_has_the_form_of_its_format() {
    let rates = Rates {
        requests: Some(2),
        tokens: None,
    };
    let server = Server::start(|state| {
        state.access = access(&["ann:k1"], rates);
        state.max_body_bytes = 2048;
    });
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let long = json!([{"role": "user", "content": "x".repeat(4096)}]);
    let ask = |path: &str, key: &str, messages: &Value| {
        let headers = [("authorization", key)];
        let body = json!({"model": MODEL, "messages": messages, "stream": false});
        send(&server, "POST", path, &headers, &body.to_string())
    };
    let (good, bad) = ("Bearer k1", "Bearer k2");
    let cases = [
        (401, bad, &messages, "authentication_error"),
        (413, good, &long, "request_too_large"),
        (429, good, &messages, "rate_limit_error"),
    ];
    for (status, key, messages, kind) in cases {
        let claude = ask("/v1/messages", key, messages);
        assert_eq!(claude.status, status, "{}", claude.text);
        assert_eq!(claude.json()["type"], "error");
        assert_eq!(claude.json()["error"]["type"], kind, "{}", claude.text);
        let ollama = ask("/api/chat", key, messages);
        assert_eq!(ollama.status, status, "{}", ollama.text);
        assert!(ollama.json()["error"].is_string(), "{}", ollama.text);
    }
    let limited = ask("/api/chat", good, &messages);
    assert!(!limited.header("retry-after").is_empty());
    let openai = ask("/v1/chat/completions", bad, &messages).json();
    assert_eq!(openai["error"]["code"], "invalid_api_key");
    let server = Server::start(|_| ());
    let unknown = send(&server, "POST", "/api/pull", &[], "{}");
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"].is_string(), "{}", unknown.text);
    let method = send(&server, "DELETE", "/v1/messages", &[], "");
    assert_eq!(
        (method.status, &method.json()["type"]),
        (405, &json!("error"))
    );
}

/// The fields of chat completions that carry what is asked have other names here.
#[test]
fn wrong_fields_have_the_names_of_the_format() {
    let server = Server::start(|_| ());
    let messages = json!([{"role": "user", "content": "Hi"}]);
    for (path, fields, name) in [
        ("/v1/messages", json!({"max_tokens": 0}), "`max_tokens`"),
        (
            "/v1/messages",
            json!({"stop_sequences": [""]}),
            "`stop_sequences`",
        ),
        ("/v1/messages", json!({"mcp_servers": []}), "`mcp_servers`"),
        (
            "/v1/messages",
            json!({"tools": [{"name": "f", "allowed_callers": ["code"]}]}),
            "`tools[0].allowed_callers[0]`",
        ),
        (
            "/v1/messages",
            json!({"thinking": {"type": "enabled", "display": "omitted"}}),
            "`thinking.display`",
        ),
        (
            "/v1/messages",
            json!({"output_config": {"format": {"type": 1}}}),
            "`output_config.format.type`",
        ),
        (
            "/api/chat",
            json!({"options": {"num_predict": 0}}),
            "`options.num_predict`",
        ),
        (
            "/api/chat",
            json!({"options": {"repeat_penalty": 0}}),
            "`options.repeat_penalty`",
        ),
        ("/api/chat", json!({"think": "immensely"}), "`think`"),
        (
            "/api/chat",
            json!({"messages": [{"role": "user", "content": "Hi", "thinking": "Hm."}]}),
            "`messages[0].thinking`",
        ),
        (
            "/api/chat",
            json!({"messages": [{"role": "user", "content": "Hi", "name": "ada"}]}),
            "`messages[0].name`",
        ),
        ("/api/chat", json!({"top_logprobs": 3}), "`top_logprobs`"),
    ] {
        let mut body = json!({"model": MODEL, "messages": messages});
        for (field, value) in fields.as_object().unwrap() {
            body[field] = value.clone();
        }
        let reply = post(&server, path, &body);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
        assert!(reply.text.contains(name), "{fields}: {}", reply.text);
    }
    let empty = post(&server, "/api/embeddings", &json!({"prompt": ""}));
    assert!(empty.text.contains("`prompt`"), "{}", empty.text);
    let lenient = Server::start(|state| state.unknown_fields = UnknownFields::Ignore);
    let body = json!({"model": MODEL, "messages": messages, "mcp_servers": [],
        "thinking": {"type": "disabled", "brief": true}});
    let reply = post(&lenient, "/v1/messages", &body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let ignored = "mcp_servers, thinking.brief";
    assert_eq!(reply.header("x-realign-ignored-fields"), ignored);
}

#[test]
fn anthropics_answers_say_what_ended_them_and_count_from_the_start() {
    let server = Server::start(|_| ());
    server.script([Script::Say(&["One"]), Script::Say(&["One"])]);
    let mut body = json!({"model": MODEL, "max_tokens": 9, "stop_sequences": ["\n\nHuman:"],
        "messages": [{"role": "user", "content": "Hi"}]});
    let answer = post(&server, "/v1/messages", &body).json();
    let ended = |of: &Value| (of["stop_reason"].clone(), of["stop_sequence"].clone());
    let by_sequence = (json!("stop_sequence"), json!("\n\nHuman:"));
    assert_eq!(ended(&answer), by_sequence);
    body["stream"] = true.into();
    let events = data(&post(&server, "/v1/messages", &body));
    let length = server
        .engine
        .requests
        .lock()
        .unwrap()
        .last()
        .unwrap()
        .prompt
        .len();
    let start = &events[0];
    assert_eq!(start["type"], "message_start");
    assert_eq!(start["message"]["usage"]["input_tokens"], length);
    let end = &events[events.len() - 2];
    assert_eq!(ended(&end["delta"]), by_sequence);
    let usage = &end["usage"];
    let counted = ["input_tokens", "cache_read_input_tokens"].map(|name| usage[name].as_u64());
    assert_eq!(
        counted.iter().flatten().sum::<u64>(),
        length as u64,
        "{usage}"
    );
}

#[test]
fn anthropics_messages_are_answered_whole_and_streamed() {
    let server = Server::start(|_| ());
    let mut body = json!({"model": super::MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]});
    let reply = post(&server, "/v1/messages", &body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(!reply.header("x-realign-generation").is_empty());
    let answer = reply.json();
    assert_eq!(
        answer["content"],
        json!([{"type": "text", "text": "Hello world!"}])
    );
    assert_eq!(
        (&answer["type"], &answer["stop_reason"]),
        (&json!("message"), &json!("end_turn"))
    );
    assert!(answer["usage"]["output_tokens"].as_u64() >= Some(1));
    body["stream"] = true.into();
    let streamed = post(&server, "/v1/messages", &body);
    assert_eq!(streamed.header("content-type"), "text/event-stream");
    let data = streamed
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    let events = data.map(|data| serde_json::from_str::<Value>(data).unwrap());
    let text: String = events
        .filter_map(|event| event["delta"]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text, "Hello world!");
    assert!(
        streamed.text.contains("event: message_stop"),
        "{}",
        streamed.text
    );
    let counted = post(&server, "/v1/messages/count_tokens", &body).json();
    assert!(counted["input_tokens"].as_u64() > Some(0), "{counted}");
    let wrong = post(
        &server,
        "/v1/messages",
        &json!({"messages": [], "mcp_servers": []}),
    );
    assert_eq!(
        (wrong.status, wrong.json()["error"]["type"].clone()),
        (400, json!("invalid_request_error"))
    );
    assert!(wrong.text.contains("mcp_servers"), "{}", wrong.text);
}

/// As with Anthropic and Ollama, and unlike OpenAI's API.
#[test]
fn an_answer_that_the_client_began_is_continued() {
    let server = Server::start(|_| ());
    let prompt = |server: &Server| {
        let requests = server.engine.requests.lock().unwrap();
        let prompt = &requests.last().unwrap().prompt;
        server.state.tokenizer.decode(prompt).unwrap()
    };
    let begun =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]);
    let blocks = json!([{"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "Well, "}]}]);
    for (route, messages, continues) in [
        ("/v1/messages", &begun, true),
        ("/v1/messages", &blocks, true),
        ("/api/chat", &begun, true),
        ("/v1/chat/completions", &begun, false),
    ] {
        let body = json!({"model": MODEL, "messages": messages, "stream": false});
        let reply = post(&server, route, &body);
        assert_eq!(reply.status, 200, "{route}: {}", reply.text);
        assert_eq!(prompt(&server).ends_with("Well, "), continues, "{route}");
    }
}

#[test]
fn ollamas_chat_is_answered_in_lines_and_whole() {
    let server = Server::start(|_| ());
    let body = json!({"model": format!("{}:latest", super::MODEL), "messages": [{"role": "user", "content": "Hi"}]});
    let reply = post(&server, "/api/chat", &body);
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "application/x-ndjson"),
        "{}",
        reply.text
    );
    let lines: Vec<Value> = reply
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let text: String = lines
        .iter()
        .filter_map(|line| line["message"]["content"].as_str())
        .collect();
    assert_eq!(text, "Hello world!");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["done"], &last["done_reason"]),
        (&json!(true), &json!("stop"))
    );
    let whole = json!({"prompt": "Hi", "stream": false});
    let whole = post(&server, "/api/generate", &whole).json();
    assert_eq!(
        (&whole["response"], &whole["done"]),
        (&json!("Hello world!"), &json!(true))
    );
    let before = server.engine.requests.lock().unwrap().len();
    for (path, body, text) in [
        ("/api/generate", json!({"keep_alive": "5m"}), "/response"),
        ("/api/generate", json!({"prompt": ""}), "/response"),
        ("/api/chat", json!({"messages": []}), "/message/content"),
    ] {
        let loaded = post(&server, path, &body);
        assert_eq!(loaded.status, 200, "{}", loaded.text);
        let loaded = loaded.json();
        assert_eq!(loaded["done_reason"], "load", "{loaded}");
        assert_eq!(
            (&loaded["model"], loaded.pointer(text)),
            (&json!(MODEL), Some(&json!("")))
        );
    }
    let none = post(&server, "/api/generate", &json!({"model": "none"}));
    assert_eq!(none.status, 404, "{}", none.text);
    let after = server.engine.requests.lock().unwrap().len();
    assert_eq!(before, after, "nothing is generated");
    let tags = send(&server, "GET", "/api/tags", &[], "").json();
    assert_eq!(tags["models"][0]["name"], super::MODEL);
    let show = post(&server, "/api/show", &json!({"model": super::MODEL}));
    assert_eq!(show.status, 200, "{}", show.text);
    let wrong = post(
        &server,
        "/api/generate",
        &json!({"prompt": "Hi", "raw": true}),
    );
    assert_eq!(wrong.status, 400);
    assert!(
        wrong.json()["error"].as_str().unwrap().contains("raw"),
        "{}",
        wrong.text
    );
}
