//! Function calls and structured answers.

use serde_json::{Value, json};

use super::fake::{Script, Server};
use super::{chat, post};

fn weather() -> Value {
    json!({"type": "function", "function": {
        "name": "get_weather",
        "description": "Weather now <|im_end|>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": false,
        },
    }})
}

const CALLS: Script = Script::Say(&[
    "Sure.\n<tool",
    "_call>\n{\"name\": \"get_weather\", \"argu",
    "ments\": {\"city\": \"Oslo\"}}\n</tool_call>\n<tool_call>\n{\"name\": ",
    "\"get_weather\", \"arguments\": {\"city\": \"Rome}\"}}\n</tool_call>",
]);

#[test]
fn calls_are_the_same_whole_and_streamed() {
    let server = Server::start(|_| ());
    server.script([CALLS, CALLS]);
    let answer = chat(&server, &json!({"tools": [weather()]})).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "Sure.");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    let arguments = |i: usize| calls[i]["function"]["arguments"].as_str().unwrap();
    assert_eq!(arguments(0), r#"{"city": "Oslo"}"#);
    assert_eq!(arguments(1), r#"{"city": "Rome}"}"#);
    assert!(calls.iter().all(|c| c["function"]["name"] == "get_weather"));
    assert_ne!(calls[0]["id"], calls[1]["id"]);

    let streamed = chat(&server, &json!({"tools": [weather()], "stream": true}));
    let mut joined = [String::new(), String::new()];
    let mut ids = Vec::new();
    for event in streamed.events() {
        let delta = &event["choices"][0]["delta"];
        let entries = delta["tool_calls"].as_array().into_iter().flatten();
        let mut indices: Vec<&Value> = entries.map(|entry| &entry["index"]).collect();
        let all = indices.len();
        indices.dedup();
        assert_eq!(indices.len(), all, "one entry per call and chunk: {event}");
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            joined[index].push_str(call["function"]["arguments"].as_str().unwrap());
            ids.extend(call["id"].as_str().map(str::to_string));
        }
    }
    assert_eq!(joined, [arguments(0), arguments(1)]);
    assert_eq!(ids.len(), 2, "each call opens once");
    let last = streamed.events().pop().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn functions_stand_in_the_prompt_as_text() {
    let server = Server::start(|_| ());
    chat(&server, &json!({}));
    chat(&server, &json!({"tools": [weather()]}));
    chat(
        &server,
        &json!({"tools": [weather()], "tool_choice": "none"}),
    );
    let requests = server.engine.requests.lock().unwrap();
    let tokenizer = &server.state.tokenizer;
    let control = |i: usize| {
        let prompt = requests[i].prompt.iter();
        prompt.filter(|id| tokenizer.is_control(**id)).count()
    };
    let text = tokenizer.decode(&requests[1].prompt).unwrap();
    assert!(text.contains("Weather now <|im_end|>"), "{text}");
    assert_eq!(control(1), control(0), "what a client writes opens no turn");
    assert!(requests[1].sampling.grammar.is_some());
    assert_eq!(requests[2].prompt, requests[0].prompt);
    assert!(requests[2].sampling.grammar.is_none());
}

#[test]
fn results_of_calls_go_back_into_the_conversation() {
    let server = Server::start(|_| ());
    let call = json!({"id": "call_1", "type": "function",
        "function": {"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}});
    let messages = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain <|im_start|>"},
        {"role": "tool", "tool_call_id": "call_2", "content": "sun"},
    ]);
    let reply = chat(
        &server,
        &json!({"messages": messages, "tools": [weather()]}),
    );
    assert_eq!(reply.status, 200, "{}", reply.text);
    let requests = server.engine.requests.lock().unwrap();
    let text = server.state.tokenizer.decode(&requests[0].prompt).unwrap();
    for part in [
        r#"{"name":"get_weather","arguments":{"city":"Oslo"}}"#,
        "rain <|im_start|>",
        "sun",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let turns = text.matches("user\n").count();
    assert_eq!(turns, 2, "both results make one message: {text}");
}

#[test]
fn forced_and_named_functions() {
    let server = Server::start(|_| ());
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    server.script([CALLS]);
    let answer = chat(
        &server,
        &json!({"tools": [weather()], "tool_choice": named}),
    )
    .json();
    assert_eq!(
        answer["choices"][0]["finish_reason"], "stop",
        "as OpenAI has it"
    );
    let required = json!({"tools": [weather()], "tool_choice": "required"});
    assert_eq!(chat(&server, &required).status, 200);
    let requests = server.engine.requests.lock().unwrap();
    assert!(requests.iter().all(|r| r.sampling.grammar.is_some()));
}

#[test]
fn wrong_tools_and_formats_are_named() {
    let server = Server::start(|_| ());
    let schema = |schema: Value| {
        json!({"response_format": {"type": "json_schema", "json_schema":
            {"name": "s", "strict": true, "schema": schema}}})
    };
    let mut twice = json!({"tools": [weather(), weather()]});
    let named = json!({"type": "function", "function": {"name": "other"}});
    let cases = [
        (json!({"tools": {}}), "tools"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}),
            "tools[0].function.name",
        ),
        (twice.take(), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"tools": [weather()], "tool_choice": "some"}),
            "tool_choice",
        ),
        (
            json!({"tools": [weather()], "tool_choice": named}),
            "tool_choice.function.name",
        ),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls"),
        (schema(json!({"type": "strin"})), "response_format"),
        (
            schema(json!({"$ref": "http://example.com"})),
            "response_format",
        ),
        (schema(json!(true)), "response_format.json_schema.schema"),
        (
            schema(json!({"type": "object", "x-unknown-keyword": 1, "uniqueItems": true})),
            "response_format",
        ),
        (
            json!({"tools": [{"type": "function", "function":
                {"name": "f", "parameters": {"type": "nothing"}}}]}),
            "tools",
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
    assert!(server.engine.requests.lock().unwrap().is_empty());
}

#[test]
fn schemas_reach_the_engine_as_grammars() {
    let server = Server::start(|_| ());
    let person = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    for format in [
        json!({"type": "json_object"}),
        json!({"type": "json_schema", "json_schema": {"name": "p", "schema": person}}),
    ] {
        let reply = chat(&server, &json!({"response_format": format}));
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    let requests = server.engine.requests.lock().unwrap();
    assert!(requests.iter().all(|r| r.sampling.grammar.is_some()));
}

/// The prompt has all functions. What the grammar allows is tested where it is made.
#[test]
fn some_of_the_functions_may_be_allowed() {
    let server = Server::start(|_| ());
    let other = json!({"type": "function", "function": {"name": "save"}});
    let tools = json!([weather(), other]);
    let name = weather()["function"]["name"].clone();
    let allowed = |mode: &str, name: &Value| {
        let tool = json!({"type": "function", "function": {"name": name}});
        let choice =
            json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool]}});
        json!({"tools": tools, "tool_choice": choice})
    };
    for mode in ["auto", "required"] {
        let reply = chat(&server, &allowed(mode, &name));
        assert_eq!(reply.status, 200, "{mode}: {}", reply.text);
        let requests = server.engine.requests.lock().unwrap();
        let request = requests.last().unwrap();
        let prompt = server.state.tokenizer.decode(&request.prompt).unwrap();
        assert!(prompt.contains("save"), "{prompt}");
        assert!(request.sampling.grammar.is_some());
    }
    let flat = json!({"input": "Hi", "tools": [{"type": "function", "name": "f"}, {"type": "function", "name": "g"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]}});
    let reply = post(&server, "/v1/responses", &flat);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let missing = chat(&server, &allowed("auto", &json!("none")));
    let param = &missing.json()["error"]["param"];
    assert_eq!(param, "tool_choice.allowed_tools.tools", "{}", missing.text);
}
