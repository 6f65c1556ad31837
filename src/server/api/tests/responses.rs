//! `POST /v1/responses`.

use serde_json::{Value, json};

use super::fake::{CURRENT, MODEL, Script, Server};
use super::{Reply, post};

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
