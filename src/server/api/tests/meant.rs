//! What a request means is done, or refused by name: empty values that ask for something, fields in the
//! address, blocks in the wrong message; and errors say what to send.

use serde_json::{Value, json};

use super::fake::{MODEL, Script, Server};
use super::{chat, complete, get, post, send};

#[test]
fn an_empty_value_that_asks_for_something_is_refused() {
    let server = Server::start(|_| ());
    for (fields, param) in [
        // A search with the usual settings.
        (json!({"web_search_options": {}}), "web_search_options"),
        // Adapters off, and no sampler at all.
        (json!({"lora": []}), "lora"),
        (json!({"samplers": []}), "samplers"),
        (
            json!({"penalize_nl": false, "repetition_penalty": 1.1}),
            "penalize_nl",
        ),
        (
            json!({"penalize_nl": false, "presence_penalty": 1}),
            "penalize_nl",
        ),
    ] {
        let reply = chat(&server, &fields);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text);
    }
    for fields in [
        json!({"web_search_options": null, "lora": null, "samplers": null}),
        json!({"penalize_nl": true, "repetition_penalty": 1.1}),
        json!({"penalize_nl": false}),
        json!({"penalize_nl": false, "repetition_penalty": 1.1, "repeat_last_n": 0}),
    ] {
        let reply = chat(&server, &fields);
        assert_eq!(reply.status, 200, "{fields}: {}", reply.text);
    }
}

#[test]
fn fields_in_the_address_are_not_passed_over() {
    let server = Server::start(|_| ());
    let messages = json!([{"role": "user", "content": "Hi"}]);
    for (path, body, field) in [
        (
            "/v1/chat/completions",
            json!({"messages": messages}),
            "temperature=0",
        ),
        ("/v1/completions", json!({"prompt": "Hi"}), "max_tokens=3"),
        ("/v1/responses", json!({"input": "Hi"}), "instructions=x"),
        ("/v1/embeddings", json!({"input": "Hi"}), "model=other"),
        ("/v1/messages", json!({"messages": messages}), "system=x"),
        (
            "/api/chat",
            json!({"messages": messages, "stream": false}),
            "format=json",
        ),
        ("/tokenize", json!({"prompt": "Hi"}), "parse_special=true"),
    ] {
        let name = field.split('=').next().unwrap();
        let misplaced = post(&server, &format!("{path}?beta=true&{field}"), &body);
        assert_eq!(misplaced.status, 400, "{path}: {}", misplaced.text);
        let says = format!("`{name}` is in the address");
        assert!(misplaced.text.contains(&says), "{path}: {}", misplaced.text);
        // What clients and gateways add is no field.
        let added = format!("{path}?beta=true&api-version=2024-10-21&key");
        assert_eq!(post(&server, &added, &body).status, 200, "{path}");
    }
}

#[test]
fn a_name_that_is_not_utf_8_has_an_error_of_the_usual_form() {
    let server = Server::start(|_| ());
    for (method, path) in [
        ("GET", "/v1/models/%ff"),
        ("GET", "/admin/v1/realignments/%ff"),
        ("POST", "/admin/v1/realignments/%ff/cancel"),
        ("GET", "/admin/v1/realignments/%ff/events"),
    ] {
        let reply = send(&server, method, path, &[], "");
        assert_eq!(reply.status, 404, "{path}: {}", reply.text);
        assert!(reply.json()["error"]["message"].is_string(), "{path}");
    }
    assert_eq!(get(&server, &format!("/v1/models/{MODEL}")).status, 200);
}

#[test]
fn blocks_are_in_messages_of_their_role() {
    let server = Server::start(|_| ());
    let ask = |role: &str, block: Value| {
        let text = json!({"type": "text", "text": "Hi"});
        let body = json!({"max_tokens": 4, "messages": [
            {"role": "user", "content": "Hi"}, {"role": role, "content": [text, block]},
            {"role": "user", "content": "So?"}]});
        post(&server, "/v1/messages", &body)
    };
    let result = json!({"type": "tool_result", "tool_use_id": "c", "content": "1"});
    let call = json!({"type": "tool_use", "id": "c", "name": "f", "input": {}});
    let thought = json!({"type": "thinking", "thinking": "Hm.", "signature": ""});
    let hidden = json!({"type": "redacted_thinking", "data": "x"});
    for (of, other, block) in [
        ("user", "assistant", &result),
        ("assistant", "user", &call),
        ("assistant", "user", &thought),
        ("assistant", "user", &hidden),
    ] {
        let fine = ask(of, block.clone());
        assert_eq!(fine.status, 200, "{block}: {}", fine.text);
        let odd = ask(other, block.clone());
        assert_eq!(odd.status, 400, "{block}: {}", odd.text);
        assert!(
            odd.text.contains("`messages[1].content[1].type` is"),
            "{}",
            odd.text
        );
    }
}

#[test]
fn minus_one_sets_no_limit_as_with_llama_cpp() {
    let server = Server::start(|_| ());
    for fields in [
        json!({"max_tokens": -1}),
        json!({"max_tokens": -1.0, "max_completion_tokens": null}),
    ] {
        assert_eq!(chat(&server, &fields).status, 200, "{fields}");
    }
    let limits: Vec<usize> = {
        let requests = server.engine.requests.lock().unwrap();
        let limit =
            |request: &realign_engine::request::GenerateRequest| request.sampling.max_tokens;
        requests.iter().map(limit).collect()
    };
    assert!(limits.iter().all(|limit| *limit > 1000), "{limits:?}");
    for odd in [0, -2] {
        let reply = chat(&server, &json!({"max_tokens": odd}));
        assert_eq!(reply.status, 400, "{odd}");
        assert_eq!(reply.json()["error"]["param"], "max_tokens");
    }
}

#[test]
fn an_older_name_of_a_results_function_is_read() {
    let server = Server::start(|_| ());
    let ask = |result: Value| {
        let body = json!({"stream": false, "messages": [{"role": "user", "content": "Hi"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, result]});
        post(&server, "/api/chat", &body)
    };
    for fine in [
        json!({"role": "tool", "content": "1", "name": "f"}),
        json!({"role": "tool", "content": "1", "name": "f", "tool_name": "f"}),
    ] {
        let reply = ask(fine);
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    let two = ask(json!({"role": "tool", "content": "1", "name": "f", "tool_name": "g"}));
    assert_eq!(two.status, 400, "{}", two.text);
    assert!(two.text.contains("`messages[2].name`"), "{}", two.text);
}

#[test]
fn errors_name_what_is_wrong_in_plain_words() {
    let server = Server::start(|_| ());
    for (fields, words) in [
        (json!({"logit_bias": {"5": 1, "hello": 2}}), "`hello: 2`"),
        (json!({"logit_bias": {"5": -1000}}), "`5: -1000`"),
        (
            json!({"seed": 36893488147419103232.0}),
            "allowed: -9223372036854775808 to",
        ),
        (
            json!({"reasoning": {"effort": "low"}}),
            "did you mean `reasoning_effort`",
        ),
    ] {
        let reply = chat(&server, &fields);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
        assert!(reply.text.contains(words), "{fields}: {}", reply.text);
    }
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4});
    for (field, value, words) in [
        (
            "thinking",
            json!({"type": "enabled", "budget_tokens": -1}),
            "allowed: an integer, 0 or more",
        ),
        ("stop_sequences", json!("x"), "must be an array"),
    ] {
        let mut body = body.clone();
        body[field] = value;
        let reply = post(&server, "/v1/messages", &body);
        assert!(reply.text.contains(words), "{field}: {}", reply.text);
    }
    let body = json!({"input": "Hi", "response_format": {"type": "json_object"}});
    let reply = post(&server, "/v1/responses", &body);
    assert!(
        reply.text.contains("did you mean `text.format`"),
        "{}",
        reply.text
    );
    for (body, words) in [
        ("model=m&prompt=x", "looks like a form"),
        ("--x\r\n\r\n", "looks like a form"),
        ("{\0\"\0m\0\"\0", "looks like UTF-16"),
        ("\u{1f}x", "not valid JSON"),
    ] {
        let reply = send(&server, "POST", "/v1/completions", &[], body);
        assert_eq!(reply.status, 400, "{body:?}");
        assert!(reply.text.contains(words), "{body:?}: {}", reply.text);
    }
}

/// A constraint that fails while the answer is generated has the name that the client gave it.
#[test]
fn a_constraint_that_fails_late_is_named_as_it_was_sent() {
    let server = Server::start(|_| ());
    let schema = json!({"type": "object"});
    for (fields, param) in [
        (json!({"guided_regex": "a+"}), "guided_regex"),
        (
            json!({"structured_outputs": {"choice": ["a"]}}),
            "structured_outputs.choice",
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
        ),
    ] {
        server.script([Script::Entangled(&["a"]), Script::Entangled(&["a"])]);
        for reply in [chat(&server, &fields), complete(&server, &fields)] {
            assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
            assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text);
        }
    }
    server.script([Script::Entangled(&["a"])]);
    let format = json!({"type": "json_schema", "name": "a", "schema": schema});
    let body = json!({"input": "Hi", "text": {"format": format}});
    let reply = post(&server, "/v1/responses", &body);
    assert_eq!(
        reply.json()["error"]["param"],
        "text.format",
        "{}",
        reply.text
    );
    let endless = chat(&server, &json!({"grammar": "root ::= root"}));
    assert_eq!(endless.status, 400, "{}", endless.text);
    assert!(
        endless.text.contains("no text satisfies it"),
        "{}",
        endless.text
    );
}

/// Editors compare the version with the lowest one that they work with (0.6.4), and show `general.basename`.
#[test]
fn ollamas_clients_find_a_version_that_is_high_enough_and_a_name() {
    let server = Server::start(|_| ());
    let told = get(&server, "/api/version").json();
    let version: Vec<u32> = {
        let parts = told["version"].as_str().unwrap().split('.');
        parts.map(|part| part.parse().unwrap()).collect()
    };
    assert!(version >= vec![0, 6, 4], "{told}");
    assert_eq!(told["realign"], env!("CARGO_PKG_VERSION"));
    let shown = post(&server, "/api/show", &json!({"model": MODEL})).json();
    assert_eq!(shown["model_info"]["general.basename"], MODEL, "{shown}");
}
