//! What schemas ask for beyond a grammar.

use serde_json::{Value, json};

use super::fake::{Script, Server};
use super::{chat, complete, get, post};

#[test]
fn what_a_schema_asks_beyond_a_grammar_is_said_or_refused() {
    let server = Server::start(|_| ());
    let tool = |name: &str, strict: bool, parameters: Value| json!({"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}});
    let odd = json!({"type": "object", "properties": {
        "a": {"type": "string", "not": {"const": "x"}},
        "b": {"uniqueItems": true},
        "c": {"type": "string", "pattern": "(?<=a)b"},
    }});
    let both = json!({"tools": [tool("good", true, json!({"type": "object"})), tool("odd", false, odd.clone())]});
    let reply = chat(&server, &both);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let notice = reply.header("x-realign-schema-notice");
    for part in [
        "odd: not at #/properties/a",
        "uniqueItems at #/properties/b",
        "pattern at #/properties/c",
    ] {
        assert!(notice.contains(part), "{notice}");
    }
    let strict = chat(&server, &json!({"tools": [tool("odd", true, odd)]}));
    assert_eq!(strict.status, 400);
    assert!(
        strict.text.contains("not at #/properties/a"),
        "{}",
        strict.text
    );
    let plain = json!({"tools": [tool("good", false, json!({"type": "object"}))]});
    assert_eq!(chat(&server, &plain).header("x-realign-schema-notice"), "");
}

#[test]
fn one_schema_that_cannot_be_compiled_leaves_the_others_enforced() {
    let server = Server::start(|_| ());
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}});
    for (schema, notice) in [
        (
            json!({"oneOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]}),
            "oneOf at #",
        ),
        (
            json!({"type": "string", "format": "no-such-format"}),
            "format at #",
        ),
    ] {
        let reply = chat(&server, &format(schema.clone()));
        assert_eq!(reply.status, 200, "{schema}: {}", reply.text);
        let said = reply.header("x-realign-schema-notice");
        assert!(said.contains(notice), "{schema}: {said}");
    }
}

#[test]
fn a_schema_that_nothing_satisfies_is_refused() {
    let server = Server::start(|_| ());
    for schema in [
        json!({"allOf": [{"type": "string"}, {"type": "null"}]}),
        json!({"type": "object", "required": ["a"], "properties": {"a": false}}),
        json!({"not": {}}),
    ] {
        let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
        let reply = chat(&server, &json!({"response_format": format}));
        assert_eq!(reply.status, 400, "{schema}: {}", reply.text);
        assert!(reply.text.contains("Unsatisfiable"), "{}", reply.text);
    }
}

#[test]
fn a_reference_that_leads_nowhere_is_refused() {
    let server = Server::start(|_| ());
    let schema = json!({"properties": {"a": {"$ref": "https://schemas.example/a.json"}}});
    let tool =
        json!({"type": "function", "function": {"name": "look", "parameters": schema.clone()}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
    for (fields, param, of) in [
        (json!({"tools": [tool]}), "tools", "look"),
        (
            json!({"response_format": format}),
            "response_format",
            "the answer",
        ),
    ] {
        let reply = chat(&server, &fields);
        assert_eq!(reply.status, 400, "{}", reply.text);
        let error = &reply.json()["error"];
        assert_eq!(error["param"], param);
        let message = error["message"].as_str().unwrap();
        let named = "$ref https://schemas.example/a.json at #/properties/a";
        assert!(message.contains(named) && message.contains(of), "{message}");
    }
}

/// Answers that fit `odd_numbers` and that do not.
const ODD: Script = Script::Exactly(&["{\"a\": ", "3}"]);
const EVEN: Script = Script::Exactly(&["{\"a\": ", "4}"]);

fn odd_numbers() -> Value {
    json!({"type": "object", "properties": {"a": {"type": "integer", "not": {"multipleOf": 2}}}})
}

const VIOLATED: &str = "the answer violates not at #/a";

#[test]
fn a_finished_answer_that_violates_its_schema_says_so() {
    let server = Server::start(|_| ());
    let schema = json!({"name": "odd", "schema": odd_numbers()});
    let format = json!({"type": "json_schema", "json_schema": schema});
    server.script([ODD, EVEN, ODD, EVEN, EVEN, ODD, Script::Cut(&["{\"a\": 4"])]);
    let whole = chat(&server, &json!({"response_format": format, "n": 2}));
    assert_eq!(whole.status, 200, "{}", whole.text);
    let choices = &whole.json()["choices"];
    assert_eq!(choices[0].get("schema_notice"), None);
    assert_eq!(choices[1]["schema_notice"], VIOLATED);
    assert_eq!(choices[1]["message"]["content"], r#"{"a": 4}"#);
    assert_eq!(
        whole.header("x-realign-schema-notice"),
        format!("choice 1: {VIOLATED}; the answer: not at #/properties/a")
    );

    let streamed = chat(
        &server,
        &json!({"response_format": format, "n": 2, "stream": true}),
    );
    let events = streamed.events();
    let ends = events.iter().map(|event| &event["choices"][0]);
    let ends = ends.filter(|choice| choice["finish_reason"] == "stop");
    let said: Vec<_> = ends
        .map(|end| (&end["index"], end.get("schema_notice")))
        .collect();
    assert_eq!(said.len(), 2);
    for (index, notice) in said {
        let expected = (index == 1).then(|| json!(VIOLATED));
        assert_eq!(notice, expected.as_ref(), "choice {index}");
    }

    let text = complete(&server, &json!({"guided_json": odd_numbers()})).json();
    assert_eq!(text["choices"][0]["schema_notice"], VIOLATED);
    for _ in ["valid", "cut"] {
        let fine = chat(&server, &json!({"response_format": format})).json();
        assert_eq!(fine["choices"][0].get("schema_notice"), None, "{fine}");
    }
    let metrics = get(&server, "/metrics").text;
    let counted = "realign_schema_invalid_answers_total 3";
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn calls_are_checked_and_other_formats_say_so_too() {
    const CALL: Script = Script::Exactly(&[
        "<tool_call>\n{\"name\": \"count\", \"arguments\": {\"a\": 4}}\n</tool_call>",
    ]);
    const SAID: &str = "count violates not at #/a";
    let server = Server::start(|_| ());
    let function = json!({"name": "count", "parameters": odd_numbers()});
    server.script([CALL, CALL, EVEN, EVEN]);
    let tools = json!({"tools": [{"type": "function", "function": function}]});
    let answer = chat(&server, &tools).json();
    assert_eq!(answer["choices"][0]["schema_notice"], SAID, "{answer}");

    let anthropic = json!({"model": "org/tiny", "max_tokens": 9, "stream": true, "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"name": "count", "input_schema": odd_numbers()}]});
    let reply = post(&server, "/v1/messages", &anthropic);
    assert!(reply.text.contains(SAID), "{}", reply.text);

    let format = json!({"type": "json_schema", "name": "odd", "schema": odd_numbers()});
    for stream in [false, true] {
        let body = json!({"input": "Hi", "text": {"format": format}, "stream": stream});
        let reply = post(&server, "/v1/responses", &body);
        let field = format!("\"schema_notice\":\"{VIOLATED}\"");
        assert!(reply.text.contains(&field), "{}", reply.text);
        let header = reply.header("x-realign-schema-notice");
        assert_eq!(header.contains(VIOLATED), !stream, "{header}");
    }
}

#[test]
fn arrays_and_strings_without_bounds_end_where_the_operator_says() {
    let server = Server::start(|state| state.schema_bounds.length = Some(3));
    let schema = json!({"name": "s", "schema": {"type": "string"}});
    let format = json!({"type": "json_schema", "json_schema": schema});
    assert_eq!(
        chat(&server, &json!({"response_format": format})).status,
        200
    );
    let requests = server.engine.requests.lock().unwrap();
    let grammar = requests[0].sampling.grammar.clone().unwrap();
    let mut state = realign_engine::grammar::GrammarState::new(&grammar);
    let tokenizer = &server.state.tokenizer;
    let mut masked = Vec::new();
    let logits = vec![0.0; tokenizer.vocab_size()];
    for id in tokenizer.encode("\"abc", false).unwrap() {
        state.mask(&logits, &mut masked).unwrap();
        assert!(masked[id as usize].is_finite());
        state.accept(id).unwrap();
    }
    state.mask(&logits, &mut masked).unwrap();
    let more = tokenizer.encode("d", false).unwrap()[0];
    assert!(masked[more as usize].is_infinite());
}
