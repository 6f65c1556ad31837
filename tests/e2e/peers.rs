//! Fields that clients of other servers send, followed to the letter: one server, a random model.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::server::{Answer, Server};
use super::workspace::Workspace;

/// A chat completion of one message with additional fields.
fn ask(server: &Server<'_>, fields: &Value) -> Answer {
    let mut body =
        json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 64 });
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    server.post("/v1/chat/completions", &body)
}

fn text(server: &Server<'_>, fields: &Value) -> String {
    let answer = ask(server, fields);
    assert_eq!(answer.status, 200, "{fields}: {}", answer.body);
    answer.text().to_string()
}

#[test]
fn fields_of_other_servers_are_followed() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    constraints(&server);
    ends(&server);
    words_and_prompts(&server);
    calls(&server);
}

fn constraints(server: &Server<'_>) {
    let gbnf = "root ::= \"<\" [ab]{1,3} \">\"";
    let object = json!({
        "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"],
        "additionalProperties": false,
    });
    let of = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect::<BTreeSet<_>>();
    let booleans = of(&["{\"ok\": true}", "{\"ok\": false}"]);
    let tagged = |text: &String| {
        let inner = text.strip_prefix('<').and_then(|t| t.strip_suffix('>'));
        inner.is_some_and(|t| (1..=3).contains(&t.len()) && t.chars().all(|c| "ab".contains(c)))
    };
    for seed in 0..4 {
        let draw = |fields: Value| {
            let mut fields = fields;
            fields["seed"] = seed.into();
            text(server, &fields)
        };
        let chosen = draw(json!({ "guided_choice": ["yes", "no", "yes indeed"] }));
        assert!(
            of(&["yes", "no", "yes indeed"]).contains(&chosen),
            "{chosen}"
        );
        let matched = draw(json!({ "structured_outputs": { "regex": "^[xy]/\\d$" } }));
        let characters: Vec<char> = matched.chars().collect();
        assert!(
            matches!(characters[..], ['x' | 'y', '/', digit] if digit.is_ascii_digit()),
            "{matched}"
        );
        for field in ["grammar", "guided_grammar"] {
            let described = draw(json!({ field: gbnf }));
            assert!(tagged(&described), "{described}");
        }
        for fields in [
            json!({ "guided_json": object }),
            json!({ "json_schema": object }),
            json!({ "response_format": { "type": "json_object", "schema": object } }),
        ] {
            let answered = draw(fields);
            assert!(booleans.contains(&answered), "{answered}");
        }
        // It refers to itself, so it is no regular expression.
        let nested = draw(json!({ "grammar": "root ::= \"(\" root? \")\"", "max_tokens": 400 }));
        let opened = nested.matches('(').count();
        let closed = nested.len() - opened;
        assert_eq!(nested, "(".repeat(opened) + &")".repeat(closed));
        assert!(
            opened == closed || nested.len() == 400 && closed < opened,
            "{nested}"
        );
    }
    let body = json!({ "prompt": "a", "guided_choice": ["b"], "max_tokens": 4 });
    let completed = server.post("/v1/completions", &body).body;
    assert_eq!(completed["choices"][0]["text"], "b", "{completed}");
}

fn ends(server: &Server<'_>) {
    let spell = |fields: Value| {
        let mut fields = fields;
        fields["guided_regex"] = "abcdef".into();
        text(server, &fields)
    };
    let tokens = server.post("/tokenize", &json!({ "content": "d" })).body;
    let d = &tokens["tokens"][0];
    assert_eq!(spell(json!({ "stop_token_ids": [d] })), "abc");
    let included = json!({ "stop_token_ids": [d], "include_stop_str_in_output": true });
    assert_eq!(spell(included), "abcd");
    let included = json!({ "stop": "cd", "include_stop_str_in_output": true });
    assert_eq!(spell(included), "abcd");
    assert_eq!(spell(json!({ "stop": "cd" })), "ab");
    assert_eq!(spell(json!({ "stop": "b", "min_tokens": 3 })), "abcdef");
    for seed in 0..8 {
        let fields = json!({ "seed": seed, "min_tokens": 40, "max_tokens": 44 });
        let usage = ask(server, &fields).body["usage"]["completion_tokens"].clone();
        assert!((40..=44).contains(&usage.as_u64().unwrap()), "{usage}");
    }
}

fn words_and_prompts(server: &Server<'_>) {
    for (words, expect) in [
        (json!(["b"]), "acd"),
        (json!(["ac", "x"]), "abd"),
        (json!(["acd"]), "abd"),
    ] {
        for seed in 0..4 {
            let fields = json!({ "guided_regex": "a[bc]d", "bad_words": words, "seed": seed });
            let answer = ask(server, &fields);
            // `acd` is noticed at its last letter, where the grammar allows nothing else.
            let stuck = words == json!(["acd"]) && answer.status == 400;
            assert!(stuck || answer.text() == expect, "{words}: {}", answer.body);
        }
    }
    let short = ask(
        server,
        &json!({ "truncate_prompt_tokens": 5, "max_tokens": 1 }),
    );
    assert_eq!(short.body["usage"]["prompt_tokens"], 5, "{}", short.body);
    assert_eq!(short.body["model"], "tiny", "the model was omitted");
}

fn calls(server: &Server<'_>) {
    let weather = json!([{ "type": "function", "function": {
        "name": "weather/now.get",
        "parameters": {
            "type": "object", "properties": { "city": { "enum": ["Oslo", "Rome"] } },
            "required": ["city"], "additionalProperties": false,
        },
    } }]);
    let named = json!({ "type": "function", "function": { "name": "weather/now.get" } });
    for seed in 0..6 {
        let fields = |choice: &Value, max_tokens: usize| json!({ "tools": weather, "tool_choice": choice, "seed": seed, "max_tokens": max_tokens });
        let once = ask(server, &fields(&named, 600)).body;
        let made = &once["choices"][0]["message"]["tool_calls"];
        assert_eq!(made.as_array().map(Vec::len), Some(1), "{once}");

        // There are two calls that differ.
        let required = ask(server, &fields(&json!("required"), 1500)).body;
        let choice = &required["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{required}");
        let made = choice["message"]["tool_calls"].as_array().unwrap();
        let differ: BTreeSet<&str> = made
            .iter()
            .map(|call| call["function"]["arguments"].as_str().unwrap())
            .collect();
        assert_eq!(differ.len(), made.len(), "{required}");

        for max_tokens in [5, 20, 70] {
            let cut = ask(server, &fields(&json!("required"), max_tokens)).body;
            let message = &cut["choices"][0]["message"];
            let content = message["content"].as_str().unwrap_or_default();
            assert!(!content.contains("<tool"), "{cut}");
            let user = json!({ "role": "user", "content": "go on" });
            let history = json!({ "messages": [user, message, user], "max_tokens": 2 });
            let next = ask(server, &history);
            assert_eq!(next.status, 200, "{message}: {}", next.body);
        }
    }
}
