//! Fields that other servers have: followed, without effect, or refused by name.

use serde_json::{Value, json};

use super::fake::Server;
use super::{chat, complete, post};
use crate::api::params::others::{FIELDS, Passes};
use crate::config::UnknownFields;
use realign_engine::request::SamplingParams;

fn object() -> Value {
    json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
}

fn last(server: &Server) -> SamplingParams {
    let requests = server.engine.requests.lock().unwrap();
    requests.last().unwrap().sampling.clone()
}

#[test]
fn every_form_of_constraint_reaches_the_engine() {
    let server = Server::start(|_| ());
    let gbnf = "root ::= \"yes\" | \"no\"";
    let cases = [
        json!({"guided_json": object()}),
        json!({"guided_json": object().to_string()}),
        json!({"guided_regex": "^[a-z]+/\\d{2}$"}),
        json!({"guided_choice": ["yes", "no"]}),
        json!({"guided_grammar": gbnf}),
        json!({"guided_grammar": "start: \"yes\" | \"no\""}),
        json!({"structured_outputs": {"json": object()}}),
        json!({"structured_outputs": {"regex": "a|b"}}),
        json!({"structured_outputs": {"choice": ["a"]}}),
        json!({"structured_outputs": {"grammar": gbnf}}),
        json!({"structured_outputs": {"json_object": true}}),
        json!({"grammar": gbnf}),
        json!({"json_schema": object()}),
        json!({"regex": "[0-9]+"}),
        json!({"response_format": {"type": "json_object", "schema": object()}}),
        json!({"response_format": {"type": "json", "value": object()}}),
        json!({"response_format": {"type": "regex", "value": "a+"}}),
        json!({"response_format": {"type": "regex", "regex": "a+"}}),
        json!({"response_format": {"type": "grammar", "grammar": gbnf}}),
    ];
    for fields in cases {
        for reply in [chat(&server, &fields), complete(&server, &fields)] {
            assert_eq!(reply.status, 200, "{fields}: {}", reply.text);
            assert!(last(&server).grammar.is_some(), "{fields}");
        }
    }
    for fields in [
        json!({"grammar": ""}),
        json!({"structured_outputs": {}}),
        json!({"guided_json": null}),
    ] {
        assert_eq!(chat(&server, &fields).status, 200, "{fields}");
        assert!(last(&server).grammar.is_none(), "{fields}");
    }
}

#[test]
fn constraints_that_cannot_be_followed_are_named() {
    let server = Server::start(|_| ());
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let cases = [
        (json!({"guided_regex": "("}), "guided_regex"),
        (json!({"guided_regex": "(?=a)b"}), "guided_regex"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_json": "no schema"}), "guided_json"),
        (
            json!({"guided_grammar": "root ::= <think>"}),
            "guided_grammar",
        ),
        (json!({"grammar": "root ::= a"}), "grammar"),
        (
            json!({"structured_outputs": {"structural_tag": {"a": 1}}}),
            "structured_outputs.structural_tag",
        ),
        (
            json!({"structured_outputs": {"json": 5}}),
            "structured_outputs.json",
        ),
        (
            json!({"structured_outputs": {"json": object(), "regex": "a"}}),
            "structured_outputs.regex",
        ),
        (
            json!({"guided_regex": "a", "guided_choice": ["a"]}),
            "guided_choice",
        ),
        (
            json!({"grammar": "root ::= \"a\"", "json_schema": object()}),
            "grammar",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "guided_json": object()}),
            "guided_json",
        ),
        (
            json!({"response_format": {"type": "regex"}}),
            "response_format.regex",
        ),
        (
            json!({"tools": tools, "tool_choice": "required", "guided_choice": ["a"]}),
            "guided_choice",
        ),
        (
            json!({"tools": tools, "grammar": "root ::= \"a\""}),
            "grammar",
        ),
    ];
    for (fields, param) in cases {
        let reply = chat(&server, &fields);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
        assert_eq!(
            reply.json()["error"]["param"],
            param,
            "{fields}: {}",
            reply.text
        );
    }
    let none = json!({"tools": tools, "tool_choice": "none", "grammar": "root ::= \"a\""});
    assert_eq!(chat(&server, &none).status, 200);
    let auto = json!({"tools": tools, "guided_choice": ["a"]});
    assert_eq!(chat(&server, &auto).status, 200);
    assert_eq!(server.engine.requests.lock().unwrap().len(), 2);
}

#[test]
fn sampling_fields_reach_the_engine() {
    let server = Server::start(|_| ());
    let fields = json!({
        "min_tokens": 2, "max_tokens": 5, "stop_token_ids": [7], "repetition_penalty": 1.5,
        "include_stop_str_in_output": true, "skip_special_tokens": false, "bad_words": ["xyz"],
        "truncate_prompt_tokens": 3,
    });
    for reply in [
        chat(&server, &fields),
        complete(&server, &json!({"prompt": [5, 6, 7, 8]})),
    ] {
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    let requests = server.engine.requests.lock().unwrap();
    let sampling = &requests[0].sampling;
    assert_eq!(
        (sampling.min_tokens, &sampling.stop_token_ids),
        (2, &vec![7])
    );
    assert!(sampling.include_stop && sampling.show_control && sampling.bad_words.is_some());
    assert_eq!(sampling.repetition_penalty, 1.5);
    assert_eq!([requests[0].prompt.len(), requests[1].prompt.len()], [3, 4]);
    drop(requests);
    for (fields, param) in [
        (json!({"min_tokens": 6, "max_tokens": 5}), "min_tokens"),
        (json!({"stop_token_ids": [9_999_999]}), "stop_token_ids"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"bad_words": [""]}), "bad_words"),
        (
            json!({"truncate_prompt_tokens": 0}),
            "truncate_prompt_tokens",
        ),
        (
            json!({"truncate_prompt_tokens": -2}),
            "truncate_prompt_tokens",
        ),
    ] {
        let reply = chat(&server, &fields);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
        assert_eq!(reply.json()["error"]["param"], param, "{fields}");
    }
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let server = Server::start(|_| ());
    for (name, passes, _) in FIELDS {
        let asks = chat(&server, &json!({*name: "surely something"}));
        if *passes == Passes::All {
            assert_eq!(asks.status, 200, "{name}: {}", asks.text);
            continue;
        }
        let error = &asks.json()["error"];
        assert_eq!(
            [&error["param"], &error["code"]],
            [*name, "unsupported_parameter"]
        );
        let usual = json!(*passes == Passes::True);
        for nothing in [json!(null), usual] {
            assert_eq!(
                chat(&server, &json!({*name: nothing})).status,
                200,
                "{name}"
            );
        }
    }
    for (fields, status) in [
        (
            json!({"length_penalty": 1.0, "repeat_penalty": 1, "typical_p": 1}),
            200,
        ),
        (json!({"length_penalty": 1.2}), 400),
        (json!({"store": true}), 400),
        (json!({"store": false, "verbosity": "medium"}), 200),
        (json!({"temprature": 0}), 400),
    ] {
        let reply = chat(&server, &fields);
        assert_eq!(reply.status, status, "{fields}: {}", reply.text);
    }
    let unknown = post(
        &server,
        "/v1/responses",
        &json!({"input": "a", "guided_json": {}}),
    );
    assert_eq!(unknown.json()["error"]["param"], "guided_json");
}

#[test]
fn an_operator_can_have_unknown_fields_ignored() {
    let server = Server::start(|state| state.unknown_fields = UnknownFields::Ignore);
    let reply = chat(&server, &json!({"temprature": 0, "foo": [1], "bar": null}));
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.header("x-realign-ignored-fields"), "temprature, foo");
    assert_eq!(
        chat(&server, &json!({})).header("x-realign-ignored-fields"),
        ""
    );
    let known = chat(&server, &json!({"use_beam_search": true}));
    assert_eq!(known.status, 400, "it is known, and not done");
}

#[test]
fn more_tokens_than_fit_are_lowered_or_refused_as_the_operator_wants() {
    let server = Server::start(|_| ());
    let reply = chat(&server, &json!({"max_tokens": 65_535}));
    assert_eq!(reply.status, 200, "{}", reply.text);
    let prompt = server.engine.requests.lock().unwrap()[0].prompt.len();
    assert_eq!(last(&server).max_tokens, 2048 - prompt);
    assert_eq!(
        reply.header("x-realign-max-tokens"),
        (2048 - prompt).to_string()
    );
    assert_eq!(
        chat(&server, &json!({"max_tokens": 9})).header("x-realign-max-tokens"),
        ""
    );
    let server = Server::start(|state| state.clamp_max_tokens = false);
    chat(&server, &json!({"max_tokens": 65_535}));
    assert_eq!(last(&server).max_tokens, 65_535, "the engine refuses it");
}

#[test]
fn control_tokens_of_a_prompt_are_text_unless_it_is_a_templates() {
    let server = Server::start(|_| ());
    let prompt = "<|im_start|>user\nhi<|im_end|>\n";
    let length = |fields: Value| {
        assert_eq!(complete(&server, &fields).status, 200);
        server
            .engine
            .requests
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .prompt
            .len()
    };
    let plain = length(json!({"prompt": prompt}));
    let parsed = length(json!({"prompt": prompt, "add_special_tokens": false}));
    assert!(parsed + 6 < plain, "{parsed} and {plain}");
    assert!(length(json!({"prompt": prompt, "add_special_tokens": true})) >= parsed);
}

#[test]
fn prompts_are_scored_with_and_without_an_answer() {
    let server = Server::start(|_| ());
    let ids = json!({"prompt": [5, 6, 7], "echo": true, "logprobs": 1, "max_tokens": 0});
    let answer = complete(&server, &ids).json();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -0.5]));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert!(
        server.engine.requests.lock().unwrap().is_empty(),
        "nothing is generated"
    );

    let both = json!({"prompt": [[5, 6], [7, 8, 9]], "echo": true, "logprobs": 1, "max_tokens": 2});
    let answer = complete(&server, &both).json();
    let count = |i: usize| {
        answer["choices"][i]["logprobs"]["tokens"]
            .as_array()
            .unwrap()
            .len()
    };
    assert!(count(0) > 2 && count(1) > 3, "{answer}");

    let alone = json!({"prompt": [5, 6], "prompt_logprobs": 1, "max_tokens": 0});
    let answer = complete(&server, &alone).json();
    let scored = &answer["choices"][0]["prompt_logprobs"];
    assert_eq!(
        (&scored[0], &scored[1]["6"]["rank"]),
        (&Value::Null, &json!(1))
    );
    for (fields, param) in [
        (json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
        (
            json!({"prompt": "a", "echo": true, "logprobs": 1, "stream": true}),
            "echo",
        ),
    ] {
        let reply = complete(&server, &fields);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text);
    }
}

/// The table of fields in the documentation has every field that is known.
#[test]
fn every_field_is_documented() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
    let page = std::fs::read_to_string(root).unwrap();
    for (name, _, _) in FIELDS {
        assert!(
            page.contains(&format!("`{name}`")),
            "docs/api.md has no `{name}`"
        );
    }
}
