//! The exact texts of errors, which clients and their tests depend on.

use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::{chat, completions, responses, tokens};
use super::read;
use crate::config::UnknownFields;

fn error<T: serde::de::DeserializeOwned>(body: &Value) -> ApiError {
    match read::<T>(body) {
        Ok(_) => panic!("{body} was accepted"),
        Err(error) => error,
    }
}

fn check<T: serde::de::DeserializeOwned>(cases: &[(Value, &str)]) {
    let said = |body: &Value| error::<T>(body).to_string();
    let wrong: Vec<String> = cases
        .iter()
        .filter(|(body, expect)| said(body) != *expect)
        .map(|(body, expect)| format!("{body}: {}, not {expect}", said(body)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn with(base: Value, name: &str, value: Value) -> Value {
    let mut body = base;
    body[name] = value;
    body
}

fn chat_with(name: &str, value: Value) -> Value {
    let base = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    with(base, name, value)
}

#[test]
fn single_fields() {
    let of = chat_with;
    check::<chat::Body>(&[
        (
            json!([]),
            "the request body must be a JSON object, not an array",
        ),
        (json!({}), "the field `messages` is required"),
        (json!({"model": null}), "the field `messages` is required"),
        (json!({"model": "m"}), "the field `messages` is required"),
        (
            of("model", json!(5)),
            "`model` must be a string, not an integer",
        ),
        (
            of("stream", json!(1)),
            "`stream` must be a boolean, not an integer",
        ),
        (
            of("temperature", json!("hot")),
            "`temperature` must be a number, not a string",
        ),
        (
            of("temperature", json!(3)),
            "`temperature` is 3; allowed: 0 to 2",
        ),
        (
            of("temperature", json!(2.1)),
            "`temperature` is 2.1; allowed: 0 to 2",
        ),
        (
            of("frequency_penalty", json!(-1e300)),
            "`frequency_penalty` is -1e+300; allowed: -2 to 2",
        ),
        (
            of("seed", json!(1.5)),
            "`seed` must be an integer of 64 bits, not a number with a fraction",
        ),
        (
            of("seed", json!(u64::MAX)),
            "`seed` is 18446744073709551615; allowed: up to 9223372036854775807",
        ),
        (of("top_k", json!(-2)), "`top_k` is -2; allowed: -1 or more"),
        (of("n", json!(9)), "`n` is 9; allowed: 1 to 8"),
        (
            of("max_tokens", json!(0)),
            "`max_tokens` is 0; allowed: 1 or more, and -1 for no limit",
        ),
        (
            of("stop", json!(5)),
            "`stop` must be a string or an array of up to 32 strings, not an integer",
        ),
        (
            of("stop", json!(["a", null])),
            "`stop` must be a string or an array of up to 32 strings",
        ),
        (
            of("stop", json!(vec!["a"; 33])),
            "`stop` has 33 strings; allowed: up to 32",
        ),
        (
            of("stop", json!("")),
            "each string of `stop` must have 1 to 1024 bytes",
        ),
        (
            of("logit_bias", json!([])),
            "`logit_bias` must be an object of token ids and numbers from -100 to 100, not an array",
        ),
        (
            of("logit_bias", json!({"1": 101})),
            "`logit_bias` must be an object of token ids and numbers from -100 to 100; it has `1: 101`",
        ),
        (
            of("stream_options", json!([])),
            "`stream_options` must be an object, not an array",
        ),
        (
            of("stream_options", json!({"include_usage": "yes"})),
            "`stream_options.include_usage` must be a boolean, not a string",
        ),
        (
            of("modalities", json!(["audio"])),
            "`modalities` other than [\"text\"] is not supported by this server",
        ),
        (
            of("functions", json!([1])),
            "`functions` is not supported by this server",
        ),
    ]);
    assert!(read::<chat::Body>(&chat_with("functions", json!([]))).is_ok());
    assert!(read::<chat::Body>(&chat_with("function_call", json!("none"))).is_ok());
    assert!(read::<chat::Body>(&chat_with("user", json!(["any"]))).is_ok());
}

#[test]
fn messages_of_a_conversation() {
    let of = |message: Value| json!({"model": "m", "messages": [message]});
    let part = |part: Value| of(json!({"role": "user", "content": [part]}));
    let call =
        |function: Value| of(json!({"role": "assistant", "tool_calls": [{"function": function}]}));
    check::<chat::Body>(&[
        (
            json!({"model": "m", "messages": "x"}),
            "`messages` must be an array of messages, not a string",
        ),
        (of(Value::Null), "`messages[0]` must be an object, not null"),
        (of(json!({})), "the field `messages[0].role` is required"),
        (
            of(json!({"role": 5})),
            "`messages[0].role` must be a string, not an integer",
        ),
        (
            of(json!({"role": "robot"})),
            "`messages[0].role` is \"robot\"; allowed: `system`, `developer`, `user`, \
             `assistant`, `tool`, `function`",
        ),
        (
            of(json!({"role": "user"})),
            "the field `messages[0].content` is required",
        ),
        (
            of(json!({"role": "user", "content": 5})),
            "`messages[0].content` must be a string or an array of text parts, not an integer",
        ),
        (
            of(json!({"role": "user", "content": "x", "audio": {"id": 1}})),
            "`messages[0].audio` is not supported by this server",
        ),
        (
            part(json!("x")),
            "`messages[0].content[0]` must be an object, not a string",
        ),
        (
            part(json!({"type": "image_url"})),
            "`messages[0].content[0].type` other than text is not supported by this server",
        ),
        (
            part(json!({"type": "text"})),
            "the field `messages[0].content[0].text` is required",
        ),
        (
            of(json!({"role": "assistant", "tool_calls": {}})),
            "`messages[0].tool_calls` must be an array of calls, not an object",
        ),
        (
            call(json!({"arguments": "{}"})),
            "the field `messages[0].tool_calls[0].function.name` is required",
        ),
        (
            call(json!({"name": "f", "arguments": 5})),
            "`messages[0].tool_calls[0].function.arguments` must be a string, not an integer",
        ),
    ]);
    // Fields of one role's messages mean nothing in another's, unless they are null.
    let null = json!({"role": "user", "content": "x", "tool_calls": null, "tool_call_id": null});
    assert!(read::<chat::Body>(&of(null)).is_ok());
    let other = json!({"role": "user", "content": "x", "tool_calls": 5});
    assert!(read::<chat::Body>(&of(other)).is_err());
}

#[test]
fn tools_and_formats() {
    let tool =
        |function: Value| chat_with("tools", json!([{"type": "function", "function": function}]));
    let format = |value: Value| chat_with("response_format", value);
    check::<chat::Body>(&[
        (
            chat_with("tools", json!({})),
            "`tools` must be an array of functions, not an object",
        ),
        (
            chat_with("tools", json!([{"type": "retrieval"}])),
            "`tools[0].type` other than `function` is not supported by this server",
        ),
        (
            chat_with("tools", json!([{"type": "function"}])),
            "the field `tools[0].function` is required",
        ),
        (
            tool(json!({"name": "a b"})),
            "`tools[0].function.name` must have 1 to 64 characters; allowed: letters, digits, \
             `_`, `-`, `.`, `/`, `:`",
        ),
        (
            tool(json!({"name": "f", "parameters": true})),
            "`tools[0].function.parameters` must be a JSON schema (an object), not a boolean",
        ),
        (
            tool(json!({"name": "f", "parameters": {"a": "x".repeat(65536)}})),
            "`tools[0].function.parameters` has 65544 bytes; allowed: up to 65536",
        ),
        (
            chat_with("tool_choice", json!("some")),
            "`tool_choice` must be `none`, `auto`, `required` or an object that names a function",
        ),
        (
            chat_with("tool_choice", json!(5)),
            "`tool_choice` must be `none`, `auto`, `required` or an object that names a function, \
             not an integer",
        ),
        (
            chat_with("tool_choice", json!({"type": "function", "function": {}})),
            "the field `tool_choice.function.name` is required",
        ),
        (
            format(json!({"type": "xml"})),
            "`response_format.type` is \"xml\"; allowed: `text`, `json_object`, `json_schema`, \
             `json`, `regex`, `grammar`",
        ),
        (
            format(json!({"type": "json_schema"})),
            "the field `response_format.json_schema` is required",
        ),
        (
            format(json!({"type": "json_schema", "json_schema": {"name": "a"}})),
            "the field `response_format.json_schema.schema` is required",
        ),
        (
            format(json!([])),
            "`response_format` must be an object, not an array",
        ),
    ]);
    // Schemas are passed on unchanged.
    let schema = json!({"type": "object", "default": null, "enum": [null, {"a": null}]});
    let body = tool(json!({"name": "f", "parameters": schema}));
    let body: chat::Body = read(&body).unwrap_or_else(|e| panic!("{e}"));
    let text = format!("{:?}", body.tools);
    assert!(text.contains("\"default\": Null"), "{text}");
}

#[test]
fn other_routes() {
    let prompt = |value: Value| json!({"model": "m", "prompt": value});
    let texts = |value: Value| {
        let body: completions::Body = read(&prompt(value)).unwrap_or_else(|e| panic!("{e}"));
        body.prompt.prompts("prompt").unwrap_err().to_string()
    };
    assert_eq!(texts(json!([])), "`prompt` must not be empty");
    assert_eq!(texts(json!([-1])), "`prompt` must hold token ids only");
    assert_eq!(
        texts(json!([[1.5]])),
        "`prompt[0]` must hold token ids only"
    );
    assert_eq!(
        texts(json!(["a", 5])),
        "`prompt[1]` must be a string or an array of token ids, not an integer"
    );
    assert_eq!(
        texts(json!(5)),
        "`prompt` must be a string, an array of strings, an array of token ids, or an array of \
         such, not an integer"
    );
    check::<tokens::DetokenizeBody>(&[
        (json!({}), "the field `tokens` is required"),
        (
            json!({"tokens": "x"}),
            "`tokens` must be an array of token ids, not a string",
        ),
        (
            json!({"tokens": ["x"]}),
            "`tokens` must hold token ids only",
        ),
    ]);
    let of = |name: &str, value: Value| with(json!({"model": "m", "input": "x"}), name, value);
    let kept = "(nothing is kept under such an id: send the whole conversation in `input`) is not \
                supported by this server";
    check::<responses::Body>(&[
        (
            of("conversation", json!("c")),
            &format!("`conversation` {kept}"),
        ),
        (
            of("background", json!(true)),
            "`background` (wait for the response, or stream it) is not supported by this server",
        ),
        (
            of("truncation", json!("auto")),
            "`truncation` other than `disabled` is not supported by this server",
        ),
        (
            of(
                "text",
                json!({"format": {"type": "json_schema", "name": "a"}}),
            ),
            "the field `text.format.schema` is required",
        ),
        (
            of("input", json!(5)),
            "`input` must be a string or an array of items, not an integer",
        ),
        (
            of("input", json!([{"type": "item_reference"}])),
            "`input[0].type` of the value `item_reference` (done are `message`, `function_call`, \
             `function_call_output`, `reasoning`) is not supported by this server",
        ),
        (
            of("input", json!([{"content": "x"}])),
            "the field `input[0].role` is required",
        ),
        (
            of("tools", json!([{"type": "function"}])),
            "the field `tools[0].name` is required",
        ),
    ]);
}

#[test]
fn the_first_fault_in_the_order_of_declaration_is_told() {
    let body = json!({"messages": 5, "temperature": "x", "functions": [1]});
    let refused = error::<chat::Body>(&body).to_string();
    assert_eq!(refused, "`functions` is not supported by this server");
    let body = json!({"messages": 5, "temperature": "x"});
    let missing = error::<chat::Body>(&body).to_string();
    assert_eq!(missing, "`temperature` must be a number, not a string");
}

#[test]
fn unknown_fields_are_refused_unless_they_are_null() {
    let body = chat_with("temprature", json!(0));
    let unknown = |body: &Value| {
        let (_, unknown) = super::read_all::<chat::Body>(body).unwrap_or_else(|e| panic!("{e}"));
        unknown.check(UnknownFields::Refuse)
    };
    let refused = unknown(&body).unwrap_err().to_string();
    assert_eq!(
        refused,
        "`temprature` (no known field of this route; did you mean `temperature`?) is not supported by this server"
    );
    let refused = unknown(&chat_with("xyz_of_mine", json!(0))).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "`xyz_of_mine` (no known field of this route) is not supported by this server"
    );
    for (name, value) in [
        ("temprature", Value::Null),
        ("tools", json!([])),
        ("service_tier", json!("auto")),
        ("functions", json!([])),
        ("seed", json!(1)),
    ] {
        let body = chat_with(name, value);
        assert!(unknown(&body).is_ok(), "{body}");
    }
}

#[test]
fn arguments_of_earlier_calls() {
    let taken = |text: &str| {
        let arguments: super::Arguments = serde_json::from_value(json!(text)).unwrap();
        arguments.for_template()
    };
    for text in [
        "{\"a\": \"mil",
        "5",
        "[1]",
        "null",
        "no JSON",
        "{\"a\": \"b\nc\"}",
    ] {
        assert_eq!(taken(text), json!(text));
    }
    assert_eq!(taken("{\"a\": 1}"), json!({"a": 1}));
    assert_eq!([taken(""), taken(" \n")], [json!({}), json!({})]);
}
