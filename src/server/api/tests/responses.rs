//! `POST /v1/responses`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::ResponseStore;
use super::fake::{CURRENT, MODEL, Script, Server};
use super::{Reply, post};
use crate::config::ResponsesConfig;

fn respond(server: &Server, fields: &Value) -> Reply {
    let mut body = json!({"model": MODEL, "input": "Hi"});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    post(server, "/v1/responses", &body)
}

fn events(reply: &Reply) -> Vec<Value> {
    let event = |text: &str| {
        let (kind, data) = text.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(kind.strip_prefix("event: "), data["type"].as_str());
        data
    };
    reply.text.split_terminator("\n\n").map(event).collect()
}

const CALL: Script = Script::Say(&[
    "Let me look. <tool_call>\n{\"name\": \"f\", ",
    "\"arguments\": {\"a\": ",
    "1}}\n</tool_call>",
]);

fn function() -> Value {
    json!({"type": "function", "name": "f", "parameters":
        {"type": "object", "properties": {"a": {"type": "integer"}}}})
}

#[test]
fn a_response_is_whole() {
    let server = Server::start(|_| ());
    let fields = json!({"instructions": "Be brief.", "metadata": {"k": "v"}, "temperature": 0});
    let reply = respond(&server, &fields);
    let answer = reply.json();
    assert_eq!(reply.status, 200, "{answer}");
    assert_eq!(reply.header("x-realign-generation"), CURRENT);
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!(
        [&answer["object"], &answer["status"]],
        ["response", "completed"]
    );
    assert_eq!(answer["output"][0]["content"][0]["text"], "Hello world!");
    assert_eq!(answer["metadata"]["k"], "v");
    assert_eq!(answer["usage"]["output_tokens"], 3);
    let requests = server.engine.requests.lock().unwrap();
    let prompt = server.state.tokenizer.decode(&requests[0].prompt).unwrap();
    assert!(prompt.contains("system\nBe brief.") && prompt.contains("user\nHi"));
}

#[test]
fn events_build_the_same_response() {
    let server = Server::start(|_| ());
    server.script([CALL, CALL]);
    let whole = respond(&server, &json!({"tools": [function()]})).json();
    let streamed = events(&respond(
        &server,
        &json!({"tools": [function()], "stream": true}),
    ));
    let kinds: Vec<&str> = streamed
        .iter()
        .map(|e| e["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    for (i, event) in streamed.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    let last = &streamed.last().unwrap()["response"];
    assert_eq!(last["usage"], whole["usage"]);
    for output in [&last["output"], &whole["output"]] {
        assert_eq!(output[0]["content"][0]["text"], "Let me look.");
        assert_eq!(output[1]["name"], "f");
        assert_eq!(output[1]["arguments"], "{\"a\": 1}");
        assert_eq!(output.as_array().unwrap().len(), 2);
    }
}

#[test]
fn conversations_with_calls_are_understood() {
    let server = Server::start(|_| ());
    let input = json!([
        {"role": "developer", "content": "Rules."},
        {"role": "user", "content": [{"type": "input_text", "text": "Look"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "OK"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\"a\": 1}"},
        {"type": "function_call_output", "call_id": "c", "output": "found"},
        {"type": "reasoning", "summary": []},
    ]);
    let reply = respond(&server, &json!({"input": input, "instructions": "More."}));
    assert_eq!(reply.status, 200, "{}", reply.text);
    let requests = server.engine.requests.lock().unwrap();
    let prompt = server.state.tokenizer.decode(&requests[0].prompt).unwrap();
    for part in ["More.\n\nRules.", "OK\n<tool_call>", "found"] {
        assert!(prompt.contains(part), "{part} is not in {prompt}");
    }
}

#[test]
fn what_needs_state_is_refused() {
    let server = Server::start(|_| ());
    let cases = [
        (
            json!({"previous_response_id": "resp_1"}),
            "previous_response_id",
        ),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"input": []}), "input"),
        (
            json!({"input": [{"type": "item_reference", "id": "x"}]}),
            "input[0].type",
        ),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "a"}}}),
            "text.format.schema",
        ),
    ];
    for (fields, param) in cases {
        let reply = respond(&server, &fields);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
        assert_eq!(reply.json()["error"]["param"], param, "{fields}");
    }
    server.script([Script::Fail]);
    let failed = events(&respond(&server, &json!({"stream": true})));
    assert_eq!(failed.last().unwrap()["type"], "response.failed");
}

#[test]
fn log_probabilities_are_with_the_text() {
    let server = Server::start(|_| ());
    let answer = respond(&server, &json!({"top_logprobs": 2})).json();
    assert_eq!(answer["top_logprobs"], 2);
    let scored = &answer["output"][0]["content"][0]["logprobs"];
    let tokens: Vec<&str> = scored
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["token"].as_str().unwrap())
        .collect();
    assert_eq!(tokens, ["Hello", " world"]);
    assert_eq!(scored[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let included = json!({"include": ["message.output_text.logprobs"], "stream": true});
    let streamed = events(&respond(&server, &included));
    let of = |kind: &str| -> Vec<Value> {
        let events = streamed.iter().filter(|event| event["type"] == kind);
        events.cloned().collect()
    };
    let deltas = of("response.output_text.delta");
    assert_eq!(deltas[0]["logprobs"][0]["token"], "Hello");
    assert_eq!(deltas[0]["logprobs"][0]["logprob"], -0.5);
    let done = of("response.output_text.done");
    assert_eq!(done[0]["logprobs"].as_array().unwrap().len(), 2);
    let plain = respond(&server, &json!({})).json();
    assert_eq!(plain["output"][0]["content"][0]["logprobs"], json!([]));
}

#[test]
fn a_kept_response_is_continued() {
    let bounds = ResponsesConfig {
        max_entries: 2,
        max_bytes: 1 << 20,
    };
    let server = Server::start(|state| {
        state.responses = Some(Arc::new(ResponseStore::new(bounds)));
    });
    let prompt = |at: usize| {
        let requests = server.engine.requests.lock().unwrap();
        server.state.tokenizer.decode(&requests[at].prompt).unwrap()
    };
    server.script([CALL]);
    let first = respond(
        &server,
        &json!({"instructions": "Be a pirate.", "tools": [function()]}),
    )
    .json();
    assert_eq!(first["store"], true);
    let id = first["id"].as_str().unwrap();
    let call_id = &first["output"][1]["call_id"];
    let result =
        json!([{"type": "function_call_output", "call_id": call_id, "output": "found it"}]);
    // Streamed responses are kept as well.
    let second = events(&respond(
        &server,
        &json!({"previous_response_id": id, "input": result, "stream": true}),
    ));
    let second = &second.last().unwrap()["response"];
    assert_eq!(second["previous_response_id"], id);
    let text = prompt(1);
    for part in ["Hi", "Let me look.", "<tool_call>", "found it"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(
        !text.contains("pirate"),
        "instructions are not carried over"
    );
    let third = respond(
        &server,
        &json!({"previous_response_id": second["id"], "input": "And now?", "store": false}),
    )
    .json();
    assert!(prompt(2).contains("found it") && prompt(2).contains("Hello world!"));
    assert_eq!(third["store"], false);
    let unknown = respond(&server, &json!({"previous_response_id": third["id"]}));
    assert_eq!(unknown.status, 400, "{}", unknown.text);
    assert_eq!(unknown.json()["error"]["param"], "previous_response_id");
}

#[test]
fn the_setting_is_named_where_nothing_is_kept() {
    let server = Server::start(|_| ());
    let reply = respond(&server, &json!({"previous_response_id": "resp_1"}));
    assert!(reply.text.contains("responses.store"), "{}", reply.text);
    assert_eq!(respond(&server, &json!({})).json()["store"], false);
}

#[test]
fn schemas_need_no_name_and_empty_fields_ask_for_nothing() {
    let server = Server::start(|_| ());
    let schema = json!({"type": "object"});
    let format = json!({"text": {"format": {"type": "json_schema", "schema": schema}}});
    assert_eq!(respond(&server, &format).status, 200);
    let body = json!({"model": MODEL, "prompt": "Hi", "suffix": "", "best_of": 1});
    assert_eq!(post(&server, "/v1/completions", &body).status, 200);
}
