//! Conversations as clients send them back, odd ones included.

use serde_json::{Value, json};

use super::fake::{MODEL, Script, Server};
use super::{Reply, chat, post};

fn assistant(arguments: &str) -> Value {
    json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "save", "arguments": arguments}},
    ]})
}

/// The prompt that the engine got last.
fn prompt(server: &Server) -> String {
    let requests = server.engine.requests.lock().unwrap();
    let prompt = &requests.last().unwrap().prompt;
    server.state.tokenizer.decode(prompt).unwrap()
}

fn accepted(server: &Server, messages: &Value) -> Reply {
    let reply = chat(server, &json!({"messages": messages}));
    assert_eq!(reply.status, 200, "{messages}: {}", reply.text);
    reply
}

#[test]
fn any_text_is_taken_for_arguments() {
    let server = Server::start(|_| ());
    for (arguments, shown) in [
        (
            "{\"text\": \"milk, ",
            r#""arguments":"{\"text\": \"milk, ""#,
        ),
        ("", r#""arguments":{}"#),
        ("5", r#""arguments":"5""#),
        ("null", r#""arguments":"null""#),
        ("[1]", r#""arguments":"[1]""#),
        ("{\"a\": \"b\nc\"}", r#""arguments":"{\"a\": \"b\nc\"}""#),
        ("{\"a\": 1}", r#""arguments":{"a":1}"#),
    ] {
        let user = json!({"role": "user", "content": "Save it."});
        let result = json!({"role": "tool", "tool_call_id": "c1", "content": "done"});
        accepted(&server, &json!([user, assistant(arguments), result]));
        let prompt = prompt(&server);
        assert!(prompt.contains(shown), "{shown} is not in {prompt}");

        let call = json!({"type": "function_call", "call_id": "c1", "name": "save",
            "arguments": arguments, "status": "incomplete", "id": "fc_1"});
        let output = json!({"type": "function_call_output", "call_id": "c1", "output": "done"});
        let input = json!({"model": MODEL, "input": [user, call, output]});
        let reply = post(&server, "/v1/responses", &input);
        assert_eq!(reply.status, 200, "{arguments}: {}", reply.text);
        assert!(self::prompt(&server).contains(shown), "{shown}");
    }
}

#[test]
fn a_cut_answer_of_the_server_is_taken_back() {
    const CUT: Script = Script::Cut(&[
        "<tool_call>\n{\"name\": \"save\", \"argum",
        "ents\": {\"path\": \"poem.txt\",",
    ]);
    const AT_ONCE: Script = Script::Cut(&["<tool_call>\n{\"na"]);
    let server = Server::start(|_| ());
    let tools = json!([{"type": "function", "function": {"name": "save"}}]);
    let user = json!({"role": "user", "content": "Save it."});
    for script in [CUT, AT_ONCE] {
        server.script([script]);
        let fields = json!({"messages": [user], "tools": tools});
        let answer = chat(&server, &fields).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "length");
        let content = choice["message"]["content"].as_str().unwrap_or("");
        assert_eq!(content, "", "no part of a call is text");
        accepted(&server, &json!([user, choice["message"], user]));
    }
    server.script([CUT]);
    let tools = json!([{"type": "function", "name": "save"}]);
    let fields = json!({"input": "Save it.", "tools": tools});
    let answer = post(&server, "/v1/responses", &fields).json();
    assert_eq!(answer["output"][0]["arguments"], "{\"path\": \"poem.txt\",");
    let mut input = vec![json!({"role": "user", "content": "Save it."})];
    input.extend(answer["output"].as_array().unwrap().clone());
    input.push(json!({"role": "user", "content": "Go on."}));
    let reply = post(&server, "/v1/responses", &json!({"input": input}));
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[test]
fn absent_contents_and_ids_are_taken() {
    let server = Server::start(|_| ());
    let user = json!({"role": "user", "content": "a"});
    for messages in [
        json!([user, {"role": "assistant", "content": null}, user]),
        json!([user, {"role": "assistant"}, user]),
        json!([user, {"role": "assistant", "content": [], "tool_calls": []}, user]),
        json!([user, assistant("{}"), {"role": "tool", "tool_call_id": "c1", "content": null}]),
        json!([user, assistant("{}"), {"role": "tool", "tool_call_id": "c1"}]),
        json!([user, assistant("{}"), {"role": "tool", "content": []}]),
        json!([user, assistant("{}"),
            {"role": "tool", "tool_call_id": "x", "content": "1"},
            {"role": "tool", "tool_call_id": "x", "content": "2"}]),
        json!([{"role": "user", "content": []}]),
        json!([user, {"role": "assistant", "content": "x", "refusal": null, "annotations": [],
            "audio": null, "function_call": null, "tool_calls": null}, user]),
    ] {
        accepted(&server, &messages);
    }
    for (message, param) in [
        (
            json!({"role": "user", "content": null}),
            "messages[0].content",
        ),
        (
            json!({"role": "assistant", "audio": {"id": "a"}}),
            "messages[0].audio",
        ),
        (
            json!({"role": "user", "content": "x", "images": ["AAAA"]}),
            "messages[0].images",
        ),
    ] {
        let reply = chat(&server, &json!({"messages": [message]}));
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text);
    }
}

#[test]
fn older_calls_and_refusals_keep_their_meaning() {
    let server = Server::start(|_| ());
    let call = json!({"name": "save", "arguments": "{\"a\": 1}"});
    accepted(
        &server,
        &json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": null, "function_call": call},
            {"role": "function", "name": "save", "content": "saved it"},
            {"role": "assistant", "content": null, "refusal": "I will not."},
            {"role": "user", "content": "b"},
        ]),
    );
    let prompt = prompt(&server);
    for part in [
        r#""name":"save","arguments":{"a":1}"#,
        "saved it",
        "I will not.",
    ] {
        assert!(prompt.contains(part), "{part} is not in {prompt}");
    }
}

#[test]
fn the_model_may_be_omitted() {
    let server = Server::start(|_| ());
    let messages = json!([{"role": "user", "content": "Hi"}]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/completions", json!({"prompt": "Hi"})),
        ("/v1/responses", json!({"input": "Hi", "model": null})),
    ] {
        let reply = post(&server, path, &body);
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        assert_eq!(reply.json()["model"], MODEL, "{path}");
    }
}

#[test]
fn names_of_mcp_tools_are_taken() {
    let server = Server::start(|_| ());
    let tool = |name: &str| json!({"tools": [{"type": "function", "function": {"name": name}}]});
    for name in [
        "mail.send",
        "github/create_issue",
        "mcp:files:read",
        "a-b_c",
    ] {
        assert_eq!(chat(&server, &tool(name)).status, 200, "{name}");
    }
    for name in ["a b", "", "a\"b", &"x".repeat(65)] {
        assert_eq!(chat(&server, &tool(name)).status, 400, "{name}");
    }
}
